"""What fits: the peak memory of a training, what makes it up, and which flags to change where it is too much.

Why: a run that does not fit should say so before it downloads 18 GB, and one that broke off should say what would help.
In: a parsed command line and, if they are known, its rows. Out: an `Estimate`, which prints as a line for the start-up
report and as advice.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.data.sampler import RowBatches, TokenBatches
from vibevoice_finetune.training.footprint import (
    FLOAT32,
    MicroBatch,
    ModelSize,
    Recipe,
    backward_bytes,
    encoding_bytes,
    head_bytes,
    language_model_bytes,
    logits_bytes,
    measure,
    optimizer_bytes,
    trained_numbers,
    weight_bytes,
)
from vibevoice_finetune.training.preparation import Prepared

CARDS_GIB = (8, 12, 16, 24, 48, 80)
"""Memory of common GPUs."""

RUNTIME_BYTES = {"cuda": 0.6e9, "cpu": 0.5e9}
"""What is in use before the first tensor: the CUDA context with its kernels; Python with its libraries."""

USABLE = 0.95
"""Share of a card that can be filled before its allocator finds no piece that is large enough."""

MAX_ROWS_LOOKED_AT = 1_000_000
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One line of the account."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """The peak memory of a training and what it is made of.

    Attributes:
        size: of the model.
        recipe: how it is trained.
        batch: the micro-batch that needs the most.
        parts: what is in memory at the peak.
        encoding: bytes while audio is encoded, before the model is loaded; zero if nothing is.
    """

    size: ModelSize
    recipe: Recipe
    batch: MicroBatch
    parts: tuple[Part, ...]
    encoding: float

    @property
    def training(self) -> float:
        """Bytes at the peak of training."""
        return sum(part.bytes for part in self.parts)

    @property
    def total_bytes(self) -> float:
        """Bytes at the peak of the whole run."""
        return max(self.training, self.encoding)

    def fits(self, card_gib: float) -> bool:
        """Whether a GPU of this size suffices."""
        return self.total_bytes <= USABLE * card_gib * GIB

    def line(self) -> str:
        """For the start-up report."""
        parts = ", ".join(f"{part.name} {part.bytes / 1e9:.1f}" for part in self.parts if part.bytes >= 5e7)
        return f"about {self.total_bytes / 1e9:.1f} GB at the peak ({parts}; {describe(self.batch)})"

    def advice(self) -> list[str]:
        """Flags that lower the peak, the one with the largest effect first, each with what it would leave."""
        found = [(change, change.apply(self)) for change in CHANGES]
        helping = [(change, then) for change, then in found if then is not None and self.saves(then)]
        helping.sort(key=lambda pair: pair[1].total_bytes)
        return [
            f"{change.flags(then)}: about {then.total_bytes / 1e9:.1f} GB instead of {self.total_bytes / 1e9:.1f}"
            for change, then in helping
        ]

    def saves(self, other: "Estimate") -> bool:
        """Whether the other needs noticeably less, a hundredth or more."""
        return other.total_bytes < 0.99 * self.total_bytes


@dataclass(frozen=True)
class Change:
    """A change of flags that lowers memory.

    Attributes:
        flags: how the user writes it, given the estimate after it.
        apply: the estimate after it, or None where it does not apply.
    """

    flags: Callable[[Estimate], str]
    apply: Callable[[Estimate], Estimate | None]
