"""A command line, optionally on top of a YAML file with the same names, becomes `Arguments`.

Why here and not in `arguments.py`: that file says what the flags are, this one what is said of a wrong one.
"""

import difflib
from argparse import SUPPRESS
from collections.abc import Sequence
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from vibevoice_finetune.arguments import Arguments, DataArguments, FinetuneArguments, ModelArguments
from vibevoice_finetune.errors import ArgumentError

GONE_FLAGS = {
    "evaluation_strategy": "--eval_strategy",
    "logging_dir": "the TENSORBOARD_LOGGING_DIR variable (default: OUTPUT_DIR/runs)",
    "overwrite_output_dir": "another --output_dir",
    "save_safetensors": "nothing: weights are always safetensors",
    "group_by_length": "nothing: rows are packed without padding",
    "no_cuda": "--use_cpu",
}
"""Flags of older scripts that transformers 5 no longer has, and what to write instead."""

MAX_CONFIG_BYTES = 1_000_000

SECRETS = ("hub_token",)
"""Flags that are written to no file."""


class _Parser(HfArgumentParser):
    """Raises instead of printing a page of usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (all flags: vibevoice-finetune {self.prog.split()[-1]} --help)")


def parse(argv: Sequence[str], command: str = "train") -> Arguments:
    """Parse a command line; `--config file.yaml` gives values that flags after it on the command line override.

    Raises:
        ArgumentError: an unknown flag, a value of the wrong kind, a combination that cannot be carried out.
    """
    parser = _Parser(
        [ModelArguments, DataArguments, FinetuneArguments],  # type: ignore[list-item]  # its hint wants a type variable
        prog=f"vibevoice-finetune {command}",
        allow_abbrev=False,
    )
    parser.add_argument("--config", default=SUPPRESS, help="YAML file with the same names; the command line wins.")
    words = list(argv)
    if not {"--help", "-h"} & set(words):
        words = _with_config(words)
    try:
        model, data, loop, *_, unknown = parser.parse_args_into_dataclasses(
            words, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # transformers' own checks of its arguments
        raise ArgumentError(" ".join(str(error).split())) from error
    if unknown:
        raise ArgumentError(_unknown_flag(unknown[0], [f.name for c in parser.dataclass_types for f in fields(c)]))
    values = vars(parser.parse_known_args(words)[0])
    given = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if value != parser.get_default(name) and name not in SECRETS
    }
    return Arguments(model, data, loop, given)


class _PlainLoader(yaml.SafeLoader):
    """Takes no aliases: a few lines of them, each naming the one before ten times, unfold to gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse where another value is referred to."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken; write the value out")
        return super().compose_node(parent, index)


def _with_config(words: list[str]) -> list[str]:
    """Replace `--config FILE` by the flags that the file holds, put first so that the command line wins."""
    spread = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in spread:
        return words
    at = spread.index("--config")
    if at + 1 == len(spread):
        raise ArgumentError("--config needs the path of a YAML file.")
    path = Path(spread[at + 1])
    return _flags_of(path) + spread[:at] + spread[at + 2 :]


def _flags_of(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES or not path.is_file():
            raise ArgumentError(f"--config {path}: is no file of at most {MAX_CONFIG_BYTES:,} bytes.")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainLoader)  # a SafeLoader
    except OSError as error:
        raise ArgumentError(f"--config {path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArgumentError(f"--config {path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ArgumentError(f"--config {path}: expected `name: value` lines with the names of flags.")
    flags: list[str] = []
    for name, value in content.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        text = [",".join(map(str, values))] if name in ("lora_target_modules", "layers_to_freeze") else map(str, values)
        flags += [f"--{name}", *text]
    return flags


def _unknown_flag(word: str, names: list[str]) -> str:
    name = word.lstrip("-").split("=")[0].replace("-", "_")
    if name in GONE_FLAGS:
        return f"--{name} is gone from transformers 5; use {GONE_FLAGS[name]}."
    if not word.startswith("-"):
        return f'"{word}" belongs to no flag; a value with spaces needs quotation marks.'
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean --{close[0]}?" if close else " (all flags: --help)."
    return f"{word} is no flag{hint}"
