"""One line for each stage: a bar while it works, a sentence when it is done."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SEC = 60.0
"""Where standard error is not a terminal, how often a line says how far a stage is."""

Reading = Callable[[], tuple[int, int | None]]
"""Pieces done, and in all if that is known."""


class StageLine:
    """Shows stages on standard error.

    Args:
        say: told each sentence.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say

    @contextmanager
    def of(self, name: str, reading: Reading) -> Iterator[Callable[[], None]]:
        """Show a stage while it works; yields what is to be called now and then."""
        if not sys.stderr.isatty():
            yield _lines(name, reading)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=None, count="")

            def tell() -> None:
                done, total = reading()
                count = f"{done:,} of {total:,}" if total else f"{done:,}" if done else ""
                bar.update(task, completed=done, total=total, count=count)

            yield tell


def _lines(name: str, reading: Reading) -> Callable[[], None]:
    began = last = time.monotonic()

    def tell() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_SEC:
            last = now
            done, total = reading()
            left = f", about {(now - began) * (total - done) / done / 60:.0f} min left" if total and done else ""
            sys.stderr.write(f"{name}: {done:,}{f' of {total:,}' if total else ''}{left}\n")
            sys.stderr.flush()

    return tell


_STEPS_LINE = re.compile(rb"^steps ([\d,]+) \(", re.MULTILINE)
"""Of the start-up report of `train`."""


def training_progress(metrics: Path, log: Path) -> tuple[int, int | None]:
    """Steps done, and steps in all if the run has said so.

    Args:
        metrics: `metrics.jsonl` of the run.
        log: what `train` said.
    """
    said = _STEPS_LINE.findall(log.read_bytes()) if log.is_file() else []
    return int(last_row(metrics).get("step", 0)), int(said[-1].replace(b",", b"")) if said else None


def last_row(metrics: Path) -> dict[str, Any]:
    """The last whole line of a log of figures."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - 20_000))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}
