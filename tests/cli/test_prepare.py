"""`prepare` from the command line, in this process: what it writes and says, and every mistake in one line."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.preparation.recording import RATE_HZ, Sentence, record
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.files.locks import locked

pytest.importorskip("silero_vad")
pytest.importorskip("jinja2")

ONE_PROCESS = ["--processes", "1", "--validation_share", "0"]
Lay = Callable[..., Path]


def label(path: Path, truth: list[Sentence], *, late_sec: float = 0.0) -> None:
    """Audacity's labels beside a recording."""
    lines = [f"{s.start_sec + late_sec:.2f}\t{s.end_sec + late_sec:.2f}\t{s.text}" for s in truth]
    path.with_suffix(".labels.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A folder with one recording of three sentences and its labels."""
    source = tmp_path / "source"
    source.mkdir()
    label(source / "talk.wav", record(source / "talk.wav", ["alpha"], 3))
    return source


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_clean_recording_loses_nothing(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert main(["prepare", str(talk), "--output", str(output), *ONE_PROCESS]) == 0
    out = capsys.readouterr().out
    assert "found: 1 long recording, 1 with timed text" in out
    assert "\n1 recording (" in out
    assert "rows: 3 for training" in out
    assert "warning" not in out
    assert "not used" not in out
    assert len(rows(output / "train.jsonl")) == 3
    assert (output / "rejected.jsonl").read_text() == ""
    clips = json.loads((output / "recordings" / "talk.json").read_text())["clips"]
    for clip in clips:
        assert clip["figures"]["signal_to_noise_db"] > 30
        assert clip["figures"]["bandwidth_hz"] > 10_000
        assert clip["figures"]["clipped_share"] == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:audio/mpeg') == 3
    assert "http" not in page.replace("http-equiv", "")
    for row in rows(output / "train.jsonl"):
        assert row["audio"] in page
        assert row["text"].removeprefix("Speaker 0: ") in page


def test_what_validate_finds_is_counted_or_leaves_the_clip_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    truth = record(source / "noisy.wav", ["alpha"], 2)
    samples, rate_hz = soundfile.read(source / "noisy.wav")
    noise = 0.3 * np.sqrt(np.mean(samples**2)) * np.random.default_rng(0).standard_normal(len(samples))
    soundfile.write(source / "noisy.wav", samples + noise, rate_hz)
    label(source / "noisy.wav", truth)
    for name, text in (("quiet", "Speaker 3: A clean clip."), ("token", "<|vision_start|> and more.")):
        record(source / f"{name}.wav", ["alpha"], 1)
        (source / f"{name}.txt").write_text(text)
    words = ["prepare", str(source), "--output", str(output), *ONE_PROCESS]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "not used: 1 × a control token of the model inside the text" in out
    assert "warning: noise, 2 clips: noise in the pauses. What to do: " in out
    assert len(rows(output / "train.jsonl")) == 3
    assert "vision_start" in rows(output / "rejected.jsonl")[0]["reason"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "noise only" in page
    assert "&lt;|vision_start|&gt;" in page
    assert main([*words, "--reject", "noise"]) == 0
    out = capsys.readouterr().out
    assert "3 of them done before" in out, "other rules for what is kept need no other clips"
    assert "not used: 2 × noise in the pauses" in out
    assert [(row["text"], row["audio"]) for row in rows(output / "train.jsonl")] == [
        ("Speaker 0: A clean clip.", "clips/quiet/0000.flac")
    ]
    assert "is not a warning; there are speaking-rate" in refused([*words, "--reject", "noise,loud"], capsys)


def test_what_cannot_be_prepared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    words = ["prepare", str(source), "--output", str(tmp_path / "out"), *ONE_PROCESS]
    assert "no audio was found" in refused(words, capsys)
    (source / "notes.md").write_text("Nothing to hear.")
    assert "no audio was found" in refused(words, capsys)
    assert "there is no such file or folder" in refused(["prepare", "nowhere", "--output", "x"], capsys)
    assert "--format dataset" in refused(["prepare", "me/voices", "--output", "x"], capsys)
    for wrong in (["--format", "vctk"], ["--min_sec", "30"], ["--shard", "2/2"], ["--shard", "0/2", "--ray"]):
        refused([*words, *wrong], capsys)


def test_noise_and_half_a_file_and_late_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    truth = record(source / "whole.wav", ["alpha"], 3)
    whole = (source / "whole.wav").read_bytes()
    (source / "whole.wav").unlink()
    noise = 0.1 * np.random.default_rng(0).standard_normal(10 * RATE_HZ)

    def line(name: str) -> str:
        return refused(["prepare", str(source), "--output", str(tmp_path / name), *ONE_PROCESS], capsys)

    soundfile.write(source / "noise.wav", noise, RATE_HZ)
    (source / "noise.labels.txt").write_text("0\t5\tNobody says this.")
    assert "nothing can be used: noise: no speech was found" in line("noise")
    (source / "noise.wav").unlink()
    (source / "cut.wav").write_bytes(whole[: len(whole) // 2])
    label(source / "cut.wav", truth)
    assert "nothing can be used: cut: cut short: its header promises" in line("cut")
    (source / "cut.wav").unlink()
    (source / "late.wav").write_bytes(whole)
    label(source / "late.wav", truth, late_sec=40.0)
    assert "s too late for the speech; if so, add --text_offset_sec -40" in line("late")
    (source / "late.wav").unlink()
    (source / "good.wav").write_bytes(whole)
    label(source / "good.wav", truth)
    (source / "torn.wav").write_bytes(whole[: len(whole) // 2])
    label(source / "torn.wav", truth)
    assert main(["prepare", str(source), "--output", str(tmp_path / "both"), *ONE_PROCESS]) == 0
    out = capsys.readouterr().out
    assert "not used: torn: cut short: its header promises" in out
    assert len(rows(tmp_path / "both" / "train.jsonl")) == 3


@contextmanager
def no_room_above(num_bytes: int) -> Iterator[None]:
    """Files cannot become longer, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_names_the_file_and_nothing_is_lost(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    words = ["prepare", str(talk), "--output", str(output), *ONE_PROCESS]
    with no_room_above(20_000):
        assert "clips/talk/0000.flac: cannot be written (File too large)" in refused(words, capsys)
    assert [path for path in output.rglob("*") if path.is_file() and path.name not in ("source.txt", ".lock")] == []
    assert main(words) == 0
    monkeypatch.chdir(output)
    capsys.readouterr()
    with no_room_above(1_000):
        said = refused(["validate", "train.jsonl", "--report", "page.html"], capsys)
    assert "page.html: cannot be written (File too large)" in said
    assert not Path("page.html").exists()


def test_places_that_are_in_use_or_in_each_other(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    inside = refused(["prepare", str(talk), "--output", str(talk / "out"), *ONE_PROCESS], capsys)
    assert "lies inside the source" in inside
    (tmp_path / "same").symlink_to(talk)
    inside = refused(["prepare", str(tmp_path / "same"), "--output", str(talk / "out"), *ONE_PROCESS], capsys)
    assert "lies inside the source" in inside
    with locked(output, "prepare"):
        assert "out" in refused(["prepare", str(talk), "--output", str(output), *ONE_PROCESS], capsys)
    assert not (output / "train.jsonl").exists()


def test_names_and_links_of_all_kinds(talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("two\nlines", "🎙 smile", "loop"):
        if name != "loop":
            shutil.copy(talk / "talk.wav", talk / f"{name}.wav")
            shutil.copy(talk / "talk.labels.txt", talk / f"{name}.labels.txt")
    (talk / "loop.wav").symlink_to(talk / "loop.wav")
    (talk / "around").symlink_to(talk)
    output = tmp_path / "out"
    assert main(["prepare", str(talk), "--output", str(output), *ONE_PROCESS]) == 0
    found = rows(output / "train.jsonl")
    assert len(found) == 9
    assert all((output / row["audio"]).is_file() and "\n" not in row["audio"] for row in found)
    assert "found: 3 long recordings" in capsys.readouterr().out
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "no such file" in refused(["prepare", str(tmp_path / "circle"), "--output", str(output)], capsys)
    said = refused(["prepare", str(talk), "--output", str(tmp_path / "circle"), *ONE_PROCESS], capsys)
    assert "circle/source.txt: cannot be written" in said


def test_a_folder_that_cannot_be_read_is_said(
    talk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    closed = talk / "closed"
    closed.mkdir()
    scandir = os.scandir

    def scan(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    said = refused(["prepare", str(talk), "--output", str(tmp_path / "out"), *ONE_PROCESS], capsys)
    assert "closed: cannot be read (Permission denied); check its permissions" in said


@pytest.mark.slow
def test_from_recordings_to_speech_without_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    talk = source / "talk.wav"
    label(talk, record(talk, ["alpha"], 12, seed=0))
    assert main(["prepare", str(source), "--output", str(data), "--processes", "1", "--validation_share", "0.3"]) == 0
    capsys.readouterr()
    lists = [str(data / "train.jsonl"), "--validation_jsonl", str(data / "validation.jsonl")]
    assert main(["validate", *lists, "--deep"]) == 0
    assert " 0 errors, 0 warnings." in capsys.readouterr().out
    model = ["--model_name_or_path", "small"]
    run = ["--output_dir", str(tmp_path / "run"), "--do_train", "--do_eval", "--eval_strategy", "steps"]
    steps = ["--max_steps", "2", "--eval_steps", "2", "--per_device_train_batch_size", "2", "--report_to", "none"]
    assert main(["train", *model, "--train_jsonl", *lists, *run, *steps, "--use_cpu", "True"]) == 0
    spoken = tmp_path / "spoken.wav"
    prompt = data / rows(data / "train.jsonl")[0]["audio"]
    text = "The red door is near the station."
    words = ["--adapter", str(tmp_path / "run" / "lora"), "--text", text, "--voice", str(prompt)]
    fast = ["--num_diffusion_steps", "2", "--max_length_sec", "6", "--dtype", "float32", "--device", "cpu"]
    assert main(["generate", *model, *words, "--output", str(spoken), *fast]) == 0
    assert soundfile.info(spoken).duration > 1.0
