import json
from pathlib import Path

import pytest

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.web import clips, render
from vibevoice_finetune.web.workspace import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    data = tmp_path / "anna" / "data"
    data.mkdir(parents=True)
    write(data / "train.jsonl", [{"text": f"Speaker 0: Text {n}.", "audio": f"clips/{n}.flac"} for n in range(3)])
    write(data / "validation.jsonl", [{"text": "Speaker 0: Held.", "audio": "clips/9.flac"}])
    write(data / "rejected.jsonl", [{"recording": "r", "from_sec": 1.0, "to_sec": 2.5, "text": "", "reason": "noise"}])
    return Project(tmp_path / "anna")


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(project: Project) -> list[str]:
    return [clip.text for clip in clips.clips_of(project)]


def test_clips_are_read_without_the_speakers_tag(project: Project) -> None:
    assert texts(project) == ["Text 0.", "Text 1.", "Text 2.", "Held."]
    assert [clip.held_out for clip in clips.clips_of(project)] == [False, False, False, True]
    assert clips.rejected_of(project) == [clips.Rejected("r", 1.0, 2.5, "", "noise")]


def test_a_text_is_corrected_and_stays_so_when_the_clips_are_made_again(project: Project) -> None:
    before = (project.folder / "data" / "train.jsonl").read_bytes()
    clips.correct(project, "clips/1.flac", "  Better\n text. ")
    assert texts(project) == ["Text 0.", "Better text.", "Text 2.", "Held."]
    (project.folder / "data" / "train.jsonl").write_bytes(before)  # as `prepare` would
    clips.apply_edits(project)
    assert texts(project) == ["Text 0.", "Better text.", "Text 2.", "Held."]


def test_a_clip_is_left_out(project: Project) -> None:
    clips.correct(project, "clips/0.flac", None)
    assert texts(project) == ["Text 1.", "Text 2.", "Held."]


@pytest.mark.parametrize(
    ("audio", "text", "said"),
    [
        ("clips/77.flac", "x", "not there any more"),
        ("../../etc/passwd", "x", "not there any more"),
        ("clips/1.flac", " \n", "is empty"),
        ("clips/1.flac", "x" * 2001, "longer than 2,000 letters"),
    ],
)
def test_a_correction_that_cannot_be_made_is_refused(project: Project, audio: str, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        clips.correct(project, audio, text)
    assert texts(project) == ["Text 0.", "Text 1.", "Text 2.", "Held."]


def test_problems_stand_beside_their_clip_after_another_was_left_out(project: Project) -> None:
    said = (
        "2 rows: noise\n  /x/data/train.jsonl:2: 12 dB above the noise\n  train.jsonl:3: voice_prompts[0]: too quiet\n"
        "  train.jsonl:99: not there\n  validation.jsonl:1: echo\n"
    )
    clips.note_problems(project, said)
    clips.correct(project, "clips/0.flac", None)
    assert [clip.problems for clip in clips.clips_of(project)] == [
        ("12 dB above the noise",),
        ("too quiet",),
        ("echo",),
    ]


def test_nothing_of_a_text_becomes_part_of_the_page(project: Project) -> None:
    clips.correct(project, "clips/0.flac", "<img src=x onerror=alert(1)>")
    table = render.clip_table(project, clips.clips_of(project), 0)
    assert "<img" not in table
    assert "&lt;img" in table


def test_an_empty_project_has_an_empty_table(tmp_path: Path) -> None:
    empty = Project(tmp_path)
    assert clips.clips_of(empty) == []
    assert "No clips yet" in render.clip_table(empty, [], 0)
