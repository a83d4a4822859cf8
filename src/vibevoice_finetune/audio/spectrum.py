"""What the spectrum of a recording says: how wide it is, whether there is music under it, and its fingerprint.

In come samples (N,), mono, out come hertz, shares and hashes. One short-time spectrum serves all of them
(`power_spectrum`), because it is what costs the time.

Shapes: N samples, T frames of the spectrum, B frequency bins.
"""

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.measure import DIGITAL_SILENCE_DBFS, Floats

WINDOW = 1_024
HOP = 256
"""43 ms and 11 ms at 24 kHz: bins are 23 Hz wide, so that the partials of a note stand apart; the hop is small, so that
peaks stay where they are when a recording is shifted by part of a frame."""

BLOCK_FRAMES = 2_048
EDGE_CONTRAST_DB = 20.0
"""Natural speech loses 15 dB at most within 500 Hz; a filter before downsampling loses 40 and more."""

HIGHEST_EDGE = 0.92
"""Of the Nyquist rate: above, every converter's own filter is seen."""

Spectrum = NDArray[np.float32]


def power_spectrum(samples: Floats) -> Spectrum:
    """Hann-windowed power, (N,) → (T, B) with T = 1 + (N − 1024) // 256 and B = 513; short audio is padded to T = 1."""
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples)))).astype(np.float32, copy=False)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    out = np.empty((len(frames), WINDOW // 2 + 1), dtype=np.float32)
    for start in range(0, len(frames), BLOCK_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + BLOCK_FRAMES] * window)
        out[start : start + BLOCK_FRAMES] = spectrum.real**2 + spectrum.imag**2
    return out


def bandwidth(spectrum_TB: Spectrum, rate_hz: int) -> float:
    """The frequency above which there is nothing, in hertz; the Nyquist rate if the recording uses all of it.

    For each bin the level that a fiftieth of the frames exceeds is taken, so that one hiss with high frequencies is
    enough. An edge is where that falls by 20 dB or more within 500 Hz and stays below up to the end; of several, the
    one with the largest fall. Noise over the whole band, added after the band was cut, hides the edge.
    """
    bin_hz = rate_hz / WINDOW
    nyquist = rate_hz / 2
    levels_B = 10 * np.log10(np.percentile(spectrum_TB[::2], 98, axis=0) + 1e-10)  # half of the frames overlap enough
    width = max(1, round(150 / bin_hz))
    smooth_B = np.convolve(levels_B, np.ones(width) / width, "same")
    usable = smooth_B[: int(len(smooth_B) * 0.98)]  # the smoothing falls off at the end
    highest_above_B = np.maximum.accumulate(usable[::-1])[::-1]
    step = round(500 / bin_hz)
    first, last = round(1_000 / bin_hz), int(len(smooth_B) * HIGHEST_EDGE)
    edges = np.arange(first, min(last, len(usable) - step))
    if len(edges) == 0:
        return nyquist
    falls = usable[edges] - highest_above_B[edges + step]
    best = int(falls.argmax())
    if falls[best] < EDGE_CONTRAST_DB:
        return nyquist
    # The middle of the slope: where half of the fall is behind.
    half = usable[edges[best]] - falls[best] / 2
    below = np.flatnonzero(usable[edges[best] :] < half)
    return float((edges[best] + below[0]) * bin_hz)


def line_contrast(spectrum_TB: Spectrum, rate_hz: int) -> float:
    """How far the quiet background's spectrum stands out of its own envelope, in dB: music has lines, noise has none.

    The quietest eighth of the frames that are not digital silence is looked at, between 150 Hz (mains hum is below) and
    4 kHz. What is given is the standard deviation of a frame's level in dB about its running mean over 700 Hz.
    For noise of any colour that is 5.6 dB (the deviation of 10 log10 of an exponential variable).
    """
    spectrum_TB = spectrum_TB[::2]
    total_T = spectrum_TB.sum(axis=1)
    threshold = 10 ** (DIGITAL_SILENCE_DBFS / 10) * WINDOW**2 * 0.1875  # Parseval, with the window's mean square
    heard = np.flatnonzero(total_T > threshold)
    if len(heard) < 8:
        return 0.0
    quiet = heard[np.argsort(total_T[heard])[: max(8, len(heard) // 8)]]
    bin_hz = rate_hz / WINDOW
    low, high = round(150 / bin_hz), round(4_000 / bin_hz)
    levels_TB = 10 * np.log10(spectrum_TB[quiet, low:high] + 1e-12)
    half = round(350 / bin_hz)
    padded = np.pad(levels_TB, ((0, 0), (half, half)), mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1, axis=1).mean(axis=2)
    return float(np.sqrt(np.mean((levels_TB - around) ** 2)))
