"""Sound and pictures of a report, as text that a page can hold: audio, spectrograms, lines over checkpoints."""

import base64
import html
import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.errors import require
from vibevoice_finetune.evaluation.statistics import Interval

Floats = NDArray[np.float32]

FFT_SIZE, HOP_SAMPLES, PICTURE_BINS = 1_024, 240, 160
RANGE_DB = 70.0


def sound(samples: Floats) -> str:
    """Audio as Ogg Vorbis in a data address, a tenth of the size of WAV."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLING_RATE_HZ, 1, "VORBIS", format="OGG") as file:
        file.write(np.clip(samples, -1, 1))
    return _data("audio/ogg", buffer.getvalue())


def spectrogram(samples: Floats) -> str:
    """A picture of the sound: time to the right, frequency upwards, 0 to 12 kHz."""
    image: Any = require("evaluate", "matplotlib.image")
    padded = np.pad(samples, (0, max(FFT_SIZE - len(samples), 0)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP_SAMPLES] * np.hanning(FFT_SIZE)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = np.linspace(0, power.shape[1] - 1, PICTURE_BINS + 1).astype(int)
    bands = np.stack([power[:, a : max(b, a + 1)].mean(axis=1) for a, b in pairwise(edges)])
    decibels = 10 * np.log10(bands + 1e-10)
    buffer = io.BytesIO()
    image.imsave(
        buffer, decibels[::-1], cmap="magma", vmin=decibels.max() - RANGE_DB, vmax=decibels.max(), format="png"
    )
    return _data("image/png", buffer.getvalue())


def scale(marks: Sequence[tuple[float, str, str]]) -> str:
    """Values on one line, each with its name; the third part of a mark is its class: "model" or "real"."""
    if len(marks) < 2:
        return ""
    marks = sorted(marks)
    low, high = marks[0][0] - 0.03, marks[-1][0] + 0.03
    lines = []
    for number, (value, name, kind) in enumerate(marks):
        x, y = 12 + 330 * (value - low) / (high - low), 18 + 26 * number
        lines.append(
            f'<line x1="12" x2="342" y1="{y}" y2="{y}" class="track"/>'
            f'<line x1="12" x2="{x:.0f}" y1="{y}" y2="{y}" class="{kind}"/>'
            f'<circle cx="{x:.0f}" cy="{y}" r="6" class="{kind}"/>'
            f'<text x="356" y="{y + 4}"><tspan class="value">{value:.2f}</tspan> {html.escape(_short(name))}</text>'
        )
    said = ", ".join(f"{name} {value:.2f}" for value, name, _ in marks)
    return _svg(560, 26 * len(marks) + 10, said, "".join(lines))


def curve(points: Sequence[tuple[str, Interval]], *, as_percent: bool) -> str:
    """A figure from the base over the checkpoints, with its intervals."""
    low, high = min(p.low for _, p in points), max(p.high for _, p in points)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return 150 - 118 * (value - low) / span

    def shown(value: float) -> str:
        return f"{value * 100:.1f} %" if as_percent else f"{value:.2f}"

    step = 440 / max(len(points) - 1, 1)
    places = [(60 + step * number, name, point) for number, (name, point) in enumerate(points)]
    band = [f"{x:.0f},{y(p.high):.1f}" for x, _, p in places] + [f"{x:.0f},{y(p.low):.1f}" for x, _, p in places[::-1]]
    line = " ".join(f"{x:.0f},{y(p.value):.1f}" for x, _, p in places)
    marks = "".join(
        f'<circle cx="{x:.0f}" cy="{y(p.value):.1f}" r="4" class="model"/>'
        f'<text x="{x:.0f}" y="{y(p.value) - 10:.1f}" text-anchor="middle" class="value">{shown(p.value)}</text>'
        f'<text x="{x:.0f}" y="176" text-anchor="middle">{html.escape(_short(name.removeprefix("checkpoint-")))}</text>'
        for x, name, p in places
    )
    said = ", ".join(f"{name} {shown(p.value)}" for _, name, p in places)
    content = (
        f'<line x1="40" x2="520" y1="156" y2="156" class="track"/><polygon points="{" ".join(band)}" class="band"/>'
        f'<polyline points="{line}" class="line"/>{marks}'
    )
    return _svg(560, 184, said, content)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"…{name[-23:]}"


def _svg(width: int, height: int, said: str, content: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(said)}">{content}</svg>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
