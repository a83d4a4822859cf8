"""The command `convert`, and what `merge` has in common with it: the flags of the model that is written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.flags.declare import flag

SUMMARY = "Write a model in the other layout: original or native (transformers)."


@dataclass(kw_only=True)
class ExportFlags:
    """The model that is read and the one that is written."""

    model_name_or_path: str = flag(
        help="VibeVoice model: a folder, a Hub id, or small (comes with the package).", is_path=True
    )
    output: str = flag(help="Folder to make; it must not exist.", is_path=True)
    dtype: Literal["bf16", "bfloat16", "float32"] | None = flag(
        None, help="Of the result's numbers.", shown_default="as each tensor is stored"
    )
    processor_name_or_path: str | None = flag(
        None, help="Text tokenizer: a folder or a Hub id.", is_path=True, shown_default="the model's"
    )
    cache_dir: str | None = flag(
        None, help="Folder for downloads from the Hub.", is_path=True, shown_default="the Hub's own"
    )


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


def write_model(flags: ExportFlags, layout: str | None, adapter: Path | None, adapter_scale: float) -> None:
    """Write the model, and say what was written.

    Args:
        flags: from the command line.
        layout: of the result, "original" or "native"; None: that of the model.
        adapter: a folder with an adapter to put into it.
        adapter_scale: how much of it.

    Raises:
        UserError: a mistake in the flags, the model or the adapter; nothing is left behind.
    """
    from vibevoice_finetune.base_model.config import Layout
    from vibevoice_finetune.export.merge import ExportRequest, export
    from vibevoice_finetune.generation.order import DTYPES

    exported = export(
        ExportRequest(
            name_or_path=flags.model_name_or_path,
            output=Path(flags.output),
            adapter=adapter,
            adapter_scale=adapter_scale,
            layout=None if layout is None else Layout(layout),
            dtype=None if flags.dtype is None else DTYPES[flags.dtype],
            processor_name_or_path=flags.processor_name_or_path,
            cache_dir=None if flags.cache_dir is None else Path(flags.cache_dir),
        )
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in exported.warnings:
        console.print(f"warning: {warning}", markup=False)
    merged = f", {exported.num_merged} of them changed by the adapter" if exported.num_merged else ""
    print(  # noqa: T201  # the result
        f"{exported.folder}: {exported.layout.value} layout, {exported.num_tensors} tensors{merged}, "
        f"{exported.num_bytes / 1e6:,.1f} MB"
    )
