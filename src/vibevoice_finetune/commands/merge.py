"""The command `merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vibevoice_finetune.commands.convert import ExportFlags, write_model
from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.flags.declare import flag

SUMMARY = "Put an adapter into its base model; the result is a whole model."


@dataclass(kw_only=True)
class MergeFlags(ExportFlags):
    """The flags of `merge`."""

    adapter: str = flag(help="Result of a fine-tune: OUT/lora, OUT/checkpoint-N or a Hub id.", is_path=True)
    adapter_scale: float = flag(1.0, help="How much of the adapter: 0 none, 1 as trained.")
    layout: Literal["original", "native"] | None = flag(
        None, help="Of the result: original, or native (transformers).", shown_default="the base model's"
    )


def merge(words: list[str]) -> None:
    """Run `merge` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, the model or the adapter; nothing is left behind.
    """
    flags = parse_flags(MergeFlags, "merge", words, SUMMARY)
    from vibevoice_finetune.adapters.read import ADAPTER_FILES
    from vibevoice_finetune.base_model.hub import locate

    folder, _ = locate(flags.adapter, ADAPTER_FILES, None if flags.cache_dir is None else Path(flags.cache_dir))
    write_model(flags, flags.layout, folder, flags.adapter_scale)
