"""A clip as it is written: without rumble, at the level that the model is given, no peak beyond full scale.

Nothing else is done to it: no denoiser, no equaliser, no compressor that nobody asked for.
"""

import numpy as np
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ
from vibevoice_finetune.audio.source import normalize_rms

Floats = NDArray[np.float32]

HIGH_PASS_HZ = 20.0
HIGH_PASS_ORDER = 4
TRUE_PEAK_DB = -1.0
"""Decibels below full scale, as broadcasters ask for (EBU R 128)."""

OVERSAMPLING = 4
"""What ITU-R BS.1770 measures the true peak with."""


def level(samples: Floats) -> Floats:
    """Bring a clip to −25 dBFS, or lower if its true peak would come too close to full scale, (N,) → (N,)."""
    clean = high_pass(samples)
    loud = normalize_rms(clean)
    peak = true_peak(loud)
    limit = 10 ** (TRUE_PEAK_DB / 20)
    return loud if peak <= limit else (loud * (limit / peak)).astype(np.float32)


def high_pass(samples: Floats) -> Floats:
    """Take away what lies below 20 Hz (Butterworth's curve, fourth order, without any shift in time), (N,) → (N,)."""
    around = SAMPLING_RATE_HZ // 4
    behind = fast_length(len(samples) + 2 * around) - len(samples) - around
    padded = np.pad(samples, (around, behind), mode="reflect") if len(samples) > behind else samples
    spectrum = np.fft.rfft(padded.astype(np.float64))
    frequencies_hz = np.fft.rfftfreq(len(padded), 1 / SAMPLING_RATE_HZ)
    ratio = np.divide(HIGH_PASS_HZ, frequencies_hz, out=np.full_like(frequencies_hz, np.inf), where=frequencies_hz > 0)
    filtered = np.fft.irfft(spectrum / np.sqrt(1 + ratio ** (2 * HIGH_PASS_ORDER)), len(padded))
    first = around if len(padded) > len(samples) else 0
    return filtered[first : first + len(samples)].astype(np.float32)


def fast_length(at_least: int) -> int:
    """The next length without prime factors above 5: Fourier transforms of others take up to ten times as long.

    >>> fast_length(1_009), fast_length(1_024)
    (1024, 1024)
    """
    powers = (int(3**three * 5**five) for three in range(20) for five in range(14))
    return min(odd << max(0, (-(-at_least // odd) - 1).bit_length()) for odd in powers)


def true_peak(samples: Floats) -> float:
    """The highest value of the waveform between its samples, by fourfold oversampling (ITU-R BS.1770-5, annex 2)."""
    if not len(samples):
        return 0.0
    finer = soxr.resample(samples, SAMPLING_RATE_HZ, OVERSAMPLING * SAMPLING_RATE_HZ, quality="HQ")
    return float(max(np.abs(finer).max(), np.abs(samples).max()))
