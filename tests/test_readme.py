"""What the README and the table of flags say is what the program has: commands, Python, flags and their defaults."""

import ast
import pkgutil
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from tests.flag_tables import in_order, page_with_tables, row
from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.commands.parser import parse, parse_flags
from vibevoice_finetune.commands.table import COMMANDS
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.flags.declare import flag
from vibevoice_finetune.generation.generate import GenerationRequest, generate

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


@pytest.mark.parametrize("page", ["README.md", "docs/data.md", "docs/evaluate.md", "docs/scale.md"])
def test_every_command_parses(page: str) -> None:
    found = commands_in((ROOT / page).read_text(encoding="utf-8"))
    assert {words[0] for words in found} <= {command.name for command in COMMANDS}
    for words in found:
        parse_any(words)


def test_the_readme_shows_the_whole_way() -> None:
    shown = [words[0] for words in commands_in(README)]
    assert shown == ["prepare", "validate", "train", "inspect", "generate", "evaluate", "merge", "convert", "inspect"]


def test_a_wrong_command_would_be_seen() -> None:
    (words,) = commands_in("```\nvibevoice-finetune merge --adapter a \\\n  --no_such_flag b\n```\n")
    assert words == ["merge", "--adapter", "a", "--no_such_flag", "b"]
    with pytest.raises(UserError):
        parse_any(words)


def test_the_readmes_python_runs_up_to_the_model() -> None:
    """Its names exist where it imports them from, and the request can be made; a model would be a download."""
    (code,) = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    tree = ast.parse(code)
    tree.body.pop()  # what is done with the result
    call = tree.body.pop()
    assert isinstance(call, ast.Assign)
    assert isinstance(call.value, ast.Call)
    call.value = call.value.args[0]
    names: dict[str, object] = {}
    exec(compile(ast.Module([*tree.body, call], []), "README.md", "exec"), names)
    request = names["result"]
    assert isinstance(request, GenerationRequest)
    assert [turn.text for turn in request.scripts[0].turns] == ["Hello."]
    assert names["generate"] is generate
