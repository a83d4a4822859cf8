"""Which rows make up each micro-batch of each process.

The order of an epoch depends on the seed and the epoch alone. Micro-batch m of all processes together is a contiguous
piece of that order, so an optimizer step sees the same rows whether they are split over processes, accumulated, or
taken at once, and a run that goes on after a stop goes on in the same order.
"""

import math
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from vibevoice_finetune.data.dataset import Draw, Example
from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.errors import DataError

ORDER_STREAM = 3
"""Last number of the order's seed; 0 to 2 are the streams of `data/dataset.py`."""

BATCHES_AHEAD = 2


class RowBatches(Sampler[list[Draw]]):
    """Micro-batches of a fixed number of rows.

    Args:
        num_rows: rows of the data set.
        batch_size: rows of a micro-batch of one process.
        seed: of the order; None keeps the rows as they are (evaluation).
        rank: this process.
        world_size: number of processes.
        drop_last: leave out the last, smaller micro-batch.
        mix: shares of several data sets, whose rows lie one after another; None: each row once per epoch.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        mix: Mix | None = None,
    ) -> None:
        self.num_rows = num_rows if mix is None else sum(mix.rows_of_epoch)
        self.mix = mix
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        rows_at_once = self.batch_size * self.world_size
        return self.num_rows // rows_at_once if self.drop_last else math.ceil(self.num_rows / rows_at_once)

    def __iter__(self) -> Iterator[list[Draw]]:
        epochs, order = self._order()
        rows_at_once = self.batch_size * self.world_size
        for micro_batch in range(len(self)):
            these = slice(micro_batch * rows_at_once, (micro_batch + 1) * rows_at_once)
            draws = list(zip(epochs[these].tolist(), order[these].tolist(), strict=True))
            mine = draws[self.rank :: self.world_size]
            yield [Draw(*draw) for draw in mine] if mine else [Draw(*draws[0], ghost=True)]

    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and rows of the visits."""
        epochs = np.full(self.num_rows, self.epoch)
        if self.seed is None:
            return epochs, np.arange(self.num_rows)
        if self.mix is not None:
            return self.mix.order(self.seed, self.epoch)
        return epochs, np.random.default_rng((self.seed, self.epoch, ORDER_STREAM)).permutation(self.num_rows)


class TokenBatches(Sampler[list[Draw]]):
    """Micro-batches of as many rows as fit into a number of tokens.

    Lengths are rounded up to one of a few sizes, and the batches are laid out over sizes once. An epoch then only
    chooses which row takes each place of its size, so the number of batches is the same in every epoch, no batch is
    ever too long, and rows still meet other rows. Each batch goes to one process, in turn.

    Args:
        lengths: tokens of each row, at most (its longest choice of voice prompts).
        max_tokens: tokens of a micro-batch, at most.
        seed: of the order.
        rank: this process.
        world_size: number of processes.

    Raises:
        DataError: a row alone is longer than `max_tokens`.
    """

    def __init__(
        self, lengths: Sequence[int], max_tokens: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if max(lengths) > max_tokens:
            raise DataError(
                f"--max_tokens_per_batch {max_tokens:,}: the longest row has {max(lengths):,} tokens, voice prompts "
                "included; raise the flag, or leave such rows out with --max_length and --on_bad_row skip."
            )
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        sizes = [min(_round_up(length), max_tokens) for length in lengths]
        self.rows_of_size: dict[int, list[int]] = defaultdict(list)
        for row, size in enumerate(sizes):
            self.rows_of_size[size].append(row)
        self.layout = _fill_batches(sizes, max_tokens, np.random.default_rng((seed, ORDER_STREAM)))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.layout) / self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng((self.seed, self.epoch, ORDER_STREAM))
        waiting = {size: rng.permutation(rows).tolist() for size, rows in self.rows_of_size.items()}
        batches = [[waiting[size].pop() for size in sizes] for sizes in self.layout]
        order = rng.permutation(len(batches))
        for first in range(0, len(order), self.world_size):
            mine = order[first : first + self.world_size][self.rank : self.rank + 1]
            if len(mine):
                yield [Draw(self.epoch, row) for row in batches[mine[0]]]
            else:
                yield [Draw(self.epoch, batches[order[first]][0], ghost=True)]


def _round_up(length: int) -> int:
    """The next multiple of a sixteenth of the power of two below the length: at most 1/16 is added."""
    step = max(1, 1 << max(length.bit_length() - 5, 0))
    return -(-length // step) * step


def _fill_batches(sizes: Sequence[int], max_tokens: int, rng: np.random.Generator) -> list[list[int]]:
    """Lay sizes out over batches, longest first, each into the fullest batch that still has room for it."""
    batches: list[list[int]] = []
    room: list[tuple[int, int]] = []  # sorted pairs of room left and number of the batch
    order = sorted(rng.permutation(len(sizes)).tolist(), key=lambda row: -sizes[row])
    for row in order:
        at = bisect_left(room, (sizes[row], -1))
        if at < len(room):
            left, batch = room.pop(at)
            batches[batch].append(sizes[row])
        else:
            left, batch = max_tokens, len(batches)
            batches.append([sizes[row]])
        insort(room, (left - sizes[row], batch))
    return batches


class EpochLoader(DataLoader[Example]):
    """A DataLoader that passes the epoch on to its batch sampler, and without worker processes makes batches ahead.

    The draws of eight clips of 10 s take 7 ms, a good part of a step on a fast GPU (measured; `numpy` lets go of
    Python's lock meanwhile). So a thread makes the next batches while the GPU works.
    """

    def __iter__(self) -> Any:
        """The batches of the epoch."""
        batches = super().__iter__()
        return batches if self.num_workers else _ahead(batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        assert isinstance(self.batch_sampler, RowBatches | TokenBatches)
        self.batch_sampler.set_epoch(epoch)


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, each made in a thread while earlier ones are used; an error comes where its batch would."""
    with ThreadPoolExecutor(1, "batches") as thread:
        coming = deque(thread.submit(next, batches, None) for _ in range(BATCHES_AHEAD))
        while (batch := coming.popleft().result()) is not None:
            coming.append(thread.submit(next, batches, None))
            yield batch
