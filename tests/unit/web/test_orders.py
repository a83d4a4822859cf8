import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.web import orders
from vibevoice_finetune.web.orders import SpeakOrder
from vibevoice_finetune.web.workspace import Project, Workspace

PLAN: Any = SimpleNamespace(model="small", values={"max_steps": 5})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Workspace(tmp_path).create("anna")
    (project.folder / "data").mkdir()
    for name in ("train", "validation"):
        (project.folder / "data" / f"{name}.jsonl").write_text('{"text": "Speaker 0: A.", "audio": "a.flac"}\n')
    return project


def value(words: tuple[str, ...], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_without_recordings_there_is_nothing_to_cut(project: Project) -> None:
    with pytest.raises(UserError, match="Upload recordings first"):
        orders.prepare_job(project, "none", "en")


def test_clips_are_made_and_looked_at(project: Project) -> None:
    (project.recordings / "a.wav").write_bytes(b"RIFF")
    job = orders.prepare_job(project, "none", "de")
    assert [words[0] for words in job.commands] == ["prepare", "validate"]
    assert value(job.commands[0], "--language") == "de"


def test_a_training_goes_on_with_what_it_was_begun_with(project: Project) -> None:
    (words,) = orders.train_job(project, PLAN, anew=False).commands
    assert value(words, "--output_dir") == str(project.folder / "run")
    assert "--resume_from_checkpoint" not in words
    (project.folder / "run").mkdir()
    other: Any = SimpleNamespace(model="other", values={"max_steps": 9})
    (words,) = orders.train_job(project, other, anew=False).commands
    assert (value(words, "--model_name_or_path"), value(words, "--max_steps")) == ("small", "5")
    assert value(words, "--resume_from_checkpoint") == "True"


def test_another_run_lies_beside_the_first(project: Project) -> None:
    orders.train_job(project, PLAN, anew=False)
    (project.folder / "run").mkdir()
    other: Any = SimpleNamespace(model="other", values={})
    (words,) = orders.train_job(project, other, anew=True).commands
    assert value(words, "--output_dir") == str(project.folder / "run-2")
    assert value(words, "--model_name_or_path") == "other"


def test_nothing_is_judged_spoken_or_merged_before_a_training(project: Project) -> None:
    order = SpeakOrder("Hello.", "", "", 1.0, 42)
    for ask in (
        lambda: orders.evaluate_job(project, "moonshine", "en"),
        lambda: orders.merge_job(project),
        lambda: orders.speak_job(project, order),
    ):
        with pytest.raises(UserError, match="Nothing is trained yet"):
            ask()


def trained(project: Project) -> Project:
    orders.train_job(project, PLAN, anew=False)
    for folder in ("run/lora", "run/checkpoint-3/lora", "run/checkpoint-5/lora", "lora"):
        (project.folder / folder).mkdir(parents=True)
    return project


def test_all_checkpoints_are_judged(project: Project) -> None:
    (words,) = orders.evaluate_job(trained(project), "moonshine", "en").commands
    at = words.index("--adapter")
    assert [Path(word).name for word in words[at + 1 : at + 3]] == ["checkpoint-3", "checkpoint-5"]
    assert value(words, "--max_rows") == "1"


def test_base_and_tuned_say_the_same_and_nothing_is_said_twice(project: Project) -> None:
    order = SpeakOrder("--output /etc/x", "", str(trained(project).folder / "lora"), 0.5, 7)
    job, folder = orders.speak_job(project, order)
    base, tuned = job.commands
    assert "--text=--output /etc/x" in base  # one word: a text cannot become a flag
    assert "--adapter" not in base
    assert value(tuned, "--adapter_scale") == "0.5"
    assert json.loads((folder / "take.json").read_text())["seed"] == 7
    (folder / "base.wav").touch()
    (folder / "tuned.wav").touch()
    assert orders.speak_job(project, order)[0].commands == ()


def test_recogniser_and_language_are_those_of_the_clips(project: Project) -> None:
    settings = project.folder / "data" / "prepare.yaml"
    settings.write_text("recognizer: large-v3\nlanguage: de\n")
    assert orders.heard_by(project) == ("large-v3", "de")
    settings.write_text("recognizer: none\nlanguage: fr\n")
    assert orders.heard_by(project) == ("small", "fr")
    settings.unlink()
    assert orders.heard_by(project) == ("moonshine", "en")
