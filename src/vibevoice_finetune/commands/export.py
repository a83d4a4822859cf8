"""The commands `inspect`, `merge` and `convert`: words of a command line in, lines or a folder out.

Why: the only place of export that knows flags and a terminal; what they do is in `adapters/merge.py`,
`adapters/inspect.py` and `adapters/rewrite.py`.
"""

import argparse
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from vibevoice_finetune.adapters.inspect import inspect_adapter, inspect_checkpoint
from vibevoice_finetune.adapters.merge import Exported, ExportRequest, export
from vibevoice_finetune.adapters.rewrite import fix_adapter
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.hub import SETTINGS, locate
from vibevoice_finetune.base_model.load import open_checkpoint
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.generation.generate import ADAPTER_FILES

DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def inspect(words: list[str]) -> None:
    """Run `inspect` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, or what is to be looked into is not whole.
    """
    flags = _inspect_parser().parse_args(words)
    cache_dir = _path(flags.cache_dir)
    base = None if flags.model_name_or_path is None else open_checkpoint(flags.model_name_or_path, cache_dir)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    # The small files tell what it is, before the large ones of a repository are downloaded.
    small, _ = locate(flags.path, SETTINGS, cache_dir)
    if (small / "config.json").is_file():
        if flags.fix is not None:
            raise ArgumentError(f"--fix rewrites an adapter; {flags.path} is a model: see convert")
        found = inspect_checkpoint(open_checkpoint(flags.path, cache_dir), base)
    else:
        folder, _ = locate(flags.path, ADAPTER_FILES, cache_dir)
        if flags.fix is not None and base is None:
            raise ArgumentError("--fix needs --model_name_or_path: the model that the adapter was trained on.")
        found = inspect_adapter(folder, base)
        if flags.fix is not None and base is not None:
            fix_adapter(folder, base, Path(flags.fix), expects_voice_prompt=flags.expects_voice_prompt == "True")
    for line in found.lines():
        print(line)  # noqa: T201  # the result
    for warning in found.warnings:
        console.print(f"warning: {warning}", markup=False)
    if flags.fix is not None:
        print(f"the portable adapter is {flags.fix}")  # noqa: T201


def merge(words: list[str]) -> None:
    """Run `merge` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, the model or the adapter; nothing is left behind.
    """
    flags = _merge_parser().parse_args(words)
    folder, _ = locate(flags.adapter, ADAPTER_FILES, _path(flags.cache_dir))
    _report(export(_request(flags, folder, flags.adapter_scale)))


def convert(words: list[str]) -> None:
    """Run `convert` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags or the model; nothing is left behind.
    """
    flags = _convert_parser().parse_args(words)
    _report(export(_request(flags, None, 1.0)))


def _request(flags: argparse.Namespace, adapter: Path | None, adapter_scale: float) -> ExportRequest:
    return ExportRequest(
        name_or_path=flags.model_name_or_path,
        output=Path(flags.output),
        adapter=adapter,
        adapter_scale=adapter_scale,
        layout=None if flags.layout is None else Layout(flags.layout),
        dtype=None if flags.dtype is None else DTYPES[flags.dtype],
        processor_name_or_path=flags.processor_name_or_path,
        cache_dir=_path(flags.cache_dir),
    )


def _report(exported: Exported) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in exported.warnings:
        console.print(f"warning: {warning}", markup=False)
    merged = f", {exported.num_merged} of them changed by the adapter" if exported.num_merged else ""
    print(  # noqa: T201  # the result
        f"{exported.folder}: {exported.layout.value} layout, {exported.num_tensors} tensors{merged}, "
        f"{exported.num_bytes / 1e6:,.1f} MB"
    )


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing a page of usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (all flags: {self.prog} --help)")


def _inspect_parser() -> argparse.ArgumentParser:
    parser = _new_parser("inspect", "Say what is inside an adapter or a model, and who can load it.")
    add = parser.add_argument
    add("path", metavar="PATH", help="an adapter or a model: a folder or a Hub id")
    add("--model_name_or_path", help="base model to compare with: a folder or a Hub id, in either layout")
    add("--fix", metavar="OUT", help="rewrite an adapter of any known shape into the portable layout, in this folder")
    add(
        "--expects_voice_prompt",
        choices=("True", "False"),
        default="True",
        help="for --fix: whether an adapter that does not say was trained with voice prompts (%(default)s)",
    )
    add("--cache_dir", help="where downloads from the Hub are kept")
    return parser


def _merge_parser() -> argparse.ArgumentParser:
    parser = _new_parser("merge", "Put an adapter into its base model; the result is a whole model.")
    add = parser.add_argument
    add("--adapter", required=True, help="result of a fine-tune: OUT/lora, OUT/checkpoint-N or a Hub id")
    add("--adapter_scale", type=float, default=1.0, help="how much of the adapter: 1 as trained (%(default)s)")
    _add_output_flags(parser)
    add("--layout", choices=[layout.value for layout in Layout], help="of the result; by default the base model's")
    return parser


def _convert_parser() -> argparse.ArgumentParser:
    parser = _new_parser("convert", "Write a model in the other layout: original or native (transformers).")
    _add_output_flags(parser)
    parser.add_argument("--layout", required=True, choices=[layout.value for layout in Layout], help="of the result")
    return parser


def _new_parser(command: str, description: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"vibevoice-finetune {command}", description=description, allow_abbrev=False)


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="VibeVoice checkpoint: a folder or a Hub id, in either layout")
    add("--output", required=True, help="folder to make; it must not exist")
    add("--dtype", choices=sorted(DTYPES), help="of the result; by default what each tensor is stored in")
    add("--processor_name_or_path", help="text tokenizer, a folder or a Hub id; by default the model's")
    add("--cache_dir", help="where downloads from the Hub are kept")


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)
