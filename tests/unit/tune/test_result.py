import json
from pathlib import Path

from vibevoice_finetune.tune.result import checkpoint_folders, how_to_use, publish, recommended, verdict


def make_run(run: Path, *steps: int) -> Path:
    for folder in [run / "lora", *(run / f"checkpoint-{step}" / "lora" for step in steps)]:
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(folder.parent.name)
    (run / "checkpoint-7").mkdir()  # not finished: it holds no adapter
    return run


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path, 100, 20)
    assert [path.name for path in checkpoint_folders(run)] == ["checkpoint-20", "checkpoint-100"]


def test_the_recommended_checkpoint_is_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, 20, 40)
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps({"recommended": {"voice": "checkpoint-20", "reason": "the earliest"}, "verdict": ["Yes."]})
    )
    assert recommended(report, run) == (run / "checkpoint-20" / "lora", "checkpoint-20, the earliest")
    assert verdict(report) == ["Yes."]


def test_without_a_report_the_last_weights_are_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path, 20)
    assert recommended(tmp_path / "none.json", run)[0] == run / "lora"
    assert verdict(tmp_path / "none.json") == []


def test_a_name_that_is_no_checkpoint_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 20)
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"recommended": {"voice": "checkpoint-9/../../..", "reason": ""}}))
    assert recommended(report, run)[0] == run / "lora"


def test_the_result_replaces_the_one_before(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 20)
    page = tmp_path / "index.html"
    page.write_text("<html>")
    (tmp_path / "out" / "lora").mkdir(parents=True)
    (tmp_path / "out" / "lora" / "old").touch()
    publish(run / "checkpoint-20" / "lora", page, tmp_path / "out")
    assert (tmp_path / "out" / "lora" / "adapter_model.safetensors").read_text() == "checkpoint-20"
    assert not (tmp_path / "out" / "lora" / "old").exists()
    assert (tmp_path / "out" / "report" / "index.html").read_text() == "<html>"


def test_the_three_commands_can_be_copied(tmp_path: Path) -> None:
    lines = how_to_use(Path("my voice"), "some/model", Path("a b.wav"))
    commands = [line.strip() for line in lines if line.startswith("  ")]
    assert len(commands) == 3
    assert "--adapter 'my voice/lora' --voice 'a b.wav'" in commands[0]
    assert commands[1] == "cp -r 'my voice/lora' ComfyUI/models/vibevoice/loras/'my voice'"
    assert "--checkpoint_path 'my voice/lora'" in commands[2]
