"""The page of an evaluation: one file with everything in it, and the same figures as JSON and Markdown.

The page asks for nothing from anywhere: audio, pictures, styles and script are inside, and its content policy forbids
the rest.
"""

import base64
import hashlib
import html
import io
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.errors import require
from vibevoice_finetune.evaluation.compare import FIGURES, Compared
from vibevoice_finetune.evaluation.evaluate import BASE, Evaluation
from vibevoice_finetune.evaluation.judge import Judged, as_json, spoken_text
from vibevoice_finetune.evaluation.verdict import sentences, shown
from vibevoice_finetune.files.atomic import write_file, write_json

Floats = NDArray[np.float32]

TEMPLATE = "report.html.j2"
PAGE, FIGURES_FILE, CARD_FILE = "index.html", "report.json", "report.md"
MOST_ROWS = 12
"""Rows to listen to on the page; of 4 s each and three models, the page has some 3 MB."""

FFT_SIZE, HOP_SAMPLES, PICTURE_BINS = 1_024, 240, 160
RANGE_DB = 70.0


def write_report(found: Evaluation, output: Path) -> Path:
    """Write `index.html`, `report.json` and `report.md`; where the page is."""
    require("evaluate", "matplotlib")
    write_json(output / FIGURES_FILE, figures_as_json(found))
    write_file(output / CARD_FILE, card_block(found))
    write_file(output / PAGE, page(found))
    return output / PAGE


def figures_as_json(found: Evaluation) -> dict[str, Any]:
    """All figures and takes as plain values."""
    return {
        "verdict": sentences(found),
        "recommended": None if found.choice is None else asdict(found.choice),
        "judges": {"recogniser": found.recogniser_name, "speaker_encoder": found.encoder_name},
        "real_clips": {
            "ceiling": found.reference.ceiling,
            "floor": found.reference.floor,
            "word_error": found.reference.words.rate,
        },
        "figures": {
            voice: {key: _figure_as_json(one) for key, one in figures.items()}
            for voice, figures in found.compared.items()
        },
        "takes": [as_json(one) for one in found.judged],
        "settings": dict(_settings(found)),
        "warnings": list(found.warnings),
    }


def _figure_as_json(one: Compared) -> dict[str, Any]:
    against = None if one.against_base is None else asdict(one.against_base)
    return {"value": asdict(one.own), "against_base": against, "verdict": one.verdict}


def card_block(found: Evaluation) -> str:
    """A block for a model card."""
    lines = ["## Evaluation", "", *sentences(found), ""]
    voices = list(found.compared)
    lines += [f"| figure | {' | '.join(voices)} |", f"| --- |{' --- |' * len(voices)}"]
    for figure in FIGURES[:6]:
        cells = [found.compared[voice].get(figure.key) for voice in voices]
        if any(cells):
            lines.append(f"| {figure.name} | {' | '.join(shown(c.own, figure) if c else '' for c in cells)} |")
    count = len(found.request.rows)
    judges = f"Recogniser: {found.recogniser_name}; speaker encoder: {found.encoder_name}."
    lines += ["", f"{count} held-out sentences, {found.request.seeds} takes each; 95 % intervals. {judges}", ""]
    return "\n".join(lines)


def page(found: Evaluation) -> str:
    """The page as HTML."""
    jinja2: Any = require("evaluate", "jinja2")
    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    voices = list(found.compared)
    listening = _listening(found)
    rendered: str = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            title="Did it help?",
            verdict=sentences(found),
            warnings=found.warnings,
            rows=len(found.request.rows),
            seeds=found.request.seeds,
            voices=voices,
            figures=[
                {"name": figure.name, "cells": [_cell(found.compared[voice].get(figure.key)) for voice in voices]}
                for figure in FIGURES
                if any(figure.key in found.compared[voice] for voice in voices)
            ],
            scale=_scale(found),
            encoder=found.encoder_name,
            curves=[{"name": name, "svg": _curve(found, key)} for key, name in _curves(found)],
            listening=listening,
            pairs=_pairs(found, listening),
            digest=hashlib.sha256(repr([j.said.audio for j in found.judged]).encode()).hexdigest()[:16],
            settings=_settings(found),
        )
    )
    return rendered


def _cell(one: Compared | None) -> dict[str, str | None]:
    return {"value": "" if one is None else shown(one.own, one.figure), "verdict": None if one is None else one.verdict}


def _listening(found: Evaluation) -> list[dict[str, Any]]:
    """Rows with their players: the real clip, the base, the adapters; the first take of each."""
    first = {(one.said.row, one.said.voice): one for one in found.judged if one.said.seed == 0}
    shown_rows = []
    for number, row in enumerate(found.request.rows[:MOST_ROWS]):
        real = load_audio(row.audio)
        takes = [_take("real clip", real)]
        takes += [_take_of(first[number, voice]) for voice in _heard_voices(found) if (number, voice) in first]
        shown_rows.append({"text": spoken_text(row), "takes": takes})
    return shown_rows


def _heard_voices(found: Evaluation) -> list[str]:
    """Base, the recommended one, and the last: more would not be listened to."""
    names = [voice.name for voice in found.request.voices]
    chosen = [found.choice.voice] if found.choice else []
    return list(dict.fromkeys([BASE, *chosen, *names[-1:]]))


