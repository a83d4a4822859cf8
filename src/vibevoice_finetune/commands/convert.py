"""The command `convert`."""

from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.commands.export import ExportFlags, write_model
from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.flags.declare import flag

SUMMARY = "Write a model in the other layout: original or native (transformers)."


@dataclass(kw_only=True)
class ConvertFlags(ExportFlags):
    """The flags of `convert`."""

    layout: Literal["original", "native"] = flag(help="Of the result: original, or native (transformers).")


def convert(words: list[str]) -> None:
    """Run `convert` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags or the model; nothing is left behind.
    """
    flags = parse_flags(ConvertFlags, "convert", words, SUMMARY)
    write_model(flags, flags.layout, None, 1.0)
