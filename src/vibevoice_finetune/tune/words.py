"""The command lines of the stages, as `tune` and the page start them.

PROJECT/data  PROJECT/run  PROJECT/latents  PROJECT/run/evaluation
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vibevoice_finetune.flags.machine import is_installed
from vibevoice_finetune.preparation.run import TRAIN_FILE, VALIDATION_FILE

DATA, LATENTS, EVALUATION = "data", "latents", "evaluation"
HELD_OUT_SEC = 90.0
"""Wanted for validation: some ten clips."""

DATA_REPORT = "data/report.html"


def prepare_words(recordings: Path, project: Path, flags: dict[str, Any]) -> list[str]:
    """`prepare` into the project's data."""
    return ["prepare", str(recordings), "--output", str(project / DATA), *words_of(flags)]


def validate_words(project: Path) -> list[str]:
    """`validate` on the project's data, with a page if that can be made."""
    data = project / DATA
    page = ["--report", str(project / DATA_REPORT)] if is_installed("jinja2") else []
    return ["validate", str(data / TRAIN_FILE), *_held_out(data), "--deep", "True", *page]


def train_words(project: Path, run: Path, model: str, values: Mapping[str, Any]) -> list[str]:
    """`train` on the project's data into a folder; goes on where that one was stopped."""
    data = project / DATA
    again = ["--resume_from_checkpoint", "True"] if run.is_dir() else []
    return [
        *("train", "--model_name_or_path", model, *words_of(values)),
        *("--train_jsonl", str(data / TRAIN_FILE), *_held_out(data)),
        *("--output_dir", str(run), "--latents_dir", str(project / LATENTS), *again),
    ]


def evaluate_words(project: Path, run: Path, model: str, adapters: Sequence[Path], flags: dict[str, Any]) -> list[str]:
    """`evaluate` the adapters of a run on what was held out."""
    return [
        *("evaluate", "--model_name_or_path", model, "--adapter", *map(str, adapters)),
        *("--eval_jsonl", str(project / DATA / VALIDATION_FILE), "--output", str(run / EVALUATION), *words_of(flags)),
    ]


def validation_share(seconds: float) -> float:
    """What `prepare` holds out: a twentieth of much audio, more of little, so that there is something to judge by.

    Args:
        seconds: of audio; 0 if that is not known.

    >>> validation_share(3600), validation_share(900), validation_share(60)
    (0.05, 0.1, 0.2)
    """
    return round(min(0.2, max(0.05, HELD_OUT_SEC / seconds)), 3) if seconds else 0.1


def _held_out(data: Path) -> list[str]:
    rows = data / VALIDATION_FILE
    return ["--validation_jsonl", str(rows)] if rows.is_file() and rows.stat().st_size else []


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line.

    >>> words_of({"do_train": True, "learning_rate": 2.5e-5})
    ['--do_train', 'True', '--learning_rate', '2.5e-05']
    """
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]
