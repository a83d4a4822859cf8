"""Samples of a step are made once for the same weights, whatever stops the run, and heard by all processes."""

import json
from pathlib import Path

import pytest
import soundfile
import torch

from tests.unit.samples.texts import MOVED, TEXTS, WEIGHTS, FixedJudges, NotingSpeaker, samples, text
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.evaluation.words import Errors
from vibevoice_finetune.latents.processes import Processes
from vibevoice_finetune.samples.figures import TakeFigures, together
from vibevoice_finetune.samples.record import read_step, read_steps, weights_digest

FIGURES = TakeFigures("one", Errors(1, 0, 0, 4), Errors(2, 0, 0, 10), 0.75, ("cut off",))


def test_a_step_is_made_once_for_the_same_weights(tmp_path: Path) -> None:
    speaker = NotingSpeaker()
    made = samples(tmp_path, speaker)
    made.at(2, WEIGHTS, [])
    made.at(2, WEIGHTS, [])
    samples(tmp_path, speaker).at(2, WEIGHTS, [])  # a run that goes on
    assert speaker.asked == [["One.", "And two."]]
    assert soundfile.info(tmp_path / "step-2" / "1.flac").duration == 0.5
    made.at(2, MOVED, [])
    made.at(4, WEIGHTS, [])
    assert len(speaker.asked) == 3


def test_other_texts_or_another_base_are_other_samples(tmp_path: Path) -> None:
    speaker = NotingSpeaker()
    samples(tmp_path, speaker).at(0, WEIGHTS, [])
    samples(tmp_path, speaker, texts=(text("Speaker 0: Three."),)).at(0, WEIGHTS, [])
    assert speaker.asked == [["One.", "And two."], ["Three."]]
    assert sorted(path.name for path in (tmp_path / "step-0").glob("*.flac")) == ["1.flac"]  # the old ones are gone


def test_what_was_said_before_a_kill_is_not_said_again(tmp_path: Path) -> None:
    speaker = NotingSpeaker(stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        samples(tmp_path, speaker).at(2, WEIGHTS, [])
    assert read_step(tmp_path, 2) is None
    again = NotingSpeaker()
    samples(tmp_path, again).at(2, WEIGHTS, [])
    assert again.asked == [["And two."]]
    step = read_step(tmp_path, 2)
    assert step is not None
    assert [take.audio for take in step.takes] == ["1.flac", "2.flac"]


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    samples(tmp_path, NotingSpeaker()).at(2, WEIGHTS, [])
    (tmp_path / "step-2" / "sample.json").write_text('{"step": 2')
    (tmp_path / "step-2" / "1.json").write_text("[]")
    again = NotingSpeaker()
    samples(tmp_path, again).at(2, WEIGHTS, [])
    assert again.asked == [["One."]]


def test_the_figures_are_those_of_all_texts(tmp_path: Path) -> None:
    judged = samples(tmp_path, NotingSpeaker(), judges=FixedJudges(FIGURES), judged_by=("a", "en"))
    found = judged.at(2, WEIGHTS, [])
    # 1 of 4 words and 2 of 10 letters are wrong, in each of two samples, both with a fault.
    wanted = {"sample_word_error": 0.25, "sample_letter_error": 0.2, "sample_similarity": 0.75, "sample_unhealthy": 1}
    assert found == pytest.approx(wanted)
    assert judged.at(2, WEIGHTS, []) == found  # read back, for a run that goes on


def test_samples_that_nobody_heard_are_heard_but_not_spoken_again(tmp_path: Path) -> None:
    speaker = NotingSpeaker()
    assert samples(tmp_path, speaker).at(2, WEIGHTS, []) == {}
    found = samples(tmp_path, speaker, judges=FixedJudges(FIGURES), judged_by=("a", "en")).at(2, WEIGHTS, [])
    assert found["sample_similarity"] == 0.75
    assert len(speaker.asked) == 1


def test_errors_are_added_up_before_they_are_divided() -> None:
    short = TakeFigures("", Errors(0, 1, 0, 1), Errors(0, 3, 0, 3), None, ("stopped at once",))
    long = TakeFigures("x", Errors(0, 0, 0, 9), Errors(0, 0, 0, 27), 0.5, ())
    # 1 error in 10 words, though the mean of the rates is one half; the similarity is that of the one that has it.
    assert together([short, long]) == {
        "sample_word_error": 0.1,
        "sample_letter_error": 0.1,
        "sample_unhealthy": 0.5,
        "sample_similarity": 0.5,
    }


def test_without_memory_the_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = NotingSpeaker(stop_after=0, error=torch.OutOfMemoryError("CUDA out of memory"))
    samples(tmp_path, broken).at(2, WEIGHTS, [])
    step = read_step(tmp_path, 2)
    assert step is not None
    assert all("not enough memory" in take.fault for take in step.takes)
    assert "2 of 2 samples could not be spoken" in caplog.text
    with pytest.raises(RuntimeError, match="a defect"):
        samples(tmp_path, NotingSpeaker(stop_after=0, error=RuntimeError("a defect"))).at(4, WEIGHTS, [])


def test_the_page_shows_no_step_beyond_the_present_one(tmp_path: Path) -> None:
    made = samples(tmp_path, NotingSpeaker())
    for step in (0, 2, 10):
        made.at(step, WEIGHTS, [])
    assert [step.step for step in read_steps(tmp_path, 2)] == [0, 2]
    made.at(2, WEIGHTS, [])
    page = (tmp_path / "index.html").read_text()
    assert "step-2/1.flac" in page
    assert "step-10/" not in page


def test_only_the_first_process_speaks_and_all_hear_the_figures(tmp_path: Path) -> None:
    given = []

    def gather(value):
        given.append(value)
        return [{"sample_word_error": 0.5}, None]

    second = NotingSpeaker()
    found = samples(tmp_path, second, processes=Processes(1, 2, gather)).at(2, WEIGHTS, [])
    assert found == {"sample_word_error": 0.5}
    assert (second.asked, given) == ([], [None])


def test_what_stops_the_first_process_stops_all(tmp_path: Path) -> None:
    def gather(value):
        return [value, None]

    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        samples(tmp_path / "file", NotingSpeaker(), processes=Processes(0, 2, gather)).at(2, WEIGHTS, [])


def test_weights_are_told_apart_to_the_last_bit() -> None:
    assert weights_digest(WEIGHTS) != weights_digest(MOVED)
    assert weights_digest(WEIGHTS) == weights_digest({name: WEIGHTS[name].clone() for name in ("b", "a")})
    assert weights_digest({"a": torch.zeros(1)}) != weights_digest({"b": torch.zeros(1)})
    assert len(weights_digest({"a": torch.zeros((), dtype=torch.bfloat16)})) == 24


def test_the_record_says_how_it_was_made(tmp_path: Path) -> None:
    samples(tmp_path, NotingSpeaker()).at(2, WEIGHTS, [])
    record = json.loads((tmp_path / "step-2" / "sample.json").read_text())
    assert record["step"] == 2
    assert [take["duration_sec"] for take in record["takes"]] == [0.5] * len(TEXTS)
