"""Clips as they are written: no rumble, one level, no peak between the samples."""

import numpy as np
import pytest
from numpy.typing import NDArray

from vibevoice_finetune.preparation.loudness import fast_length, high_pass, level, true_peak

RATE_HZ = 24_000


def sine(frequency_hz: float, seconds: float = 1.0, phase: float = 0.0) -> NDArray[np.float32]:
    time_sec = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return np.sin(2 * np.pi * frequency_hz * time_sec + phase).astype(np.float32)


def decibels(samples: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.mean(np.square(samples, dtype=np.float64))))


@pytest.mark.parametrize(
    ("frequency_hz", "gain_db"),
    [(5, -48.2), (20, -3.0), (80, 0.0), (1_000, 0.0)],  # −10 log10(1 + (20 / f)^8)
)
def test_what_lies_below_20_hz_is_taken_away(frequency_hz: float, gain_db: float) -> None:
    tone = sine(frequency_hz, 10)
    middle = slice(2 * RATE_HZ, 8 * RATE_HZ)  # at the ends, the tone is mirrored
    assert decibels(high_pass(tone)[middle]) - decibels(tone[middle]) == pytest.approx(gain_db, abs=0.2)


@pytest.mark.parametrize("num_samples", [1, 100, 6_000, 6_001, 24_000, 25_013])  # 25,013 is a prime number
def test_nothing_moves_and_nothing_is_lost(num_samples: int) -> None:
    tone = sine(1_000, 2)[:num_samples]
    assert high_pass(tone) == pytest.approx(tone, abs=0.02)


def test_the_level_is_that_of_the_model() -> None:
    assert decibels(level(0.01 * sine(300))) == pytest.approx(-25, abs=0.1)


def test_a_peak_between_the_samples_keeps_its_distance() -> None:
    """A quarter of the rate, an eighth of a turn late: the samples reach 0.71 of the peak between them."""
    tone = sine(RATE_HZ / 4, phase=np.pi / 4)
    assert np.abs(tone).max() == pytest.approx(0.7071, abs=1e-3)
    assert true_peak(tone) == pytest.approx(1, abs=0.05)
    click = 0.001 * sine(300)
    click[12_000] = 0.5
    assert true_peak(level(click)) <= 10 ** (-1 / 20) + 1e-3


def test_lengths_that_transforms_are_fast_for() -> None:
    assert [fast_length(number) for number in (1, 7, 1_009, 1_024, 1_025)] == [1, 8, 1_024, 1_024, 1_080]