def _take_of(judged: Judged) -> dict[str, Any]:
    take = _take(judged.said.voice, judged.said.samples())
    return take | {
        "heard": judged.heard,
        "similarity": judged.similarity,
        "signs": judged.signs,
        "fault": judged.said.fault,
    }


def _take(name: str, samples: Floats) -> dict[str, Any]:
    has_sound = len(samples) > 0
    return {
        "name": name,
        "audio": _sound(samples) if has_sound else None,
        "picture": _spectrogram(samples) if has_sound else None,
        "seconds": round(len(samples) / SAMPLING_RATE_HZ, 1),
        "heard": None,
        "similarity": None,
        "signs": (),
        "fault": "",
    }


def _pairs(found: Evaluation, listening: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the blind test asks about: base and recommended adapter."""
    if found.choice is None:
        return []
    names = [BASE, found.choice.voice]
    pairs = []
    for row in listening:
        audio = [next((t["audio"] for t in row["takes"] if t["name"] == name), None) for name in names]
        if all(audio):
            pairs.append({"text": row["text"], "audio": audio, "names": names})
    return pairs


def _sound(samples: Floats) -> str:
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLING_RATE_HZ, 1, "VORBIS", format="OGG") as file:
        file.write(np.clip(samples, -1, 1))
    return _data("audio/ogg", buffer.getvalue())


def _spectrogram(samples: Floats) -> str:
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


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _scale(found: Evaluation) -> str:
    """Floor, models and ceiling on one line."""
    marks = [
        (figures["similarity"].own.value, voice) for voice, figures in found.compared.items() if "similarity" in figures
    ]
    marks += [(found.reference.floor, "other speakers")] if found.reference.floor is not None else []
    marks += [(found.reference.ceiling, "real clips")] if found.reference.ceiling is not None else []
    if len(marks) < 2:
        return ""
    marks.sort()
    low, high = marks[0][0] - 0.03, marks[-1][0] + 0.03
    height = 24 * len(marks) + 10
    lines = []
    for number, (value, name) in enumerate(marks):
        x, y = 40 + 420 * (value - low) / (high - low), 20 + 24 * number
        lines.append(
            f'<line x1="40" x2="{x:.0f}" y1="{y}" y2="{y}" stroke="currentColor" opacity=".25"/>'
            f'<circle cx="{x:.0f}" cy="{y}" r="5" fill="var(--accent)"/>'
            f'<text x="{x + 10:.0f}" y="{y + 4}">{html.escape(name)} {value:.2f}</text>'
        )
    said = ", ".join(f"{name} {value:.2f}" for value, name in marks)
    return (
        f'<svg viewBox="0 0 640 {height}" role="img" aria-label="{html.escape(said)}" width="100%">'
        f"{''.join(lines)}</svg>"
    )


def _curves(found: Evaluation) -> list[tuple[str, str]]:
    return [("similarity", "Similarity"), ("word_error", "Word error")] if len(found.request.voices) > 1 else []


def _curve(found: Evaluation, key: str) -> str:
    """A figure from the base over the adapters, with its intervals."""
    points = [(voice, figures[key].own) for voice, figures in found.compared.items() if key in figures]
    if not points:
        return ""
    low, high = min(p.low for _, p in points), max(p.high for _, p in points)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return 150 - 130 * (value - low) / span

    step = 560 / max(len(points) - 1, 1)
    path = " ".join(f"{40 + step * i:.0f},{y(p.value):.1f}" for i, (_, p) in enumerate(points))
    bars = "".join(
        f'<line x1="{40 + step * i:.0f}" x2="{40 + step * i:.0f}" y1="{y(p.low):.1f}" y2="{y(p.high):.1f}" '
        f'stroke="var(--accent)" opacity=".5"/><text x="{40 + step * i:.0f}" y="172" text-anchor="middle">'
        f'{html.escape(name.removeprefix("checkpoint-"))}</text><text x="{44 + step * i:.0f}" y="{y(p.value) - 6:.1f}">'
        f"{p.value:.2f}</text>"
        for i, (name, p) in enumerate(points)
    )
    said = ", ".join(f"{name} {p.value:.2f}" for name, p in points)
    return (
        f'<svg viewBox="0 0 660 180" role="img" aria-label="{html.escape(said)}" width="100%">'
        f'<polyline points="{path}" fill="none" stroke="var(--accent)" stroke-width="2"/>{bars}</svg>'
    )


def _settings(found: Evaluation) -> list[tuple[str, str]]:
    request = found.request
    return [
        ("base model", request.model.name_or_path),
        *((voice.name, str(voice.adapter)) for voice in request.voices),
        ("held-out rows", str(len(request.rows))),
        ("takes per row", str(request.seeds)),
        ("guidance", f"{request.cfg_scale:g}"),
        ("solver steps per frame", str(request.num_diffusion_steps)),
        ("cut off at", f"{request.max_length_sec or 0:.1f} s"),
        ("recogniser", found.recogniser_name),
        ("speaker encoder", found.encoder_name),
        ("language", request.language),
        ("recommended by", request.choose_by),
        ("word error of the real clips", f"{found.reference.words.rate:.1%}"),
    ]
