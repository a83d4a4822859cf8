"""Mel spectrograms as pictures: time to the right, pitch upwards, loud is bright.

Shapes: N samples, H bands, W columns.
"""

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.errors import require

Floats = NDArray[np.float32]

FFT_SIZE, HOP_SAMPLES, NUM_MELS = 1_024, 240, 80
RANGE_DB = 70.0
"""From the loudest point of a picture down to its black."""


def mel_picture(samples: Floats) -> NDArray[np.uint8]:
    """A recording at 24 kHz, (N,), as a picture (80, W, 3) with a column for each 10 ms.

    Raises:
        UserError: matplotlib is not installed.
    """
    colours: Any = require("evaluate", "matplotlib")
    padded = np.pad(samples, (0, max(FFT_SIZE - len(samples), 0))).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP_SAMPLES] * np.hanning(FFT_SIZE)
    power_WF = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    decibels_HW = 10 * np.log10(_mel_filters() @ power_WF.T + 1e-10)
    share_HW = np.clip((decibels_HW - decibels_HW.max()) / RANGE_DB + 1, 0, 1)
    picture: NDArray[np.uint8] = colours.colormaps["magma"](share_HW[::-1], bytes=True)[..., :3]
    return picture


def png(picture: NDArray[np.uint8]) -> bytes:
    """A picture (H, W, 3) as the bytes of a PNG file."""
    image: Any = require("evaluate", "matplotlib.image")
    buffer = io.BytesIO()
    image.imsave(buffer, picture, format="png")
    return buffer.getvalue()


@cache
def _mel_filters() -> NDArray[np.float64]:
    """Triangles on the mel scale from 0 Hz to half the rate, (80, bins)."""
    hz = np.fft.rfftfreq(FFT_SIZE, 1 / SAMPLING_RATE_HZ).astype(np.float64)
    bins = 2595 * np.log10(1 + hz / 700)
    step = bins[-1] / (NUM_MELS + 1)
    centres = step * np.arange(1, NUM_MELS + 1)[:, None]
    # The lowest triangles are narrower than a bin of the transform; each takes at least the bin beside its middle.
    width = np.maximum(step, np.diff(bins).max())
    filters: NDArray[np.float64] = np.clip(1 - np.abs(bins - centres) / width, 0, None)
    return filters
