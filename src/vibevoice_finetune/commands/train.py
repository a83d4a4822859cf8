"""The command `train`."""

from vibevoice_finetune.commands.parser import parse


def train(words: list[str]) -> None:
    """Run `train` with the words that follow the command."""
    arguments = parse(words)
    from vibevoice_finetune.training import run

    run.train(arguments)
