"""The README's tables of flags say what the program has: no flag missing, none invented, every default right."""

import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

from transformers import TrainingArguments

from vibevoice_finetune.arguments import DataArguments, FinetuneArguments, ModelArguments
from vibevoice_finetune.commands.parser import parse

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

LISTED_ANYWAY = {"max_grad_norm"}
"""A flag of transformers that the table explains, because it does nothing without one of ours."""


def defaults() -> dict[str, str]:
    """Our own flags with their defaults, as the README writes them."""
    inherited = {field.name for field in fields(TrainingArguments)} - LISTED_ANYWAY
    found = {}
    for group in (ModelArguments, DataArguments, FinetuneArguments):
        for field in fields(group):
            if group is not FinetuneArguments or field.name not in inherited:
                value = "required" if field.default is MISSING else field.default
                found[field.name] = "none" if value is None else str(value)
    return found


def test_the_tables_list_every_flag_with_its_default() -> None:
    rows = re.findall(r"^\| `--(\w+)` \| ([^|]+) \| [^|]+ \|$", README, flags=re.MULTILINE)
    assert len(dict(rows)) == len(rows), "a flag is listed twice"
    assert dict(rows) == defaults()


def test_defaults_that_differ_from_transformers_are_named() -> None:
    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    overridden = {f.name for f in fields(FinetuneArguments) if f.name in theirs and f.default != theirs[f.name]}
    text = re.search(r"Defaults that differ from transformers'.*?\n\n", README, flags=re.DOTALL)
    assert text is not None
    assert overridden <= set(re.findall(r"--(\w+)", text.group()))


def test_the_training_command_parses() -> None:
    command = re.search(r"^\.venv/bin/vibevoice-finetune train (.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    assert command is not None
    arguments = parse(shlex.split(command[1].replace("\\\n", " ")))
    assert arguments.loop.do_train
    assert arguments.model.train_diffusion_head
