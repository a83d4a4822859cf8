"""What the base model says becomes a data set; what did not end well does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vibevoice_finetune import rehearsal
from vibevoice_finetune.errors import ArgumentError, DataError
from vibevoice_finetune.evaluation.speak import Said
from vibevoice_finetune.generation.generate import ModelSource
from vibevoice_finetune.rehearsal import RehearsalRequest, find_voices, read_texts, rehearse

RATE_HZ = 24_000


def speech(seconds: float) -> np.ndarray:
    """A tone with a faded end, which no sign of a bad ending is seen in."""
    samples = 0.3 * np.sin(np.arange(round(seconds * RATE_HZ)) / 20)
    samples[-2400:] *= np.linspace(1, 0, 2400)
    return samples.astype(np.float32)


@pytest.fixture
def request_(tmp_path: Path) -> RehearsalRequest:
    (tmp_path / "voices").mkdir()
    for name, suffix in (("anna", "wav"), ("ben", "flac")):
        soundfile.write(tmp_path / "voices" / f"{name}.{suffix}", speech(0.5), RATE_HZ)
    (tmp_path / "voices/notes.txt").write_text("not a recording")
    (tmp_path / "texts.txt").write_text("The kettle was warm.\n\nSpeaker 3: Come in.\nGood night, all of you.\n")
    return RehearsalRequest(ModelSource("small"), tmp_path / "texts.txt", tmp_path / "voices", tmp_path / "rehearsal")


def saying(*takes: tuple[np.ndarray | None, bool]):
    """Stands where the model speaks: writes these takes, each with whether it ended by itself."""

    def say_all(model, voices, rows, seeds, folder, settings, progress):
        folder.mkdir(parents=True)
        said = []
        for number, (samples, ended) in enumerate(takes):
            path = folder / f"{number}.wav"
            if samples is not None:
                soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
            said.append(Said("base", number, 42, None if samples is None else path, ended, "", 0.1, 1.0))
        return said

    return say_all


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_ended_well_is_a_data_set(request_: RehearsalRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts go to two voices in turn; the second runs to the limit."""
    monkeypatch.setattr(rehearsal, "say_all", saying((speech(2), True), (speech(2), False), (speech(3), True)))
    found = rehearse(request_)
    out = request_.output
    assert lines(out / "train.jsonl") == [
        {
            "text": "Speaker 0: The kettle was warm.",
            "audio": "clips/000000.flac",
            "voice_prompts": ["voices/anna.flac"],
            "speaker": "anna",
        },
        {
            "text": "Speaker 0: Good night, all of you.",
            "audio": "clips/000002.flac",
            "voice_prompts": ["voices/anna.flac"],
            "speaker": "anna",
        },
    ]
    assert [(line["where"], line["fault"]) for line in lines(out / "left_out.jsonl")] == [
        ("texts.txt:3", "ran to the length limit")
    ]
    assert len(soundfile.read(out / "clips/000002.flac")[0]) == 3 * RATE_HZ
    assert sorted(path.name for path in (out / "voices").iterdir()) == ["anna.flac"], "ben said nothing fit to learn"
    assert not (out / "takes").exists()
    assert (
        found.line() == f"2 rows, 0.1 min in 1 voice; 1 left out (1 × ran to the length limit): {out / 'train.jsonl'}"
    )


def test_a_recogniser_hears_that_the_end_is_missing(
    request_: RehearsalRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "say_all", saying(*[(speech(2), True)] * 3))
    monkeypatch.setattr(rehearsal, "load_recogniser", lambda *_: lambda *_: "the kettle was warm")
    request = RehearsalRequest(request_.model, request_.texts, request_.voices, request_.output, recogniser="moonshine")
    found = rehearse(request)
    assert (found.rows, dict(found.left_out)) == (2, {"last words missing": 1})  # two words suffice nobody's end


def test_nothing_fit_to_learn_is_an_error_and_keeps_what_was_said(
    request_: RehearsalRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "say_all", saying((None, True), (speech(2), False), (speech(2), False)))
    with pytest.raises(DataError, match=r"nothing that the model said ended well \(nothing was said, ran to the"):
        rehearse(request_)
    assert not (request_.output / "train.jsonl").exists()
    assert (request_.output / "takes/1.wav").exists()


def test_a_data_set_that_is_there_is_not_replaced(request_: RehearsalRequest) -> None:
    request_.output.mkdir()
    (request_.output / "train.jsonl").write_text("mine")
    with pytest.raises(ArgumentError, match="rehearsal: holds a data set already"):
        rehearse(request_)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "holds no text; write one on each line"),
        (b"\xff\xfe", "cannot be read .is not UTF-8"),
        ("Hello.\nSpeaker 0: Come in. Speaker 1: Thanks.", r"texts.txt:2: "),
    ],
)
def test_texts_that_cannot_be_said(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ArgumentError, DataError), match=message):
        read_texts(path)
    with pytest.raises(ArgumentError, match="a text file is expected"):
        read_texts(tmp_path)


def test_voices_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="a folder is expected with a recording of each voice"):
        find_voices(tmp_path)
    with pytest.raises(ArgumentError, match="a folder is expected"):
        find_voices(tmp_path / "none")
    for suffix in ("wav", "flac"):
        soundfile.write(tmp_path / f"anna.{suffix}", speech(0.2), RATE_HZ)
    with pytest.raises(ArgumentError, match="two recordings are called anna"):
        find_voices(tmp_path)
