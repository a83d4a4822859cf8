"""From sums to what is logged (the three losses divided and weighted, control accuracy, speed), and what that decides.

Shapes: everything is 0-d.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TrainerControl, TrainerState

from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.data.collate import Counts
from vibevoice_finetune.objective.objective import LossSums

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """Factors of the three losses in the total."""

    diffusion: float
    text: float
    control: float

    @classmethod
    def of(cls, args: FinetuneArguments) -> "LossWeights":
        """The factors that the flags say; `--control_loss_weight` is a factor on `--ce_loss_weight`."""
        return cls(args.diffusion_loss_weight, args.ce_loss_weight, args.ce_loss_weight * args.control_loss_weight)


@dataclass(frozen=True)
class Terms:
    """The three losses of a step, divided by their counts but not weighted; 0-d float32."""

    diffusion: Tensor
    text: Tensor
    control: Tensor

    @classmethod
    def of(cls, sums: LossSums, counts: Counts, factor: float = 1.0) -> "Terms":
        """Divide sums by counts; a loss without any term is zero."""
        return cls(
            sums["diffusion"] * (factor / max(counts.diffusion, 1)),
            sums["text"] * (factor / max(counts.text, 1)),
            sums["control"] * (factor / max(counts.control, 1)),
        )

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum, what is minimised."""
        return weights.diffusion * self.diffusion + weights.text * self.text + weights.control * self.control


class Window:
    """Sums over the good optimizer steps since the last log, on the device, so that no micro-batch waits for the host.

    Args:
        device: where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(6, device=device)
        self.pending = torch.zeros(6, device=device)
        self.steps = 0
        self.skipped = 0
        self.frames = 0
        self.tokens = 0
        self.decisions = 0
        self.started = time.perf_counter()

    def add(self, terms: Terms, sums: LossSums) -> None:
        """Add a micro-batch to the step that is under way."""
        parts = [terms.diffusion, terms.text, terms.control, sums["go_right"], sums["stop_right"], sums["go_total"]]
        self.pending = self.pending + torch.stack([part.detach().float() for part in parts])

    def end_step(self, counts: Counts, *, good: bool) -> None:
        """Take the step in, or forget what it had if its numbers were not finite.

        Args:
            counts: of the whole step, over all processes.
            good: whether the step counts.
        """
        if good:
            self.sums = self.sums + self.pending
            self.steps += 1
            self.decisions += counts.control
        else:
            self.skipped += 1
        self.pending = torch.zeros_like(self.pending)
        self.frames += counts.frames
        self.tokens += counts.tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within the context, as that of an evaluation."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    def logs(self, reduce_over_processes: Callable[..., Tensor] | None) -> dict[str, float]:
        """The averages since the window was opened."""
        numbers = self.sums
        if reduce_over_processes is not None:
            numbers = reduce_over_processes(numbers, reduction="sum")
            numbers[:3] /= torch.distributed.get_world_size()
        diffusion, text, control, go_right, stop_right, go_total = numbers.tolist()
        seconds = time.perf_counter() - self.started
        logs = {
            "diffusion_loss": diffusion / max(self.steps, 1),
            "text_loss": text / max(self.steps, 1),
            "control_loss": control / max(self.steps, 1),
            **control_accuracy(go_right, go_total, stop_right, self.decisions - go_total),
            "frames_per_second": self.frames / seconds,
            "tokens_per_second": self.tokens / seconds,
        }
        return {**logs, "skipped_steps": float(self.skipped)} if self.skipped else logs


def control_accuracy(go_right: float, go_total: float, stop_right: float, stop_total: float) -> dict[str, float]:
    """Share of frames at which greedy decoding would go on, and of ends at which it would stop."""
    return {
        "control_go_accuracy": go_right / max(go_total, 1.0),
        "control_stop_accuracy": stop_right / max(stop_total, 1.0),
    }


def evaluation_metrics(sums: LossSums, counts: Counts, weights: LossWeights) -> dict[str, float]:
    """What an evaluation reports, of the sums over all rows; each term weighs the same."""
    terms = Terms.of(sums, counts)
    right = [sums[name].item() for name in ("go_right", "go_total", "stop_right", "stop_total")]
    return {
        "loss": terms.total(weights).item(),
        **{f"{name}_loss": value.item() for name, value in vars(terms).items()},
        **control_accuracy(*right),
    }


def note_figure(args: FinetuneArguments, state: TrainerState, control: TrainerControl, value: float) -> bool:
    """Compare the figure that decides, which was logged just now, with those before; the base model's does not count.

    Asks for a run checkpoint where it is the best so far, and for the end of the run where it has been no better for
    too long.

    Args:
        args: the loop's flags; a figure decides.
        state: of the loop, with all logs.
        control: of the loop.
        value: of the figure.

    Returns:
        Whether it is the best so far.
    """
    steering = args.steering
    assert steering is not None
    if state.global_step == 0:
        return False
    is_best = steering.is_better(value, state.best_metric)
    if is_best:
        state.best_metric, state.best_global_step = value, state.global_step
        control.should_save = control.should_save or args.saves_best
    if steering.is_over([log[steering.figure] for log in state.log_history if steering.figure in log and log["step"]]):
        logger.warning(
            "the run stops early, after step %d: %s is that of step %s, and the %s after it were no better",
            *(state.global_step, steering, state.best_global_step, steering.patience),
        )
        control.should_training_stop = True
    return is_best


def step_of_result(args: FinetuneArguments, state: TrainerState) -> int:
    """The step whose weights a run ends with: the best one's if they were put back, else the last."""
    is_best = args.load_best_model_at_end and state.best_model_checkpoint is not None
    return int(state.best_global_step or 0) if is_best else state.global_step
