"""How far the filling of the latent store is, on standard error: a bar in a terminal, else a line every ten seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_SEC = 10.0


class FillProgress:
    """One phase after the other, each with its total; silent in all processes but the first.

    The pace is counted in seconds of audio a second, the time left in the phase's own units (lengths of audio are not
    known before it is decoded).
    """

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._label = ""
        self._total = 0
        self._started_sec = self._last_line_sec = time.monotonic()
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if shown and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )

    def __enter__(self) -> "FillProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, label: str, total: int) -> None:
        """Begin a phase: what is done, and how many pieces of it there are."""
        self._label, self._total = label, total
        self._started_sec = self._last_line_sec = time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(label, total=total, pace="")

    def update(self, done: int, audio_sec: float = 0.0) -> None:
        """Say how many pieces are done and how much audio has been encoded."""
        now_sec = time.monotonic()
        passed_sec = now_sec - self._started_sec
        pace = f"{audio_sec / passed_sec:,.1f} s of audio a second" if audio_sec and passed_sec else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, pace=pace)
        elif self._shown and now_sec - self._last_line_sec >= LINE_EVERY_SEC:
            self._last_line_sec = now_sec
            left = f"about {_duration(passed_sec * (self._total - done) / done)} left" if done else ""
            parts = [f"{self._label}: {done:,} of {self._total:,}", pace, left]
            sys.stderr.write(", ".join(part for part in parts if part) + "\n")
            sys.stderr.flush()


def _duration(seconds: float) -> str:
    """A time left as a person says it.

    >>> _duration(42), _duration(300), _duration(8_000)
    ('42 s', '5 min', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
