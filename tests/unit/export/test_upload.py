"""`--push_to_hub`: the folder and nothing else, once, to a server that stands in for the Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from tests.hub import COMMIT, Hub, running_hub
from tests.unit.small_model import plan, small_model, train_at_random
from vibevoice_finetune.adapters.attach import attach
from vibevoice_finetune.adapters.check import check_records
from vibevoice_finetune.adapters.info import AdapterInfo, add_training_to_card
from vibevoice_finetune.adapters.read import open_adapter
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.errors import ArgumentError, UserError
from vibevoice_finetune.export.upload import Upload, push_result, take_upload

TOKEN = "hf_" + "a" * 34
SETTINGS = {"learning_rate": 2.5e-5, "lora_r": 8, "train_jsonl": "/data/me/train.jsonl", "output_dir": "/data/me/out"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, case = small_model(), plan(head="lora", train_connectors=True)
    attach(model, case)
    train_at_random(model)
    info = AdapterInfo("some/VibeVoice", "abc", True, versions={"vibevoice-finetune": "0.1.0"}, settings=SETTINGS)
    save_adapter(model, case, tmp_path / "out" / "lora", info)
    (tmp_path / "out" / "optimizer.pt").write_bytes(b"not for the world")
    return tmp_path / "out" / "lora"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub(monkeypatch) as hub:
        yield hub


def test_the_folder_is_uploaded_and_nothing_else(folder: Path, hub: Hub) -> None:
    address = push_result(folder, Upload("me/my-voice", private=True, revision=None, token=TOKEN))
    assert address == f"{hub.address}{COMMIT}"
    assert [(made["organization"], made["name"], made["visibility"]) for made in hub.repositories] == [
        ("me", "my-voice", "private")
    ]
    expected = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == expected
    assert "diffusion_head_lora/lora.safetensors" in expected
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert hub.branches == []


def test_another_branch_is_made_first(folder: Path, hub: Hub) -> None:
    push_result(folder, Upload("me/my-voice", private=None, revision="try", token=TOKEN))
    assert hub.branches == ["try"]


def test_a_refusal_says_what_to_do_and_hides_the_token(folder: Path, hub: Hub) -> None:
    hub.refuses = True
    with pytest.raises(UserError) as raised:
        push_result(folder, Upload("me/my-voice", private=None, revision=None, token=TOKEN))
    message = str(raised.value)
    assert "the result is complete on the disk" in message
    assert "may not write" in message
    assert TOKEN not in message
    assert message.endswith(f"hf upload me/my-voice {folder} .")


def test_offline_says_what_to_do(folder: Path) -> None:
    with pytest.raises(UserError, match=r"could not be uploaded to me/my-voice \(OfflineModeIsEnabled.*hf auth login"):
        push_result(folder, Upload("me/my-voice", private=None, revision=None, token=None))


def test_no_connection_says_what_to_do(folder: Path, hub: Hub) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(UserError, match=r"could not be uploaded to me/my-voice \(ConnectError"):
        push_result(folder, Upload("me/my-voice", private=None, revision=None, token=TOKEN))


def test_a_name_that_is_not_valid_and_a_folder_that_is_not_finished(folder: Path, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--hub_model_id me/my voice: is not the name of a repository"):
        push_result(folder, Upload("me/my voice", private=None, revision=None, token=TOKEN))
    with pytest.raises(ArgumentError, match="holds no finished result"):
        push_result(tmp_path, Upload("me/my-voice", private=None, revision=None, token=TOKEN))
    assert hub.repositories == []


def test_the_request_is_taken_from_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibevoice_finetune.export.upload.get_token", lambda: TOKEN)
    out = str(tmp_path / "voice-of-me")
    loop = TrainingArguments(out, push_to_hub=True, hub_token=TOKEN, hub_private_repo=True, report_to="none")
    upload = take_upload(loop)
    assert upload == Upload("voice-of-me", private=True, revision=None, token=TOKEN)
    assert not loop.push_to_hub
    assert TOKEN not in repr(upload)
    named = TrainingArguments(out, push_to_hub=True, hub_model_id="me/mine", report_to="none")
    assert take_upload(named) == Upload("me/mine", private=None, revision=None, token=None)
    assert take_upload(TrainingArguments(out, report_to="none")) is None


def test_without_a_token_the_run_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vibevoice_finetune.export.upload.get_token", lambda: None)
    loop = TrainingArguments(str(tmp_path / "out"), push_to_hub=True, report_to="none")
    with pytest.raises(ArgumentError, match=r"--push_to_hub: .*hf auth login"):
        take_upload(loop)


def test_the_card_says_base_hours_settings_and_recipe(folder: Path) -> None:
    add_training_to_card(folder, audio_hours=2.25)
    add_training_to_card(folder, audio_hours=2.5)  # once more: the section is replaced
    card = (folder / "README.md").read_text()
    assert "base_model: some/VibeVoice" in card
    assert "2.5 hours of speech" in card
    assert "2.2" not in card
    assert card.count("## Training") == 1
    assert "learning_rate: 2.5e-05\nlora_r: 8\n" in card
    assert "/data/me" not in card
    assert "vibevoice-finetune generate --model_name_or_path some/VibeVoice" in card
    check_records(open_adapter(folder))  # the card is not among the files that are held against their checksums


def test_minutes_are_minutes(folder: Path) -> None:
    add_training_to_card(folder, audio_hours=0.1)
    assert "6.0 minutes of speech" in (folder / "README.md").read_text()
