"""The page of an evaluation: one file with everything in it.

It asks for nothing from anywhere: audio, pictures, styles and script are inside, and its content policy forbids the
rest.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.errors import require
from vibevoice_finetune.evaluation.compare import BY_KEY, FIGURES, Compared, Figure
from vibevoice_finetune.evaluation.evaluate import BASE, Evaluation
from vibevoice_finetune.evaluation.judge import Judged, spoken_text
from vibevoice_finetune.evaluation.page.pictures import curve, scale, sound, spectrogram
from vibevoice_finetune.evaluation.verdict import overall, recommendation, sentences, shown, shown_value

TEMPLATE = "report.html.j2"
MOST_ROWS = 12
"""Rows to listen to on the page; of 4 s each and three models, the page has some 3 MB."""

CURVES = ("similarity", "word_error", "unhealthy", "diffusion_4")
TILES = ("similarity", "word_error", "unhealthy")
TITLES = {
    "better": "It helped",
    "worse": "It did harm",
    "mixed": "Better and worse",
    "inside the noise": "No difference that these rows can show",
    "base": "The base model alone",
}


def page(found: Evaluation, settings: Sequence[tuple[str, str]]) -> str:
    """The page as HTML.

    Args:
        found: the evaluation.
        settings: names and values for its last section.
    """
    jinja2: Any = require("evaluate", "jinja2")
    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    voices = list(found.compared)
    listening = _listening(found)
    forgetting = found.forgetting
    rendered: str = (
        jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=TITLES[overall(found)],
            outcome=overall(found),
            verdict=sentences(found),
            recommended=recommendation(found),
            warnings=found.warnings,
            rows=len(found.request.rows),
            seeds=found.request.seeds,
            voices=voices,
            tiles=_tiles(found),
            groups=_groups(found.compared, found.reference.figures),
            forgetting_groups=[] if forgetting is None else _groups(forgetting.compared, forgetting.reference.figures),
            forgetting_rows=0 if forgetting is None else forgetting.num_rows,
            scale=_scale(found),
            encoder=found.encoder_name,
            recogniser=found.recogniser_name,
            curves=_curves(found),
            listening=listening,
            pairs=_pairs(found, listening),
            digest=hashlib.sha256(repr([j.said.audio for j in found.judged]).encode()).hexdigest()[:16],
            settings=settings,
        )
    )
    return rendered


def _tiles(found: Evaluation) -> list[dict[str, str | None]]:
    """The figures that matter most, base and recommended model side by side."""
    if found.choice is None:
        return []
    own, base = found.compared[found.choice.voice], found.compared[BASE]
    return [
        {
            "name": BY_KEY[key].name,
            "before": shown_value(base[key].own.value, BY_KEY[key]),
            "after": shown_value(own[key].own.value, BY_KEY[key]),
            "verdict": own[key].verdict,
            "real": _real(found.reference.figures, BY_KEY[key]),
        }
        for key in TILES
        if key in own and key in base
    ]


def _groups(compared: Mapping[str, Mapping[str, Compared]], real: Mapping[str, float]) -> list[dict[str, Any]]:
    """The figures under their headings; one that no model has is left out."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for figure in FIGURES:
        cells = [figures.get(figure.key) for figures in compared.values()]
        if any(cells):
            line = {"name": figure.name, "cells": [_cell(cell) for cell in cells], "real": _real(real, figure)}
            groups.setdefault(figure.group, []).append(line)
    return [{"name": name, "lines": lines} for name, lines in groups.items()]


def _cell(one: Compared | None) -> dict[str, str | None]:
    if one is None:
        return {"value": "", "interval": "", "verdict": None}
    value = shown_value(one.own.value, one.figure)
    return {"value": value, "interval": shown(one.own, one.figure).removeprefix(value).strip(), "verdict": one.verdict}


def _real(real: Mapping[str, float], figure: Figure) -> str:
    return shown_value(real[figure.key], figure) if figure.key in real else ""


def _scale(found: Evaluation) -> str:
    """Floor, models and ceiling on one line."""
    marks = [
        (figures["similarity"].own.value, voice, "model")
        for voice, figures in found.compared.items()
        if "similarity" in figures
    ]
    reference = found.reference
    if reference.floor is not None:
        marks.append((reference.floor, "other speakers", "real"))
    if reference.ceiling is not None:
        marks.append((reference.ceiling, "real clips", "real"))
    return scale(marks)


def _curves(found: Evaluation) -> list[dict[str, str]]:
    if len(found.request.voices) < 2:
        return []
    curves = []
    for figure in map(BY_KEY.__getitem__, CURVES):
        points = [(voice, own[figure.key].own) for voice, own in found.compared.items() if figure.key in own]
        if len(points) > 1:
            curves.append({"name": figure.name, "svg": curve(points, as_percent=figure.as_percent)})
    return curves


def _listening(found: Evaluation) -> list[dict[str, Any]]:
    """Rows with their players: the real clip, the base, the adapters; the first take of each."""
    first = {(one.said.row, one.said.voice): one for one in found.judged if one.said.seed == 0}
    shown_rows = []
    for number, row in enumerate(found.request.rows[:MOST_ROWS]):
        takes = [_take("real clip", load_audio(row.audio))]
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
        "signs": [*judged.signs, *judged.sound_faults],
        "fault": judged.said.fault,
    }


def _take(name: str, samples: NDArray[np.float32]) -> dict[str, Any]:
    has_sound = len(samples) > 0
    return {
        "name": name,
        "audio": sound(samples) if has_sound else None,
        "picture": spectrogram(samples) if has_sound else None,
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
