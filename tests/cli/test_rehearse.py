"""`vibevoice-finetune rehearse` with the small model that speaks, and its result through `train`."""

import shutil
from pathlib import Path

import pytest

import vibevoice_finetune
from vibevoice_finetune import rehearsal
from vibevoice_finetune.commands.table import main

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech"


def test_a_stopped_rehearsal_goes_on_and_train_takes_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "voices").mkdir()
    shutil.copy(next(SPEECH.rglob("*.flac"), None) or next(SPEECH.rglob("*.wav")), tmp_path / "voices")
    (tmp_path / "texts.txt").write_text("the dog sees a house\n\na child takes the red ball\n")
    words = ["rehearse", "--model_name_or_path", "small", "--script", f"{tmp_path}/texts.txt"]
    words += ["--voices", f"{tmp_path}/voices", "--output", f"{tmp_path}/out", "--device", "cpu"]
    words += ["--max_length_sec", "8"]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "_write", killed)
        assert main(words) == 130
    takes = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/takes").iterdir()}
    assert len(takes) == 4  # audio and record of both
    monkeypatch.setattr(rehearsal, "remove_folder", lambda _: None)
    assert main(words) == 0
    assert "2 rows" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in takes} == takes, "nothing was said again"
    training = ["train", "--model_name_or_path", "small", "--train_jsonl", f"{tmp_path}/out/train.jsonl"]
    training += ["--output_dir", f"{tmp_path}/run", "--do_train", "--max_steps", "1", "--report_to", "none"]
    assert main([*training, "--use_cpu", "True", "--save_strategy", "no"]) == 0
