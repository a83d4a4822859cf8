"""Command lines of strangers: all flags of all commands, hostile values and combinations; the program answers each.

A case is good if the program ends with 0 or with 2, and then has said one line that begins with ``error: ``.
"""

import io
import random
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from vibevoice_finetune.arguments import DataArguments, FinetuneArguments, ModelArguments
from vibevoice_finetune.commands.convert import ConvertFlags
from vibevoice_finetune.commands.demo import DemoFlags
from vibevoice_finetune.commands.estimate import EstimateFlags
from vibevoice_finetune.commands.generate import GenerateFlags
from vibevoice_finetune.commands.inspect import InspectFlags
from vibevoice_finetune.commands.merge import MergeFlags
from vibevoice_finetune.commands.prepare import PrepareFlags
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.commands.validate import ValidateFlags
from vibevoice_finetune.flags.names import GONE_FLAGS, OTHER_WORDS

LOOP = (ModelArguments, DataArguments, FinetuneArguments)
KINDS: dict[str, tuple[type, ...]] = {
    "train": LOOP,
    "encode": LOOP,
    "estimate": (EstimateFlags, *LOOP),
    "generate": (GenerateFlags,),
    "merge": (MergeFlags,),
    "convert": (ConvertFlags,),
    "inspect": (InspectFlags,),
    "demo": (DemoFlags,),
    "prepare": (PrepareFlags,),
    "validate": (ValidateFlags,),
}
ALWAYS_REQUIRED = ("demo", "prepare")
"""Commands that could begin to work for long if a stranger's word took the place of what they require."""

NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "0.5",
    "1e-3",
    "-1e-3",
    "2.5",
    "1e30",
    "1e999",
    "nan",
    "-inf",
    "9" * 400,
    "9" * 5000,
    "٣",
)
TEXTS = (
    "", " ", "True", "no", "none", "null", "{}", '{"a": 1}', '{"min_lr": NaN}', "[]", "[" * 3000, "a,b", "a b", "-",
    "--", "=", "a=b", "/", "..", "/dev/null", "/dev/zero", "/proc/self/mem", "../" * 2000, "x" * 300, "x" * 5000,
    "\udcff", "a\0b", "a\nb", "é中", "%s%(x)d%", "[bold]x[/bold]", "[/]", "\x1b[31mred", "wandb",
    "tensorboard,trackio", "momentum=0.9", "~", "hf://datasets/x", "file:///x", "me/my-voice", "full_shard", "-Hello",
)  # fmt: skip
MISSING = "there/is/no such model"


def command_line(rng: random.Random) -> list[str]:
    """A command with what it requires, most of the time, and one to six flags with values of any kind."""
    command = rng.choice([*KINDS, "train", "train", "train"])
    words = list(_required(command)) if command in ALWAYS_REQUIRED or rng.random() < 0.9 else []
    known = {
        f.name: (f, hint) for kind in KINDS[command] for f in fields(kind) for hint in [get_type_hints(kind)[f.name]]
    }
    for _ in range(rng.randint(1, 6)):
        name = rng.choice(list(known)) if rng.random() < 0.92 else rng.choice([*OTHER_WORDS, *GONE_FLAGS, "x", ""])
        if (command, name) in (("demo", "output_dir"), ("prepare", "source")):
            continue  # in an empty folder, the one would train; the other would look through the whole disk
        if rng.random() < 0.1:
            name = name.replace("_", "-")
        choices = _choices(known[name][1]) if name in known else ()
        value = rng.choice(choices if choices and rng.random() < 0.5 else rng.choice((NUMBERS, TEXTS)))
        kind = rng.randrange(5)
        words += [f"--{name}={value}"] if kind == 0 else [f"--{name}"] if kind == 1 else [f"--{name}", value]
        if kind == 4:
            words.append(rng.choice(TEXTS))
    return [command, *words]


def answer(words: Sequence[str]) -> bool:
    """Run one command line; whether it was carried out rather than refused."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    assert code in (0, 2), (code, words)
    if code == 2:
        said = err.getvalue().splitlines()
        assert said, words
        assert said[-1].startswith("error: "), (said, words)
        assert len(said) == 1, (said, words)
        assert len(said[0]) < 2000, "a message of more than 2,000 characters"
    return code == 0


def occupy(folder: Path) -> None:
    """What the command lines refer to; to be called in the folder that they run in."""
    (folder / "occupied").mkdir()
    (folder / "occupied" / "file").write_text("in the way", encoding="utf-8")


def _required(command: str) -> Sequence[str]:
    model = ("--model_name_or_path", MISSING)
    if command in ("train", "encode"):
        return (*model, "--train_jsonl", "rows.jsonl", "--output_dir", "out", "--do_train", "--report_to", "none")
    if command == "demo":
        return ("--output_dir", "occupied")
    return {
        "estimate": ("--model_name_or_path", "microsoft/VibeVoice-1.5B"),  # known without a download
        "generate": (*model, "--text", "Hello.", "--output", "out.wav"),
        "merge": (*model, "--adapter", "no/adapter", "--output", "merged"),
        "convert": (*model, "--output", "converted", "--layout", "native"),
        "inspect": (MISSING,),
        "prepare": (MISSING, "--output", "prepared"),
        "validate": ("rows.jsonl",),
    }[command]


def _choices(hint: object) -> tuple[str, ...]:
    kinds = [hint, *get_args(hint)]
    return tuple(str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
