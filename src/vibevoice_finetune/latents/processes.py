"""Several processes on one job, each with its part, all ending the same way.

A part is an iterator of steps. `Together.run` drives it and lets the processes meet every half minute: they tell each
other how far they are, which segments failed, and whether one has met an error, so that every process raises it and
none waits for ever, and no collective call waits long enough to run into its time limit.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from vibevoice_finetune.audio.source import AudioError
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents.progress import FillProgress

MEET_EVERY_SEC = 30.0


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Ranks:
    """This process among those that work together.

    Attributes:
        rank: 0 … world_size - 1; rank 0 shows the progress.
        world_size: how many processes there are.
        gather: takes a picklable value, waits for all, and returns everybody's in the order of ranks;
            `torch.distributed.all_gather_object` does it.
    """

    rank: int = 0
    world_size: int = 1
    gather: Callable[[Any], list[Any]] = _alone


@dataclass(frozen=True)
class Failed:
    """Segments, by number in the request, that cannot be encoded, and why."""

    numbers: tuple[int, ...]
    error: AudioError


@dataclass(frozen=True)
class Step:
    """What a piece of work has come to, or many pieces together.

    Attributes:
        done: pieces, in the unit of the phase.
        encoded: segments encoded.
        damaged: damaged entries found.
        audio_sec: audio encoded.
        failures: what could not be done.
    """

    done: int
    encoded: int = 0
    damaged: int = 0
    audio_sec: float = 0.0
    failures: tuple[Failed, ...] = ()

    def __add__(self, other: "Step") -> "Step":
        return Step(
            self.done + other.done,
            self.encoded + other.encoded,
            self.damaged + other.damaged,
            self.audio_sec + other.audio_sec,
            self.failures + other.failures,
        )


@dataclass(frozen=True)
class _Message:
    """What a process says when all meet: the steps since the last time, whether it is through, and its error."""

    news: Step
    finished: bool
    error: UserError | None


class Together:
    """Runs phases in step with the other processes and collects all failures.

    Attributes:
        ranks: who works together.
        failures: by number of the segment, of all processes.
    """

    def __init__(self, ranks: Ranks, on_failure: Callable[[DataError, str], None], progress: FillProgress) -> None:
        self.ranks = ranks
        self.failures: dict[int, AudioError] = {}
        self._on_failure = on_failure
        self._progress = progress

    def run(self, label: str, total: int, steps: Generator[Step, None, None]) -> Step:
        """Do this process's steps; return when all processes are through, with the sum over all of them.

        Raises:
            UserError: one of the processes met it, or `on_failure` raised it. Other exceptions pass in their own
                process only.
        """
        self._progress.start(label, total)
        everybody = Step(0)
        try:
            while True:
                message = self._work(steps, everybody)
                messages: list[_Message] = self.ranks.gather(message)
                errors = [other.error for other in messages if other.error is not None]
                if errors:
                    raise message.error or errors[0]
                for other in messages:
                    self._report(other.news.failures)
                    everybody += other.news
                self._progress.update(everybody.done, everybody.audio_sec)
                if all(other.finished for other in messages):
                    return everybody
        finally:
            steps.close()

    def _work(self, steps: Generator[Step, None, None], before: Step) -> _Message:
        """Steps until it is time to meet; a process on its own meets itself after each."""
        meet_at_sec = time.monotonic() + (MEET_EVERY_SEC if self.ranks.world_size > 1 else 0.0)
        news = Step(0)
        try:
            for step in steps:
                news += step
                self._progress.update(before.done + news.done, before.audio_sec + news.audio_sec)
                if time.monotonic() >= meet_at_sec:
                    return _Message(news, finished=False, error=None)
        except UserError as error:
            return _Message(news, finished=True, error=error)
        return _Message(news, finished=True, error=None)

    def _report(self, failures: tuple[Failed, ...]) -> None:
        for failed in failures:
            self.failures.update(dict.fromkeys(failed.numbers, failed.error))
            self._on_failure(failed.error, failed.error.reason)
