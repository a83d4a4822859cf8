"""What the README and the table of flags say is what the program has: commands, Python, flags and their defaults."""

import pkgutil
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainingArguments

from tests.flag_tables import in_order, page_with_tables, row
from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.commands.parser import parse, parse_flags
from vibevoice_finetune.commands.table import COMMANDS
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.flags.declare import flag

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")


def test_the_tables_of_flags_are_those_of_the_declarations() -> None:
    assert page_with_tables(FLAGS) == FLAGS, "write them anew: python -m tests.flag_tables"


def test_a_table_has_names_defaults_and_help() -> None:
    @dataclass(kw_only=True)
    class Flags:
        share: float = flag(0.5, help="A share, as in {a|b}.")
        place: str = flag(help="Where.", positional=True)
        files: list[str] = flag([], help="Files.", shown_default="those of DATA")

    assert [row(field) for field in in_order(fields(Flags))] == [
        "| `PLACE` | required | Where |\n",
        "| `--share` | 0.5 | A share, as in `{a\\|b}` |\n",
        "| `--files` | those of DATA | Files |\n",
    ]


def test_defaults_that_differ_from_transformers_are_named() -> None:
    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    overridden = {f.name for f in fields(FinetuneArguments) if f.name in theirs and f.default != theirs[f.name]}
    text = re.search(r"Defaults that differ from transformers'.*?\n\n", FLAGS, flags=re.DOTALL)
    assert text is not None
    assert overridden <= set(re.findall(r"--(\w+)", text.group()))


FLAGS_OF = {
    "prepare": "prepare:PrepareFlags",
    "validate": "validate:ValidateFlags",
    "generate": "generate:GenerateFlags",
    "inspect": "inspect:InspectFlags",
    "merge": "merge:MergeFlags",
    "convert": "convert:ConvertFlags",
    "demo": "demo:DemoFlags",
    "evaluate": "evaluate:EvaluateFlags",
    "rehearse": "rehearse:RehearseFlags",
    "recipes": "recipes:RecipesFlags",
    "tune": "tune:TuneFlags",
    "web": "web:WebFlags",
}
"""Where commands that do not take the flags of `train` declare theirs."""


def commands_in(text: str) -> list[list[str]]:
    """The words of every command in a fenced block, those with an ellipsis left out."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for kind, block in fenced if not kind for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("vibevoice-finetune ") and "…" not in line]


def parse_any(words: list[str]) -> None:
    command, *rest = words
    if command in FLAGS_OF:
        kind = pkgutil.resolve_name(f"vibevoice_finetune.commands.{FLAGS_OF[command]}")
        parse_flags(kind, command, rest, "", takes_config=command == "prepare")
    else:
        assert command in {"train", "encode"}, f"say how {command} is parsed"
        parse(rest, command)


PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str) -> None:
    found = commands_in((ROOT / page).read_text(encoding="utf-8"))
    assert {words[0] for words in found} <= {command.name for command in COMMANDS}
    for words in found:
        parse_any(words)


def test_the_readme_shows_the_whole_way() -> None:
    shown = [words[0] for words in commands_in(README)]
    assert shown == ["tune", "generate", "prepare", "validate", "train", "evaluate", "merge"]


def test_a_wrong_command_would_be_seen() -> None:
    (words,) = commands_in("```\nvibevoice-finetune merge --adapter a \\\n  --no_such_flag b\n```\n")
    assert words == ["merge", "--adapter", "a", "--no_such_flag", "b"]
    with pytest.raises(UserError):
        parse_any(words)


def test_the_readmes_python_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    samples = names["samples"]
    assert names["result"].speeches[0].ended
    assert samples.dtype == np.float32
    assert 24_000 < len(samples) < 5 * 24_000  # eight words
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() > 0.05
