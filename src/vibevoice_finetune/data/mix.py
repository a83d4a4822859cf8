"""Several data sets, and which of their rows an epoch visits.

Their rows lie one after another. Without shares they are one data set. With shares, an epoch is a pass over the first
set, and as many rows of each other set come with it as its share asks for: every set is shuffled and used up on its
own, over as many epochs as that takes, and then begins anew. Within an epoch the rows of a set are spread evenly, so
that every optimizer step has about the same shares. All of this follows from (seed, epoch), so it does not depend on
processes, batches, or where a run was stopped.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

MIX_STREAM = 4
"""Last number of the seeds here; 0 to 3 are the streams of `data/dataset.py` and `data/sampler.py`."""


@dataclass(frozen=True)
class Mix:
    """Shares of the rows that are drawn from several data sets.

    Attributes:
        sizes: rows of each set.
        shares: of the rows of an epoch; together 1.

    >>> Mix(sizes=(80, 1000), shares=(0.8, 0.2)).rows_of_epoch  # a pass over the first set
    (80, 20)
    >>> Mix(sizes=(80, 5), shares=(0.8, 0.2)).rows_of_epoch  # the second set four times
    (80, 20)
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]

    @property
    def rows_of_epoch(self) -> tuple[int, ...]:
        """Rows of each set that an epoch visits; at least one."""
        total = self.sizes[0] / self.shares[0]
        others = (max(1, round(total * share)) for share in self.shares[1:])
        return (self.sizes[0], *others)

    def order(self, seed: int, epoch: int) -> tuple[Integers, Integers]:
        """The visits of an epoch, in their order.

        Args:
            seed: of the run.
            epoch: which one.

        Returns:
            Of each visit, the epoch of its own set, and the row, counted through all sets; both (N,).
        """
        epochs, rows, places = [], [], []
        rng = np.random.default_rng((seed, epoch, len(self.sizes), MIX_STREAM))
        first_row = 0
        for number, (size, count) in enumerate(zip(self.sizes, self.rows_of_epoch, strict=True)):
            visits = epoch * count + np.arange(count)  # counted from the start of the run
            epochs.append(visits // size)
            passes = range(int(visits[0]) // size, int(visits[-1]) // size + 1)
            shuffled = [np.random.default_rng((seed, own, number, MIX_STREAM)).permutation(size) for own in passes]
            rows.append(first_row + np.concatenate(shuffled)[visits - passes[0] * size])
            places.append((np.arange(count) + rng.random(count)) / count)
            first_row += size
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(epochs)[order], np.concatenate(rows)[order]
