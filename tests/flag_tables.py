"""Writes the tables of docs/flags.md from the flags' declarations: `python -m tests.flag_tables`.

What stands between the marks of the page is replaced, the rest of it is left alone. A test checks that it is current.
"""

import importlib
import re
from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from vibevoice_finetune.commands.parser import GROUPS
from vibevoice_finetune.commands.table import COMMANDS
from vibevoice_finetune.flags.data import DataArguments
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.model import ModelArguments

PAGE = Path(__file__).parents[1] / "docs" / "flags.md"
MARKED = re.compile(r"(<!-- tables of (\w+): python -m tests.flag_tables -->\n).*?(<!-- end -->)", flags=re.DOTALL)
HEAD = "| flag | default | |\n| --- | --- | --- |\n"


def page_with_tables(page: str) -> str:
    """The page with its tables as they should be."""
    tables = {"train": tables_of_train(), "others": tables_of_others()}
    return MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n{found[3]}", page)


def tables_of_train() -> str:
    """A table for each group of the help, in its order."""
    declared = [field for kind in (ModelArguments, DataArguments, LoopFlags) for field in fields(kind)]
    assert {field.metadata["group"] for field in declared} == set(GROUPS)
    parts = []
    for group in GROUPS:
        rows = (row(field) for field in declared if field.metadata["group"] == group)
        parts.append(f"### {group.capitalize()}\n\n{HEAD}{''.join(rows)}")
    return "\n".join(parts)


def tables_of_others() -> str:
    """A table for each command that has flags of its own."""
    parts = []
    for command in COMMANDS:
        module = importlib.import_module(f"vibevoice_finetune.{command.target.split(':')[0]}")
        kind = vars(module).get(f"{command.name.capitalize()}Flags")
        if kind is not None:
            parts.append(f"### `{command.name}`\n\n{HEAD}{''.join(map(row, in_order(fields(kind))))}")
    return "\n".join(parts)


def in_order(declared: Iterable[Field[Any]]) -> list[Field[Any]]:
    """What is given without a name comes first."""
    return sorted(declared, key=lambda field: not field.metadata.get("positional"))


def row(field: Field[Any]) -> str:
    """A flag's line."""
    name = field.name.upper() if field.metadata.get("positional") else f"--{field.name}"
    default = field.default_factory() if field.default_factory is not MISSING else field.default
    shown = field.metadata.get("shown_default") or ("required" if default is MISSING else plain(default))
    return f"| `{name}` | {cell(shown)} | {cell(field.metadata['help'].rstrip('.'))} |\n"


def plain(value: object) -> str:
    """A default as a person writes it."""
    return "none" if value is None or value == [] else str(value)


def cell(text: str) -> str:
    """Text of a table's cell; a backslash or a bar would not be shown, and braces are code."""
    return re.sub(r"(\{.*?\})", r"`\1`", text.replace("\\", "\\\\")).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page_with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
