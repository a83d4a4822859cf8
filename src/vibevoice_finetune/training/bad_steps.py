"""Watches every optimizer step for numbers gone bad and for sudden jumps of the loss.

A step whose loss or gradient is not finite is skipped and its rows are named; after a few in a row the run stops. A
loss far above the running average is written to `spikes.jsonl` with its rows. Numbers are looked at on the host once
per optimizer step, not once per micro-batch.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import append_line
from vibevoice_finetune.objective.sharding import own_part
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints, step_of

SPIKES_FILE = "spikes.jsonl"
SPIKE_FACTOR = 6.0
"""Standard deviations above the running average that make a spike; by chance, one step in hundreds of millions."""
SPIKE_MEMORY = 0.99
SPIKE_WARM_UP = 50


@dataclass
class RowLosses:
    """What is kept of a micro-batch until its optimizer step is known to be good."""

    rows: list[str]
    losses: Mapping[str, Tensor]


@dataclass
class BadSteps:
    """What was seen of the steps so far.

    Attributes:
        folder: the run's output folder.
        max_bad_steps: skipped steps in a row after which the run stops.
        micro_batches: those of the current optimizer step, in this process.
        bad_in_a_row: skipped steps since the last good one.
        average: running average of the loss.
        variance: running average of its squared distance from the average.
        num_good: good steps seen.
        good_until: optimizer steps before the last good one, so the newest step whose weights gave finite numbers.
    """

    folder: Path
    max_bad_steps: int
    micro_batches: list[RowLosses] = field(default_factory=list)
    bad_in_a_row: int = 0
    average: float = 0.0
    variance: float = 0.0
    num_good: int = 0
    good_until: int = 0

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
                f"{line}. {self.bad_in_a_row} steps in a row were not finite, so the run stops. {self.way_out()}"
            )
        return line

    def check_weights(self, step: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """Refuse to keep weights that are not finite.

        Args:
            step: optimizer steps so far.
            parameters: the trained ones by name.

        Raises:
            UserError: names the tensors, and the run checkpoint to go on from.
        """
        bad = [name for name, value in parameters.items() if not torch.isfinite(own_part(value.detach())).all()]
        if bad:
            shown = ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
            raise UserError(
                f"after step {step} the weights of {shown} are not finite, so they are not saved "
                f"and the run stops. {self.way_out()}"
            )

    def way_out(self) -> str:
        """From which run checkpoint to go on, and how: later ones hold the weights whose numbers were not finite."""
        found = [(step_of(folder) or 0, folder) for folder in complete_checkpoints(self.folder)]
        good = [folder for step, folder in found if step <= self.good_until]
        change = "lower --learning_rate, use --gradient_clipping or look at the rows"
        if good:
            return (
                f"The newest run checkpoint whose weights gave finite numbers is {good[-1].name}: {change}, then go on "
                f"with --allow_changed_run True --resume_from_checkpoint {good[-1]}."
            )
        return f"No run checkpoint has weights that gave finite numbers: {change}, then start again in another folder."

    def accept(self, step: int, loss: float) -> None:
        """Take note of a good step; one far above the average is written to `spikes.jsonl`."""
        self.bad_in_a_row = 0
        self.good_until = step
        deviation = math.sqrt(self.variance)
        if self.num_good >= SPIKE_WARM_UP and loss > self.average + SPIKE_FACTOR * deviation:
            rows = [row for micro_batch in self.micro_batches for row in micro_batch.rows]
            spike = {"step": step + 1, "loss": loss, "average": self.average, "deviation": deviation, "rows": rows}
            append_line(self.folder / SPIKES_FILE, json.dumps(spike))
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
        names = ("bad_in_a_row", "average", "variance", "num_good", "good_until")
        return {name: vars(self)[name] for name in names}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        """Take over what `state_dict` gave."""
        vars(self).update(state)
