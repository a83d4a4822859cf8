"""Two savings and a rotation, and one over an existing folder, killed at a chosen change of a file."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.crash.child import ChangeCounter
from vibevoice_finetune.training.run_checkpoints import rotate, writing

CONTENT = {"a": "new", "b": "new too", "c": "and this"}
OLD = {name: "old " + text for name, text in CONTENT.items()}


def save_twice_and_die_at(folder: Path, moment: int | None) -> int:
    """Save step 1 undisturbed; then 2, rotate, 3, rotate, and 3 again. The number of changes of files."""
    _save(folder / "checkpoint-1", OLD)
    counter = ChangeCounter(folder, None)
    armed = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if armed[0]:
            counter(event, arguments)

    counter.kill_at = moment
    sys.addaudithook(hook)
    _save(folder / "checkpoint-2", CONTENT)
    rotate(folder, 1, None)
    _save(folder / "checkpoint-3", OLD)
    rotate(folder, 1, None)
    _save(folder / "checkpoint-3", CONTENT)
    armed[0] = False
    if moment is not None:
        os.kill(os.getpid(), signal.SIGTERM)  # never reached: the moment comes before
    return counter.count


def _save(folder: Path, content: dict[str, str]) -> None:
    with writing(folder) as staging:
        for name, text in content.items():
            (staging / name).write_text(text, encoding="utf-8")
