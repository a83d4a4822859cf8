"""The command `encode`."""

from vibevoice_finetune.commands.parser import parse_run

SUMMARY = "Fill the latent store of a data set, without training; takes the flags of train."


def encode(words: list[str]) -> None:
    """Run `encode` with the words that follow the command; its flags are those of `train`."""
    arguments, _ = parse_run(words, "encode", SUMMARY, fill=lambda _: {"output_dir": "", "do_train": True})
    from vibevoice_finetune.training import run

    run.encode(arguments)
