"""`Objective` with a clock: how long each part of a step takes, forward and backward together."""

import time
from typing import cast

import torch
from torch import Tensor, nn

from vibevoice_finetune.data.collate import Batch
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.objective.objective import LossSums, Objective


class TimedObjective(Objective):
    """The objective, with a mark on the device's own clock where a part ends, forward and backward.

    In the backward pass a mark is set when the gradient of a part's input or output arrives: losses come first, then
    the diffusion head, then the language model, because autograd runs backwards through what ran forward.
    """

    def __init__(self, model: nn.Module, special: SpecialTokens) -> None:
        super().__init__(model, special)
        self.clock = Clock(next(model.parameters()).device)

    def hidden_states(self, embeddings_BTD: Tensor, batch: Batch) -> Tensor:
        """As the base class."""
        self.clock.mark("embeddings")
        hidden_TD = super().hidden_states(embeddings_BTD, batch)
        self.clock.mark("language model")
        self._mark_gradient(hidden_TD, "losses")
        return hidden_TD

    def diffusion_sum(self, condition_FD: Tensor, clean_FC: Tensor, batch: Batch) -> Tensor:
        """As the base class."""
        self.clock.mark("losses")
        total = super().diffusion_sum(condition_FD, clean_FC, batch)
        self.clock.mark("head")
        self._mark_gradient(total, "losses")
        self._mark_gradient(condition_FD, "head")
        return total

    def forward(self, batch: Batch) -> LossSums:
        """As the base class."""
        sums = super().forward(batch)
        self.clock.mark("losses")
        return sums

    def _mark_gradient(self, tensor: Tensor, part: str) -> None:
        if tensor.requires_grad:
            tensor.register_hook(lambda _: self.clock.mark(part))


class Clock:
    """Times between marks, by the name of the later one; device events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, torch.cuda.Event | float]] = []

    def start(self) -> None:
        """The time until the next mark begins here."""
        self.mark("")

    def mark(self, part: str) -> None:
        """A part ends here."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append((part, event))
        else:
            self.marks.append((part, time.perf_counter()))

    def forget(self) -> None:
        """Drop all marks."""
        self.marks = []

    def seconds(self) -> dict[str, float]:
        """Seconds by part, summed; waits for the device."""
        if self.on_gpu:
            torch.cuda.synchronize()
        totals: dict[str, float] = {}
        for (_, before), (part, after) in zip(self.marks, self.marks[1:], strict=False):
            if part:
                if isinstance(before, float) or isinstance(after, float):
                    passed = cast(float, after) - cast(float, before)
                else:
                    passed = before.elapsed_time(after) / 1000
                totals[part] = totals.get(part, 0.0) + passed
        return totals
