"""What an evaluation says and the page that says it, from made takes and real audio."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from tests.unit.evaluation.test_compare import ROWS, takes
from tests.unit.preparation.recording import sentences
from vibevoice_finetune.audio.source import parse_audio
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.evaluation.choose import choose
from vibevoice_finetune.evaluation.compare import compare
from vibevoice_finetune.evaluation.evaluate import (
    BASE,
    Evaluation,
    EvaluationRequest,
    Forgetting,
    with_voice_prompts,
)
from vibevoice_finetune.evaluation.judge import Judged, Reference
from vibevoice_finetune.evaluation.report import write_report
from vibevoice_finetune.evaluation.speak import Voice
from vibevoice_finetune.evaluation.verdict import overall, recommendation
from vibevoice_finetune.evaluation.verdict import sentences as verdict
from vibevoice_finetune.evaluation.words import Errors
from vibevoice_finetune.generation.generate import ModelSource


def rows(count: int) -> tuple[Row, ...]:
    found = []
    for number, (text, path) in enumerate(sentences("alpha")[:count]):
        where = f"rows.jsonl:{number + 1}"
        found.append(Row(f"Speaker 0: {text}", parse_audio(str(path), None, where), None, "alpha", where))
    return tuple(found)


def evaluation(judged: list[Judged], *names: str, output: Path = Path("out")) -> Evaluation:
    """Three rows are enough: what is judged was made for twenty, of which the page shows those that there are."""
    request = EvaluationRequest(
        ModelSource("microsoft/VibeVoice-1.5B"), tuple(Voice(name, f"out/{name}") for name in names), rows(3), output, 1
    )
    unit = np.ones(2, dtype=np.float32) / np.float32(np.sqrt(2))
    reference = Reference({"alpha": unit}, 0.91, None, Errors(1, 0, 0, 100), [None] * 3, [3.0] * 3)
    choice = choose(judged, list(names)) if names else None
    return Evaluation(request, reference, tuple(judged), compare(judged, BASE), choice, "moonshine", "CAM++")


def test_a_good_fine_tune_in_plain_words() -> None:
    found = evaluation(takes(BASE, 0.71, 1) + takes("lora", 0.83, 1, seed=1), "lora")
    similarity, words = verdict(found)
    assert re.fullmatch(r"Closer to the speaker: similarity 0\.7\d → 0\.8\d of a possible 0\.91\.", similarity)
    assert words == "As easy to understand: word error 10 % → 10 %."
    assert overall(found) == "better"
    assert recommendation(found) == "", "there is nothing to choose from"


def test_a_bad_one_is_called_bad() -> None:
    found = evaluation(takes(BASE, 0.71, 1) + takes("lora", 0.5, 8, seed=1, sign="repeats itself"), "lora")
    similarity, faults = verdict(found)
    assert similarity.startswith("Further from the speaker")
    assert faults == (
        "More takes repeat themselves: 0 % → 50 % of the takes, and word error rises: 10 % → 80 %; stay with the base "
        "model, or train again with a lower learning rate or fewer steps."
    )
    assert overall(found) == "worse"


def test_better_and_worse_at_once() -> None:
    """The issue's own example: closer, but the ends of sentences are lost."""
    judged = takes(BASE, 0.71, 1) + takes("a", 0.8, 1, seed=1) + takes("b", 0.9, 1, seed=2, sign="last words missing")
    found = evaluation(judged, "a", "b")
    assert overall(found) == "mixed"
    assert verdict(found)[1] == "More sentences lose their last words: 0 % → 50 % of the takes; use b."


def test_no_difference() -> None:
    found = evaluation(takes(BASE, 0.7, 1) + takes("lora", 0.7, 1, seed=1), "lora")
    assert overall(found) == "inside the noise"
    assert verdict(found)[0].startswith("No closer: similarity 0.")


def test_a_checkpoint_is_recommended_with_its_reason() -> None:
    judged = takes(BASE, 0.5, 1) + takes("checkpoint-1", 0.8, 1, seed=1) + takes("checkpoint-2", 0.81, 1, seed=2)
    found = evaluation(judged, "checkpoint-1", "checkpoint-2")
    assert recommendation(found).startswith("Use checkpoint-1: the earliest that is not worse than checkpoint-2")
    assert verdict(found)[1].endswith("; use checkpoint-1.")


def test_what_other_voices_lost_is_said() -> None:
    judged = takes(BASE, 0.7, 1) + takes("lora", 0.8, 1, seed=1)
    others = takes(BASE, 0.7, 1) + takes("lora", 0.7, 6, seed=1, sign="repeats itself")
    found = evaluation(judged, "lora")
    kept = Forgetting(tuple(judged), compare(judged, BASE), found.reference, ROWS)
    lost = Forgetting(tuple(others), compare(others, BASE), found.reference, ROWS)
    assert len(verdict(replace(found, forgetting=kept))) == 2
    assert verdict(replace(found, forgetting=lost))[2] == (
        "Other voices suffer: their word error 10 % → 60 %, takes with a fault 0 % → 50 %."
    )


def test_rows_without_prompts_get_another_clip_of_their_speaker() -> None:
    given = rows(3)
    found = with_voice_prompts(given)
    assert [row.voice_prompts for row in found] == [(given[1].audio,), (given[2].audio,), (given[0].audio,)]
    other = replace(given[1], speaker="ben")
    assert with_voice_prompts([given[0], other])[0].voice_prompts is None
    own = replace(given[0], voice_prompts=(given[2].audio,))
    assert with_voice_prompts([own, given[1]])[0] == own


def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    judged = takes(BASE, 0.71, 1) + takes("a<b>", 0.83, 1, seed=1)
    page = write_report(evaluation(judged, "a<b>", output=tmp_path), tmp_path).read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"""(src|href)=["'](?!data:|\#)""", page), "nothing is loaded from anywhere"
    assert "a&lt;b&gt;" in page
    assert "<h1>It helped</h1>" in page
    assert "a<b>" not in page.replace('"a\\u003cb\\u003e"', "")
    assert page.count("data:audio/ogg") >= 3, "the real clips"
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert figures["figures"]["a<b>"]["similarity"]["verdict"] == "better"
    assert figures["judges"] == {"recogniser": "moonshine", "speaker_encoder": "CAM++"}
    assert "| speaker similarity |" in (tmp_path / "report.md").read_text(encoding="utf-8")
