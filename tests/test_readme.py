"""What the README and the table of flags say is what the program has: commands, Python, flags and their defaults."""

import ast
import pkgutil
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

from vibevoice_finetune.arguments import DataArguments, FinetuneArguments, ModelArguments
from vibevoice_finetune.commands.parser import parse, parse_flags
from vibevoice_finetune.commands.table import COMMANDS
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.generation.generate import GenerationRequest, generate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")

LISTED_ANYWAY = {"max_grad_norm"}
"""A flag of transformers that the table explains, because it does nothing without one of ours."""


def defaults() -> dict[str, str]:
    """Our own flags with their defaults, as the table writes them."""
    inherited = {field.name for field in fields(TrainingArguments)} - LISTED_ANYWAY
    found = {}
    for group in (ModelArguments, DataArguments, FinetuneArguments):
        for field in fields(group):
            if group is not FinetuneArguments or field.name not in inherited:
                value = "required" if field.default is MISSING else field.default
                found[field.name] = "none" if value is None else str(value)
    return found


def test_the_tables_list_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| `--(\w+)` \| ([^|]+) \| [^|]+ \|$", FLAGS, flags=re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a flag is listed twice"
    assert dict(rows) == defaults()


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
