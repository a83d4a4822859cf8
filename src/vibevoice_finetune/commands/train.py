"""The command `train`."""

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.training import run


def train(words: list[str]) -> None:
    """Run `train` with the words that follow the command."""
    run.train(parse(words))
