"""Examples to a batch: rows laid end to end in one sequence, nothing padded.

Positions restart at every row, and the batch says how long each row is, so that attention never crosses a row (see
`objective/attention.py` and `objective/objective.py`). All indices of a batch point into its flattened tokens.

Shapes: T tokens of all rows together, F target frames, V voice-prompt frames, N text labels, M control decisions,
C acoustic dim, S semantic dim, K = ddpm_batch_mul.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vibevoice_finetune.data.dataset import Example


@dataclass(frozen=True)
class Counts:
    """How many terms each loss sums over; added up over an optimizer step, then divided by once."""

    diffusion: int
    text: int
    control: int
    frames: int
    tokens: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.diffusion + other.diffusion,
            self.text + other.text,
            self.control + other.control,
            self.frames + other.frames,
            self.tokens + other.tokens,
        )


class Batch(TypedDict):
    """What the objective is given."""

    input_ids: Tensor  # (1, T) int64
    position_ids: Tensor  # (1, T) int64, restarting at every row
    row_lengths: list[int]  # tokens of each packed row; here, not on the device, so that none waits for it
    row_borders: Tensor  # (rows + 1,) int32: where each begins, and the end of the last
    voice_index: Tensor  # (V,) int64
    target_index: Tensor  # (F,) int64
    condition_index: Tensor  # (F,) int64
    text_index: Tensor  # (N,) int64
    text_label: Tensor  # (N,) int64, vocabulary ids
    control_index: Tensor  # (M,) int64
    control_label: Tensor  # (M,) int64, 0..3
    voice_mean: Tensor  # (V, C) float32
    voice_jitter: Tensor  # (V, C) float32
    target_mean: Tensor  # (F, C) float32
    target_jitter: Tensor  # (F, C) float32
    target_semantic: Tensor  # (F, S) float32
    timestep: Tensor  # (F, K) int64
    noise: Tensor  # (F, K, C) float32
    counts: Counts
    rows: list[str]  # where each row comes from, for messages
    ghost: bool  # nothing of this batch counts: its losses are multiplied by zero


def collate(examples: Sequence[Example]) -> Batch:
    """Pack examples into one sequence.

    >>> none = np.zeros(0, dtype=np.int64)
    >>> def row(ids, target):  # a row of two text tokens and then frames
    ...     target = np.array(target)
    ...     sequence = TokenSequence(np.array(ids), none, target, target - 1, none, none, none, none)
    ...     frames = np.zeros((len(target), 1), dtype=np.float32)
    ...     draws = (none.reshape(0, 1), frames[:, None])
    ...     return Example("", False, sequence, frames[:0], frames[:0], frames, frames, frames, *draws)
    >>> from vibevoice_finetune.data.prompt import TokenSequence
    >>> batch = collate([row([5, 6, 9], [2]), row([7, 8, 9, 9], [2, 3])])
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist()
    ([[5, 6, 9, 7, 8, 9, 9]], [[0, 1, 2, 0, 1, 2, 3]])
    >>> batch["target_index"].tolist(), batch["condition_index"].tolist()
    ([2, 5, 6], [1, 4, 5])
    >>> batch["row_lengths"], batch["row_borders"].tolist()
    ([3, 4], [0, 3, 7])
    """
    sequences = [example.sequence for example in examples]
    lengths = [len(sequence.token_ids) for sequence in sequences]
    borders = np.cumsum([0, *lengths])
    offsets = borders[:-1]

    def joined(parts: Sequence[NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts))

    def shifted(parts: Sequence[NDArray[np.int64]]) -> Tensor:
        return joined([part + offset for part, offset in zip(parts, offsets, strict=True)])

    batch = Batch(
        input_ids=joined([s.token_ids for s in sequences])[None],
        position_ids=joined([np.arange(length) for length in lengths])[None],
        row_lengths=lengths,
        row_borders=torch.from_numpy(borders.astype(np.int32)),
        voice_index=shifted([s.voice_positions for s in sequences]),
        target_index=shifted([s.target_positions for s in sequences]),
        condition_index=shifted([s.condition_positions for s in sequences]),
        text_index=shifted([s.text_positions for s in sequences]),
        text_label=joined([s.text_labels for s in sequences]),
        control_index=shifted([s.control_positions for s in sequences]),
        control_label=joined([s.control_labels for s in sequences]),
        voice_mean=joined([e.voice_mean_VC for e in examples]),
        voice_jitter=joined([e.voice_jitter_VC for e in examples]),
        target_mean=joined([e.target_mean_FC for e in examples]),
        target_jitter=joined([e.target_jitter_FC for e in examples]),
        target_semantic=joined([e.target_semantic_FS for e in examples]),
        timestep=joined([e.timestep_FK for e in examples]),
        noise=joined([e.noise_FKC for e in examples]),
        counts=Counts(0, 0, 0, 0, 0),
        rows=[e.where for e in examples],
        ghost=all(e.ghost for e in examples),
    )
    assert batch["ghost"] or not any(e.ghost for e in examples), "a ghost beside rows that count"
    if not batch["ghost"]:
        batch["counts"] = count(batch)
    return batch


def count(batch: Batch) -> Counts:
    """The number of terms that each loss sums over in this batch."""
    return Counts(
        diffusion=batch["noise"].numel(),
        text=len(batch["text_label"]),
        control=len(batch["control_label"]),
        frames=len(batch["target_index"]),
        tokens=batch["input_ids"].numel(),
    )
