"""`evaluate` from the command line: mistakes in one line each, and a run that is killed and started again."""

import json
import signal
import time
from pathlib import Path

import pytest

from tests.processes import finish, python, start
from tests.unit.preparation.recording import sentences
from vibevoice_finetune.commands.table import main

LIMIT_SEC = 900


def held_out(folder: Path, **keys: str) -> Path:
    """A list of three bundled clips; `keys` renames its keys."""
    path = folder / "held_out.jsonl"
    rows = [{"text": f"Speaker 0: {text}", "audio": str(clip)} for text, clip in sentences("alpha")[:3]]
    path.write_text("".join(json.dumps({keys.get(k, k): v for k, v in row.items()}) + "\n" for row in rows))
    return path


def said(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: object) -> str:
    flags = ["--model_name_or_path", "no/model", "--output", str(tmp_path / "report")]
    assert main(["evaluate", *flags, *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_missing_list_is_named_with_no_wrong_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = said(capsys, tmp_path, "--eval_jsonl", tmp_path / "nothing.jsonl")
    assert "nothing.jsonl: the file cannot be read (No such file or directory); check the path." in error
    assert "train_jsonl" not in error
    error = said(capsys, tmp_path, "--eval_jsonl", held_out(tmp_path), "--forgetting_script", tmp_path / "others.jsonl")
    assert "others.jsonl: the file cannot be read" in error


def test_columns_of_other_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    listed = held_out(tmp_path, text="sentence")
    assert "--text_column_name" in said(capsys, tmp_path, "--eval_jsonl", listed)
    words = ("--eval_jsonl", listed, "--text_column_name", "sentence", "--speaker_encoder", "no/encoder")
    assert "speaker encoder: no/encoder" in said(capsys, tmp_path, *words), "the rows were read"


@pytest.mark.slow
def test_killed_and_started_again_nothing_is_said_twice(tiny_checkpoint: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    flags = {
        "model_name_or_path": tiny_checkpoint,
        "eval_jsonl": held_out(tmp_path),
        "output": report,
        "seeds": 4,
        "batch_size": 1,
        "max_length_sec": 0.3,
        "forgetting_script": "none",
        "device": "cpu",
    }
    command = python("vibevoice_finetune", "evaluate", *(word for k, v in flags.items() for word in (f"--{k}", v)))
    process = start(command)
    give_up = time.monotonic() + LIMIT_SEC
    while len(list(report.glob("audio/*.json"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path.name: path.stat().st_mtime_ns for path in report.glob("audio/*.json")}
    assert 2 <= len(before) < 12, "it was killed while it spoke"
    again = finish(command, LIMIT_SEC)
    assert again.returncode == 0, again.stderr
    assert {name: (report / "audio" / name).stat().st_mtime_ns for name in before} == before
    figures = json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert len(figures["takes"]) == 12
    assert figures["figures"]["base"]["diffusion_1"]["value"]["value"] > 0
    assert (report / "index.html").is_file()
