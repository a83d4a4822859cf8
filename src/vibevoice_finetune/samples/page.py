"""The page of a run's samples: each text with its steps side by side.

The page asks for nothing from anywhere: its sounds and pictures lie in the folders beside it, so it works offline and
wherever the folder is copied to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import require
from vibevoice_finetune.samples.record import Step, Take, folder_of
from vibevoice_finetune.samples.script import SampleText

PAGE, TEMPLATE = "index.html", "page.html.j2"
REAL, VOICE = "real", "voice"

FIGURES = {
    "sample_similarity": ("Similarity to the speaker", False),
    "sample_word_error": ("Word error", True),
    "sample_letter_error": ("Letter error", True),
    "sample_unhealthy": ("Samples with a fault", True),
}
"""How a figure is called, and whether it is shown as a percentage."""


def page(texts: Sequence[SampleText], steps: Sequence[Step]) -> str:
    """The page as HTML.

    Args:
        texts: what is said.
        steps: with a take for each text, in order.

    Raises:
        UserError: jinja2 is not installed.
    """
    jinja2: Any = require("evaluate", "jinja2")
    template = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    names = [name for name in FIGURES if any(name in step.figures for step in steps)]
    rendered: str = (
        jinja2.Environment(autoescape=True)
        .from_string(template)
        .render(
            last=steps[-1].step if steps else 0,
            count=len(steps),
            figures=[FIGURES[name][0] for name in names],
            rows=[
                {"step": step.step, "cells": [_shown(step.figures, name) for name in names]}
                for step in steps
                if step.figures
            ],
            texts=[
                {
                    "number": number + 1,
                    "text": text.text,
                    "real": f"{REAL}/{number + 1}" if text.real is not None else None,
                    "voice": f"{VOICE}/{number + 1}" if text.script.voices else None,
                    "takes": [_take(step, step.takes[number]) for step in steps if number < len(step.takes)],
                }
                for number, text in enumerate(texts)
            ],
        )
    )
    return rendered


def _take(step: Step, take: Take) -> dict[str, Any]:
    folder = folder_of(Path(), step.step).as_posix()
    notes = [f"{take.duration_sec:.1f} s"] if take.audio else []
    if take.similarity is not None:
        notes.append(f"similarity {take.similarity:.2f}")
    if take.word_error is not None:
        notes.append(f"word error {take.word_error:.0%}")
    return {
        "name": "base model" if step.step == 0 else f"step {step.step:,}",
        "audio": f"{folder}/{take.audio}" if take.audio else None,
        "picture": f"{folder}/{take.picture}" if take.picture else None,
        "notes": ", ".join(notes),
        "heard": take.heard,
        "faults": ", ".join(take.signs) or ("" if take.ended or take.fault else "ran to the length limit"),
        "fault": take.fault,
    }


def _shown(figures: Mapping[str, float], name: str) -> str:
    if name not in figures:
        return ""
    return f"{figures[name]:.1%}" if FIGURES[name][1] else f"{figures[name]:.3f}"
