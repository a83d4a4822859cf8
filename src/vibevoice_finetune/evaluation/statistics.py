"""How sure a figure is: bootstrap intervals of means, rates and differences.

Rows are drawn with replacement, with all their seeds: two takes of one sentence are not two sentences. A difference is
taken row by row, so what is hard about a sentence falls out of it. "Inside the noise" means that the interval of the
difference holds zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
LEVEL = 0.95
SEED = 0


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % bootstrap interval.

    Attributes:
        value: of all rows.
        low: lower end.
        high: upper end.
        count: rows.
    """

    value: float
    low: float
    high: float
    count: int

    @property
    def holds_zero(self) -> bool:
        """Whether zero is inside: for a difference, that there may be none."""
        return self.low <= 0 <= self.high


def mean(values: Sequence[float]) -> Interval:
    """The mean of one number per row.

    Raises:
        ValueError: there is none.
    """
    return ratio(values, [1.0] * len(values))


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """The sum of one number per row over the sum of another, such as errors over words."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    return _bootstrap(len(top), lambda rows: _over(top[rows].sum(-1), bottom[rows].sum(-1)))


def difference(
    tuned: tuple[Sequence[float], Sequence[float]], base: tuple[Sequence[float], Sequence[float]]
) -> Interval:
    """The ratio of the tuned model less that of the base, over the same rows drawn together.

    Args:
        tuned: numerators and denominators, one of each per row.
        base: the same of the base model, row by row.
    """
    (top, bottom), (base_top, base_bottom) = (
        (np.asarray(side[0], dtype=np.float64), np.asarray(side[1], dtype=np.float64)) for side in (tuned, base)
    )
    assert len(top) == len(base_top), "not the same rows"

    def of(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        return _over(top[rows].sum(-1), bottom[rows].sum(-1)) - _over(base_top[rows].sum(-1), base_bottom[rows].sum(-1))

    return _bootstrap(len(top), of)


def _bootstrap(count: int, of: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> Interval:
    if count == 0:
        raise ValueError("no rows")
    value = float(of(np.arange(count)[None])[0])
    drawn = of(np.random.default_rng(SEED).integers(count, size=(DRAWS, count)))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high), count)


def _over(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)


def equal_error_rate(same: Sequence[float], other: Sequence[float]) -> float:
    """How often a threshold errs that errs as often on pairs of one speaker as on pairs of two.

    Args:
        same: similarities of pairs of one speaker.
        other: of pairs of two.

    >>> equal_error_rate([0.9, 0.8, 0.4], [0.1, 0.5, 0.2])
    0.3333333333333333
    """
    ones, others = np.asarray(same), np.asarray(other)
    thresholds = np.unique(np.concatenate([ones, others]))
    missed = np.array([(ones < threshold).mean() for threshold in thresholds])
    taken = np.array([(others >= threshold).mean() for threshold in thresholds])
    best = int(np.argmin(np.abs(missed - taken)))
    return float((missed[best] + taken[best]) / 2)
