"""Training does not notice that samples are spoken, nor a run that it was killed while they were."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.crash.child import changes, finish, start
from tests.crash.kills import FLAGS, assert_same_end
from tests.processes import adapter, train_words, write_rows

SETTINGS = (*FLAGS, "--save_total_limit", 100, "--max_steps", 4, "--train_diffusion_head", "True")
SAMPLES = ("--sample_steps", 2, "--sample_script")


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows")


@pytest.fixture
def script(jsonl: Path) -> Path:
    """Two short clips, one with a voice; the random model speaks on to three times the longer one's 5 frames."""
    lines = [
        {"text": "Speaker 0: One.", "audio": "0.wav", "voice_prompts": ["0-voice.wav"]},
        {"text": "Speaker 0: Hi.", "audio": "2.wav"},
    ]
    path = jsonl.parent / "script.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(jsonl: Path, out: Path, *extra: object, kill_at: int | None = None) -> int:
    log = out.with_suffix(".log")
    return finish(start(train_words(jsonl, out, *SETTINGS, *extra), out / "samples", log, kill_at), 300)


def said(out: Path) -> dict[str, int]:
    """The files of the samples with the moment of their making."""
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*.flac")}


def test_the_weights_are_the_same_with_and_without_samples(jsonl: Path, script: Path, tmp_path: Path) -> None:
    """With dropout and an average of the weights, and the diffusion head trained whole."""
    assert run(jsonl, tmp_path / "without") == 0, (tmp_path / "without.log").read_text()
    assert run(jsonl, tmp_path / "with", *SAMPLES, script) == 0, (tmp_path / "with.log").read_text()
    one, other = adapter(tmp_path / "without"), adapter(tmp_path / "with")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    folders = {path.parent.name for path in (tmp_path / "with" / "samples").glob("step-*/sample.json")}
    assert folders == {"step-0", "step-2", "step-4"}


@pytest.mark.slow
def test_killed_during_a_sample_it_goes_on_and_makes_nothing_twice(jsonl: Path, script: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert run(jsonl, whole, *SAMPLES, script) == 0
    total = changes(whole.with_suffix(".log"))
    for kill_at in range(total // 3, total, total // 6):  # during the second and the third of three samples
        out = tmp_path / f"killed-{kill_at}"
        assert run(jsonl, out, *SAMPLES, script, kill_at=kill_at) == -signal.SIGKILL
        before = said(out / "samples")
        assert "step-0/1.flac" in before
        assert run(jsonl, out, *SAMPLES, script, "--resume_from_checkpoint", "True") == 0
        after = said(out / "samples")
        assert before.items() <= after.items()
        assert after.keys() == said(whole / "samples").keys()
        assert_same_end(whole, out)
