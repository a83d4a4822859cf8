"""`train --push_to_hub` from the command line to what a server that stands in for the Hub was given."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import vibevoice_finetune
from tests.hub import running_hub
from vibevoice_finetune.commands.table import main

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"
TOKEN = "hf_" + "a" * 34


@pytest.fixture
def words(tiny_checkpoint: object, tmp_path: Path) -> list[str]:
    """A training of one step on one clip, in a folder whose name must not get out."""
    private = tmp_path / "private-place"
    private.mkdir()
    row = json.loads(SPEECH.read_text().splitlines()[0])
    row["audio"] = str(shutil.copy(SPEECH.parent / row["audio"], private))
    (private / "train.jsonl").write_text(json.dumps(row))
    shutil.copytree(str(tiny_checkpoint), private / "base-model")
    return [
        "train", "--model_name_or_path", str(private / "base-model"), "--train_jsonl", str(private / "train.jsonl"),
        "--output_dir", str(private / "out"), "--do_train", "--max_steps", "1",
        "--report_to", "none", "--save_strategy", "no",
        "--push_to_hub", "True", "--hub_model_id", "me/my-voice", "--hub_token", TOKEN, "--hub_private_repo", "True",
    ]  # fmt: skip


def test_the_result_and_nothing_private_is_pushed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_hub(monkeypatch) as hub:
        assert main(words) == 0
    lora = tmp_path / "private-place" / "out" / "lora"
    written = {path.relative_to(lora).as_posix(): path.read_bytes() for path in lora.rglob("*") if path.is_file()}
    assert hub.files == written
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= written.keys()
    assert [(made["name"], made["visibility"]) for made in hub.repositories] == [("my-voice", "private")]
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for name, content in hub.files.items():
        assert b"private-place" not in content, name
        assert TOKEN.encode() not in content, name
    card = hub.files["README.md"].decode()
    settings = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])
    assert settings == {  # what was given, without places and the token
        "model_name_or_path": "base-model",
        "do_train": True,
        "max_steps": 1,
        "report_to": ["none"],
        "save_strategy": "no",
        "push_to_hub": True,
        "hub_model_id": "me/my-voice",
        "hub_private_repo": True,
    }
    captured = capsys.readouterr()
    assert "/me/my-voice/commit/" in captured.out + captured.err
    for path in (tmp_path / "private-place" / "out").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_a_hub_that_refuses_leaves_the_result_and_says_how_to_go_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running_hub(monkeypatch) as hub:
        hub.refuses = True
        assert main(words) == 2
    error = capsys.readouterr().err
    assert "the result is complete on the disk" in error
    assert "hf upload me/my-voice" in error
    assert TOKEN not in error
    assert (tmp_path / "private-place" / "out" / "lora" / "adapter_model.safetensors").is_file()
