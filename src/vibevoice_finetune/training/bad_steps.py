"""Watches every optimizer step: numbers gone bad, sudden jumps of the loss, and signals that ask to stop.

A step whose loss or gradient is not finite is skipped and its rows are named; after a few in a row the run stops. A
loss far above the running average is written to `spikes.jsonl` with its rows. SIGTERM and SIGINT let the step finish;
the trainer then saves and ends. All this looks at numbers on the host once an optimizer step, not once a micro-batch.
"""

import json
import math
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from types import FrameType

from torch import Tensor, nn

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.objective.sharding import own_part

SPIKES_FILE = "spikes.jsonl"
SPIKE_FACTOR = 6.0
"""Standard deviations above the running average that make a spike; by chance, one step in hundreds of millions."""
SPIKE_MEMORY = 0.99
SPIKE_WARM_UP = 50


@dataclass
class MicroBatch:
    """What is kept of a micro-batch until its optimizer step is known to be good."""

    rows: list[str]
    losses: Mapping[str, Tensor]


@dataclass
class Guard:
    """The state of the watch.

    Attributes:
        folder: the run's output folder.
        max_bad_steps: skipped steps in a row after which the run stops.
        micro_batches: those of the current optimizer step, in this process.
        bad_in_a_row: skipped steps since the last good one.
        average: running average of the loss.
        variance: running average of its squared distance from the average.
        num_good: good steps seen.
    """

    folder: Path
    max_bad_steps: int
    micro_batches: list[MicroBatch] = field(default_factory=list)
    bad_in_a_row: int = 0
    average: float = 0.0
    variance: float = 0.0
    num_good: int = 0

    def skip(self, step: int, parameters: Mapping[str, nn.Parameter]) -> str:
        """Take note of a step whose gradient is not finite, and drop the gradients so that nothing moves.

        Args:
            step: optimizer steps before it.
            parameters: the trained ones by name.

        Returns:
            One line naming the parts and the rows.

        Raises:
            UserError: too many such steps in a row.
        """
        held = {name: parameter.grad for name, parameter in parameters.items()}
        gradients = {name: own_part(gradient) for name, gradient in held.items() if gradient is not None}
        line = f"step {step + 1} is skipped: {self._blame(gradients)}"
        for parameter in parameters.values():
            parameter.grad = None
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= self.max_bad_steps:
            raise UserError(
                f"{line}. {self.bad_in_a_row} steps in a row were not finite, so the run stops; its checkpoints are "
                "good. Lower --learning_rate, use --gradient_clipping or look at the rows; then go on with "
                "--resume_from_checkpoint True."
            )
        return line

    def accept(self, step: int, loss: float) -> None:
        """Take note of a good step; one far above the average is written to `spikes.jsonl`."""
        self.bad_in_a_row = 0
        deviation = math.sqrt(self.variance)
        if self.num_good >= SPIKE_WARM_UP and loss > self.average + SPIKE_FACTOR * deviation:
            rows = [row for micro_batch in self.micro_batches for row in micro_batch.rows]
            spike = {"step": step + 1, "loss": loss, "average": self.average, "deviation": deviation, "rows": rows}
            with (self.folder / SPIKES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(spike) + "\n")
        memory = min(SPIKE_MEMORY, self.num_good / (self.num_good + 1))
        distance = loss - self.average
        self.average += (1 - memory) * distance
        self.variance = memory * (self.variance + (1 - memory) * distance**2)
        self.num_good += 1

    def _blame(self, gradients: Mapping[str, Tensor]) -> str:
        """Which losses of which rows are not finite, or else which gradients."""
        guilty = []
        for micro_batch in self.micro_batches:
            parts = [name for name, value in micro_batch.losses.items() if not math.isfinite(value.item())]
            if parts:
                guilty.append(f"the {' and '.join(parts)} loss of {', '.join(micro_batch.rows)} is not finite")
        if guilty:
            return "; ".join(guilty)
        names = [name for name, gradient in gradients.items() if not math.isfinite(gradient.float().sum().item())]
        rows = ", ".join(row for micro_batch in self.micro_batches for row in micro_batch.rows)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"the losses are finite but the gradient of {shown or 'another process'} is not; rows: {rows}"

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint keeps, so that a resumed run sees the same spikes."""
        names = ("bad_in_a_row", "average", "variance", "num_good")
        return {name: vars(self)[name] for name in names}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update(state)


def heed_parent_alone(_worker: int) -> None:
    """Let a data-loader worker go on when SIGTERM or SIGINT comes, so that the step can be finished.

    Service managers, and a terminal's Ctrl-C, send them to every process of a group. Left to PyTorch, a worker would
    die of it and take the run with it. SIGTERM of its parent still ends it. For `DataLoader(worker_init_fn=…)`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    Thread(target=wait, daemon=True).start()


class StopRequest:
    """Whether SIGTERM or SIGINT has asked the run to stop after the current step."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the two signals; after the first one, a second one acts as it did before."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(number: int, _frame: FrameType | None) -> None:
            self.signal_name = signal.Signals(number).name
            restore()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
