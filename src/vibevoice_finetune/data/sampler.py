"""Which rows make up each micro-batch of each process.

The order of an epoch depends on the seed and the epoch alone. Micro-batch m of all processes together is a contiguous
piece of that order, so an optimizer step sees the same rows whether they are split over processes, accumulated, or
taken at once, and a run that goes on after a stop goes on in the same order.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader, Sampler

from vibevoice_finetune.data.dataset import Draw, Example

ORDER_STREAM = 3
"""Last number of the order's seed; 0 to 2 are the streams of `data/dataset.py`."""


class RowBatches(Sampler[list[Draw]]):
    """Micro-batches of a fixed number of rows.

    Args:
        num_rows: rows of the data set.
        batch_size: rows of a micro-batch of one process.
        seed: of the order; None keeps the rows as they are (evaluation).
        rank: this process.
        world_size: number of processes.
        drop_last: leave out the last, smaller micro-batch.
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
    ) -> None:
        self.num_rows = num_rows
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
        return self.num_rows // rows_at_once if self.drop_last else -(-self.num_rows // rows_at_once)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = np.arange(self.num_rows)
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch, ORDER_STREAM)).permutation(self.num_rows)
        rows_at_once = self.batch_size * self.world_size
        for micro_batch in range(len(self)):
            rows = order[micro_batch * rows_at_once : (micro_batch + 1) * rows_at_once]
            mine = rows[self.rank :: self.world_size]
            if len(mine):
                yield [Draw(self.epoch, int(row)) for row in mine]
            else:
                yield [Draw(self.epoch, int(rows[0]), ghost=True)]


class EpochLoader(DataLoader[Example]):
    """A DataLoader that passes the epoch on to its batch sampler."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration runs through."""
        assert isinstance(self.batch_sampler, RowBatches)
        self.batch_sampler.set_epoch(epoch)
