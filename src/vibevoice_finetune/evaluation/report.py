"""What an evaluation leaves behind: a page, the same figures as JSON, and a block for a model card."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import require
from vibevoice_finetune.evaluation.compare import BY_KEY, Compared
from vibevoice_finetune.evaluation.evaluate import Evaluation
from vibevoice_finetune.evaluation.judge import as_json
from vibevoice_finetune.evaluation.page.page import page
from vibevoice_finetune.evaluation.verdict import overall, recommendation, sentences, shown
from vibevoice_finetune.files.atomic import write_file, write_json

PAGE, FIGURES_FILE, CARD_FILE = "index.html", "report.json", "report.md"
CARD_KEYS = ("similarity", "word_error", "letter_error", "words_deleted", "words_inserted", "unhealthy")


def write_report(found: Evaluation, output: Path) -> Path:
    """Write `index.html`, `report.json` and `report.md`; where the page is."""
    require("evaluate", "matplotlib")
    write_json(output / FIGURES_FILE, figures_as_json(found))
    write_file(output / CARD_FILE, card_block(found))
    write_file(output / PAGE, page(found, _settings(found)))
    return output / PAGE


def figures_as_json(found: Evaluation) -> dict[str, Any]:
    """All figures and takes as plain values."""
    forgetting = found.forgetting
    return {
        "outcome": overall(found),
        "verdict": sentences(found),
        "recommended": None if found.choice is None else asdict(found.choice),
        "judges": {"recogniser": found.recogniser_name, "speaker_encoder": found.encoder_name},
        "real_clips": {
            "ceiling": found.reference.ceiling,
            "floor": found.reference.floor,
            **found.reference.figures,
            "word_error": found.reference.words.rate,
        },
        "figures": _compared_as_json(found.compared),
        "forgetting": None if forgetting is None else _compared_as_json(forgetting.compared),
        "takes": [as_json(one) for one in found.judged],
        "settings": dict(_settings(found)),
        "warnings": list(found.warnings),
    }


def _compared_as_json(compared: dict[str, dict[str, Compared]]) -> dict[str, Any]:
    return {voice: {key: _figure_as_json(one) for key, one in figures.items()} for voice, figures in compared.items()}


def _figure_as_json(one: Compared) -> dict[str, Any]:
    against = None if one.against_base is None else asdict(one.against_base)
    return {"value": asdict(one.own), "against_base": against, "verdict": one.verdict}


def card_block(found: Evaluation) -> str:
    """A block for a model card."""
    advice = recommendation(found)
    lines = ["## Evaluation", "", " ".join(sentences(found) + ([advice] if advice else [])), ""]
    voices = list(found.compared)
    lines += [f"| figure | {' | '.join(voices)} |", f"| --- |{' --- |' * len(voices)}"]
    for key in CARD_KEYS:
        cells = [found.compared[voice].get(key) for voice in voices]
        if any(cells):
            figure = BY_KEY[key]
            lines.append(f"| {figure.name} | {' | '.join(shown(c.own, figure) if c else '' for c in cells)} |")
    count, seeds = len(found.request.rows), found.request.seeds
    takes = f"{seeds} take{'s' if seeds != 1 else ''} each"
    judges = f"Recogniser: {found.recogniser_name}; speaker encoder: {found.encoder_name}."
    lines += ["", f"{count} held-out sentences, {takes}; 95 % intervals. {judges}", ""]
    return "\n".join(lines)


def _settings(found: Evaluation) -> list[tuple[str, str]]:
    request = found.request
    return [
        ("base model", request.model.name_or_path),
        *((voice.name, str(voice.adapter)) for voice in request.voices),
        ("held-out rows", str(len(request.rows))),
        ("takes per row", str(request.seeds)),
        ("rows of other voices", str(0 if found.forgetting is None else found.forgetting.num_rows)),
        ("guidance", f"{request.cfg_scale:g}"),
        ("solver steps per frame", str(request.num_diffusion_steps)),
        ("rows spoken at the same time", str(request.batch_size)),
        ("cut off at", f"{request.max_length_sec or 0:.1f} s"),
        ("recogniser", found.recogniser_name),
        ("speaker encoder", found.encoder_name),
        ("language", request.language),
        ("recommended by", request.choose_by),
        ("word error of the real clips", f"{found.reference.words.rate:.1%}"),
    ]
