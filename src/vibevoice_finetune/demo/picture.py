"""The demo's picture: spectrograms one below the other, on one scale of time, frequency and level.

In come waveforms at 24 kHz, out goes a PNG.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.audio.spectrum import HOP, power_spectrum
from vibevoice_finetune.errors import require
from vibevoice_finetune.files.atomic import writing_file

RANGE_DB = 70.0


@dataclass(frozen=True, eq=False)
class Panel:
    """One spectrogram.

    Attributes:
        title: above it.
        samples: (N,), may be empty.
    """

    title: str
    samples: NDArray[np.float32]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels, the first at the top."""
    figures: Any = require("demo", "matplotlib.figure")
    figure = figures.Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        levels_TB = 10 * np.log10(power_spectrum(panel.samples) + 1e-10)
        length_sec = len(levels_TB) * HOP / SAMPLING_RATE_HZ
        axis.imshow(
            levels_TB.T,
            origin="lower",
            aspect="auto",
            extent=(0, length_sec, 0, SAMPLING_RATE_HZ / 2_000),
            vmin=levels_TB.max() - RANGE_DB,
            vmax=levels_TB.max(),
            cmap="magma",
        )
        axis.set(title=panel.title, ylabel="kHz")
    axes[-1].set(xlabel="seconds", xlim=(0, max(len(panel.samples) for panel in panels) / SAMPLING_RATE_HZ or 1))
    with writing_file(path) as staging:
        figure.savefig(staging, dpi=110, format="png")
