"""The command `encode`."""

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.training import run


def encode(words: list[str]) -> None:
    """Run `encode` with the words that follow the command; its flags are those of `train`."""
    names = [word.split("=")[0].replace("-", "_") for word in words]
    output_dir = [] if "__output_dir" in names else ["--output_dir", ""]
    run.encode(parse([*words, *output_dir, "--do_train"], command="encode"))
