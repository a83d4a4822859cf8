"""No token of a command line reaches a file."""

import json
import sys

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.flags.secrets import is_secret, masked
from vibevoice_finetune.training.report import write_settings


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hub_token", "abc", "--lora_r", "8"], ["--hub_token", "***", "--lora_r", "8"]),
        (["--hub_token=abc"], ["--hub_token=***"]),
        (["--hub-token=abc=d"], ["--hub-token=***"]),
        (["--push_to_hub_token", "abc"], ["--push_to_hub_token", "***"]),
        (["--hub_tokem", "hf_abcdefghij"], ["--hub_tokem", "***"]),
        (["--hub_token", "--lora_r", "8"], ["--hub_token", "--lora_r", "8"]),
        (["--run_name", "x=hf_abcdefghij1"], ["--run_name", "x=***"]),
        (["--hub_model_id", "me/my-voice"], ["--hub_model_id", "me/my-voice"]),
        (["--max_tokens_per_batch", "900"], ["--max_tokens_per_batch", "900"]),
    ],
)
def test_masked(words, expected):
    assert masked(words) == expected


def test_names_of_secrets():
    assert is_secret("--hub-token")
    assert is_secret("wandb_api_key")
    assert not is_secret("tokenizer")
    assert not is_secret("max_tokens_per_batch")


def test_what_a_run_writes_about_itself_holds_no_token(tmp_path, monkeypatch):
    words = ["--model_name_or_path", "M", "--train_jsonl", "F", "--output_dir", str(tmp_path), "--report_to", "none"]
    words += ["--hub_token=topsecret", "--run_name", "hf_alsosecret"]
    monkeypatch.setattr(sys, "argv", ["/bin/vibevoice-finetune", "train", *words])
    config = tmp_path / "run.yaml"
    config.write_text("hub_token: topsecret\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hub_token: secret-of-the-recipe\n")
    write_settings(parse([*words[:-2], "--config", str(config), "--recipe", str(recipe)]), tmp_path)
    written = "".join((tmp_path / name).read_text() for name in ("environment.json", "arguments.yaml"))
    assert "secret" not in written
    assert "--hub_token=***" in json.loads((tmp_path / "environment.json").read_text())["command"]
