"""Intervals and differences, against values that can be counted."""

import numpy as np
import pytest

from vibevoice_finetune.evaluation.statistics import difference, equal_error_rate, mean, ratio


def test_the_mean_of_equal_values_is_sure() -> None:
    found = mean([0.5] * 10)
    assert (found.value, found.low, found.high, found.count) == (0.5, 0.5, 0.5, 10)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = mean(list(values))
    half = 1.96 * values.std() / 20  # the square root of 400
    assert found.low == pytest.approx(values.mean() - half, abs=0.02)
    assert found.high == pytest.approx(values.mean() + half, abs=0.02)


def test_a_ratio_weighs_long_rows_more() -> None:
    assert ratio([1, 0], [2, 8]).value == pytest.approx(0.1)


def test_a_difference_is_taken_row_by_row() -> None:
    """Rows that differ by far, models that differ by little in each: paired, that is sure; unpaired it would not be."""
    base = np.random.default_rng(0).uniform(0, 1, 30)
    tuned = base + 0.02
    found = difference((list(tuned), [1.0] * 30), (list(base), [1.0] * 30))
    assert found.value == pytest.approx(0.02)
    assert not found.holds_zero
    assert found.high - found.low < 1e-9


def test_no_difference_is_inside_the_noise() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=40), rng.normal(size=40)
    assert difference((list(one), [1.0] * 40), (list(other), [1.0] * 40)).holds_zero


def test_nothing_to_average() -> None:
    with pytest.raises(ValueError, match="no rows"):
        mean([])


def test_equal_error_rates() -> None:
    assert equal_error_rate([0.9, 0.8], [0.1, 0.2]) == 0
    assert equal_error_rate([0.1, 0.2], [0.8, 0.9]) == pytest.approx(1, abs=0.5)
    rng = np.random.default_rng(0)
    # Two normal distributions two deviations apart err equally often at the middle: 1 − Φ(1) = 0.159.
    assert equal_error_rate(list(rng.normal(2, 1, 4000)), list(rng.normal(0, 1, 4000))) == pytest.approx(
        0.159, abs=0.01
    )
