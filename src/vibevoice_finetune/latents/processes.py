"""Several processes that fill the store together, each with its part, all ending the same way.

Each works through its part of a phase; then all exchange once what they did, what they could not do, and whether one
of them has met an error, so that every process raises the same. A process that fails also leaves a file in the folder
that all share: the others see it after their current batch, and do not work on for hours before they hear of it.
"""

import uuid
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import distributed

from vibevoice_finetune.audio.source import AudioError
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.files.atomic import WriteError, write_file
from vibevoice_finetune.latents.progress import FillProgress

EXCHANGE_WITHIN = timedelta(days=7)
"""How long a process may wait for the slowest. It only bounds a machine that vanished without a word from the network:
the connection of a process that was killed is closed by its system, which ends the others' waiting at once."""


def _alone(value: Any) -> list[Any]:
    return [value]


@dataclass(frozen=True)
class Processes:
    """This process among those that work together.

    Attributes:
        index: 0 … count - 1; the first one shows the progress.
        count: how many processes there are.
        gather: takes a picklable value, waits for all, and returns everybody's in the order of the processes.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = _alone


def started_together(index: int, count: int) -> Processes:
    """The processes of `torch.distributed`, which is initialised, with a time limit that fits hours of encoding."""
    group = distributed.new_group(backend="gloo", timeout=EXCHANGE_WITHIN)

    def gather(value: Any) -> list[Any]:
        everybody: list[Any] = [None] * count
        try:
            distributed.all_gather_object(everybody, value, group=group)
        except RuntimeError as error:  # gloo: the connection was closed
            raise UserError(
                "another of the processes that encode audio together has ended; its own output says why. What was "
                "encoded is kept: start the same command again."
            ) from error
        return everybody

    return Processes(index, count, gather)


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
        damaged: damaged entries found.
        audio_sec: audio encoded.
        failures: what could not be done.
        changed: numbers of segments whose audio file was replaced after it was hashed.
    """

    done: int = 0
    damaged: int = 0
    audio_sec: float = 0.0
    failures: tuple[Failed, ...] = ()
    changed: tuple[int, ...] = ()

    def __add__(self, other: "Step") -> "Step":
        return Step(
            self.done + other.done,
            self.damaged + other.damaged,
            self.audio_sec + other.audio_sec,
            self.failures + other.failures,
            self.changed + other.changed,
        )


class Together:
    """Runs phases with the other processes and collects all failures.

    Attributes:
        processes: who works together.
        failures: by number of the segment, of all processes.
    """

    def __init__(
        self,
        processes: Processes,
        on_failure: Callable[[DataError, str], None],
        progress: FillProgress,
        folder: Path,
    ) -> None:
        self.processes = processes
        self.failures: dict[int, AudioError] = {}
        self._on_failure = on_failure
        self._progress = progress
        self._stop = folder / f".stop-{processes.gather(uuid.uuid4().hex)[0]}"

    def run(self, label: str, total: int, steps: Generator[Step, None, None]) -> Step:
        """Do this process's steps; return when all processes are through, with the sum over all of them.

        Args:
            label: what is done, for the progress.
            total: this process's pieces.
            steps: the work.

        Raises:
            UserError: one of the processes met it, or `on_failure` raised it. Other exceptions pass in their own
                process only; the others end when its connection closes.
        """
        self._progress.start(label, total)
        own, error = self._work(steps)
        try:
            outcomes: list[tuple[Step, UserError | None]] = self.processes.gather((own, error))
        except UserError:
            if error is None:
                raise
            outcomes = [(own, error)]
        first = next((error for _, error in outcomes if error is not None), None)
        if first is not None:
            with suppress(OSError):
                self._stop.unlink(missing_ok=True)
            raise first
        for index, (step, _) in enumerate(outcomes):
            if index != self.processes.index:
                self.report(step.failures)
        return sum((step for step, _ in outcomes), Step())

    def report(self, failures: tuple[Failed, ...]) -> None:
        """Note failures, and tell of those that are new."""
        for failed in failures:
            known = self.failures.keys() & set(failed.numbers)
            self.failures.update(dict.fromkeys(failed.numbers, failed.error))
            if not known:
                self._on_failure(failed.error, failed.error.reason)

    def _work(self, steps: Generator[Step, None, None]) -> tuple[Step, UserError | None]:
        own = Step()
        try:
            for step in steps:
                own += step
                self._progress.update(own.done, own.audio_sec)
                self.report(step.failures)
                if self.processes.count > 1 and self._stop.exists():
                    break
        except UserError as error:
            if self.processes.count > 1:
                with suppress(WriteError):  # they hear of it when they are through
                    write_file(self._stop, str(error))
            return own, error
        finally:
            steps.close()
        return own, None
