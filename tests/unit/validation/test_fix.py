import json
from pathlib import Path

import pytest

from tests.unit.validation.conftest import Write, good_rows
from vibevoice_finetune.data.rows import Columns
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.validation.fix import check_targets, write_fixed
from vibevoice_finetune.validation.read import read_file
from vibevoice_finetune.validation.validate import Options, validate


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def fix(source: Path, target: Path) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    found = validate(read_file(source, Columns()), None, Options())
    fixed = write_fixed(source, target, Columns(), found.findings)
    return lines(target), lines(fixed.changes)


def test_tags_are_corrected_and_the_rest_of_the_errors_left_out(speech: Path, write: Write) -> None:
    rows = good_rows(speech, range(5))
    rows[0]["text"] = "[S1] Hello.\n[S2] Good evening."
    rows[0]["note"] = "ü stays"
    rows[2]["audio"] = "nowhere.wav"
    rows[3]["text"] = "Speaker 0: In 1984 she left."  # a warning
    source = write("train.jsonl", [*rows[:3], "{broken", *rows[3:]])  # type: ignore[list-item]
    before = source.read_bytes()
    kept, changes = fix(source, source.with_name("fixed.jsonl"))
    assert [row["text"] for row in kept] == [
        "Speaker 1: Hello.\nSpeaker 2: Good evening.",
        rows[1]["text"],
        rows[3]["text"],
        rows[4]["text"],
    ]
    assert kept[0]["note"] == "ü stays"
    assert [(change["line"], change["action"]) for change in changes] == [
        (1, "corrected"),
        (3, "left out"),
        (4, "left out"),
    ]
    assert (changes[0]["before"], changes[0]["after"]) == (rows[0]["text"], kept[0]["text"])
    assert "missing-file" in str(changes[1]["reasons"])
    assert source.read_bytes() == before
    assert validate(read_file(source.with_name("fixed.jsonl"), Columns()), None, Options()).findings[0].kind == "digits"


def test_a_row_with_another_error_too_is_left_out(speech: Path, write: Write) -> None:
    (row,) = good_rows(speech, [0])
    source = write("train.jsonl", [{**row, "text": "Hello.", "audio": "nowhere.wav"}, row])
    kept, changes = fix(source, source.with_name("fixed.jsonl"))
    assert kept == [row]
    assert [change["action"] for change in changes] == ["left out"]


def test_relative_paths_lead_to_the_same_files_from_another_folder(speech: Path, tmp_path: Path) -> None:
    source = speech / "list.jsonl"
    source.write_text(
        json.dumps(
            {
                "audio": "00.wav",
                "text": "Speaker 0: Hi there, you.",
                "voice_prompts": ["01.wav", {"path": "02.wav", "bytes": None}, str(speech / "03.wav")],
            }
        )
        + "\n"
    )
    (tmp_path / "sub").mkdir()
    write_fixed(source, tmp_path / "sub" / "fixed.jsonl", Columns(), [])
    (row,) = lines(tmp_path / "sub" / "fixed.jsonl")
    assert (tmp_path / "sub" / str(row["audio"])).resolve() == (speech / "00.wav").resolve()
    first, second, third = row["voice_prompts"]  # type: ignore[misc]
    assert (tmp_path / "sub" / first).resolve() == (speech / "01.wav").resolve()
    assert (tmp_path / "sub" / second["path"]).resolve() == (speech / "02.wav").resolve()
    assert third == str(speech / "03.wav")


@pytest.mark.parametrize("name", ["fixed.jsonl", "fixed.changes.jsonl"])
def test_nothing_is_overwritten(speech: Path, write: Write, name: str) -> None:
    source = write("train.jsonl", good_rows(speech, [0]))
    source.with_name(name).write_text("mine")
    with pytest.raises(ArgumentError, match="exists already"):
        write_fixed(source, source.with_name("fixed.jsonl"), Columns(), [])
    assert source.with_name(name).read_text() == "mine"


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="--fix"):
        check_targets(tmp_path / "file" / "fixed.jsonl")
