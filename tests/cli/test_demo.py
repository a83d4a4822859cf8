"""The demo as its user meets it: a folder with everything in it, and plain words about what it is not."""

import json
from pathlib import Path

import matplotlib.image
import pytest

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.commands import table
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.demo import demo
from vibevoice_finetune.errors import UserError


def test_the_demo_makes_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert table.main(["demo", "--output_dir", str(folder), "--max_steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "random, so it makes no speech" in said
    assert "vibevoice-finetune train --model_name_or_path microsoft/VibeVoice-1.5B" in said
    assert "consent" in said
    assert str(folder / "run" / "lora") in said
    assert (folder / "run" / "lora" / "adapter_model.safetensors").stat().st_size > 0
    logs = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("diffusion_loss" in log for log in logs)
    assert any("eval_diffusion_loss" in log for log in logs)
    height, width, _ = matplotlib.image.imread(folder / demo.CURVES_FILE).shape
    assert (height, width) == (432, 1320)


def test_the_curves_are_drawn_from_the_metrics(tmp_path: Path) -> None:
    rows = [{"step": 2, "text_loss": 5.0}, {"step": 2, "eval_text_loss": 6.0}, {"step": 4, "text_loss": 3.0}]
    assert demo.read_curve(rows, "text_loss") == demo.Curve([2, 4], [5.0, 3.0])
    assert demo.read_curve(rows, "eval_text_loss") == demo.Curve([2], [6.0])
    assert demo.read_curve(rows, "control_loss") == demo.Curve([], [])


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert table.main(["demo", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --output_dir {tmp_path}: not an empty folder; remove it or name another one.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_matplotlib_is_said_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(extra: str, module: str) -> None:
        raise UserError(f'{module} is not installed; run: pip install "vibevoice-finetune[{extra}]"')

    monkeypatch.setattr(demo, "require", missing)
    folder = tmp_path / "demo"
    assert table.main(["demo", "--output_dir", str(folder)]) == 2
    assert 'pip install "vibevoice-finetune[demo]"' in capsys.readouterr().err
    assert not folder.exists()


def test_the_flags_of_the_demo_are_flags_of_train(tmp_path: Path) -> None:
    arguments = make_arguments(demo.training_flags(tmp_path / "model", tmp_path / "run", max_steps=7))
    assert arguments.loop.max_steps == 7
    assert arguments.data.train_jsonl == [str(demo.SPEECH)]


def test_the_command_that_the_demo_recommends_parses() -> None:
    text = demo.CLOSING.format(adapter="a", curves="c")
    command = text.split("vibevoice-finetune train", 1)[1].split("\n\n", 1)[0]
    assert parse(command.replace("\\\n", " ").split()).loop.do_train
