"""`train` for what may be trained beside plain LoRA: the whole language model, an adapter that is there, a dialogue."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import vibevoice_finetune
from vibevoice_finetune.base_model.load import open_base_model, weight_index
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.memory.estimate import Estimate
from vibevoice_finetune.training import run

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"
RATE = 24_000


@pytest.fixture(scope="module")
def clips():
    return [json.loads(line) for line in SPEECH.read_text().splitlines()]


@pytest.fixture(scope="module")
def few(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    rows = [entry | {"audio": str(SPEECH.parent / entry["audio"])} for entry in clips[:3]]
    (folder / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return folder


@pytest.fixture
def line(few, tiny_checkpoint, tmp_path):
    def make(extra="", output="out", data=None):
        return shlex.split(
            f"train --model_name_or_path {tiny_checkpoint} --train_jsonl {data or few / 'train.jsonl'} "
            f"--latents_dir {few / 'latents'} --output_dir {tmp_path / output} --do_train --max_steps 2 "
            f"--per_device_train_batch_size 1 --logging_steps 1 --report_to none --save_strategy no {extra}"
        )

    return make


def test_the_whole_language_model_becomes_a_model_that_trains_again(line, tiny_checkpoint, tmp_path, capsys):
    assert main(line("--train_language_model True --save_strategy steps --save_steps 1")) == 0
    for folder in (tmp_path / "out" / "model", tmp_path / "out" / "checkpoint-1" / "model"):
        stored = dict(read_tensors(weight_index(open_base_model(str(folder))).tensors))
    assert not (tmp_path / "out" / "lora").exists()
    base = dict(read_tensors(weight_index(open_base_model(str(tiny_checkpoint))).tensors))
    moved = {name for name, value in stored.items() if not torch.equal(value, base[name])}
    assert moved == {name for name in base if name.startswith(("model.language_model.", "lm_head."))}
    assert main(line("--train_language_model True")) == 2
    assert "holds a finished run" in capsys.readouterr().err
    words = line("", "other")
    words = [str(tmp_path / "out" / "model") if word == str(tiny_checkpoint) else word for word in words]
    assert main(words) == 0
    assert (tmp_path / "other" / "lora" / "adapter_model.safetensors").is_file()


def test_lora_named_together_with_the_whole_language_model_is_refused(line, capsys):
    assert main(line("--train_language_model True --lora_target_modules q_proj")) == 2
    assert "--train_language_model and --lora_target_modules exclude each other" in capsys.readouterr().err


def test_a_run_goes_on_from_an_adapter_and_again_after_a_stop(line, tmp_path):
    assert main(line("--lora_r 3 --use_dora True --lora_wrap_diffusion_head True")) == 0
    extra = f"--adapter_name_or_path {tmp_path / 'out'} --save_strategy steps --save_steps 1"
    assert main(line(extra, "second")) == 0
    kept = (tmp_path / "second" / "lora" / "adapter_model.safetensors").read_bytes()
    config = json.loads((tmp_path / "second" / "lora" / "adapter_config.json").read_text())
    assert (config["r"], config["use_dora"]) == (3, True)
    resumed = f"{extra} --resume_from_checkpoint {tmp_path / 'second' / 'checkpoint-1'}"
    assert main(line(resumed, "second")) == 0
    assert (tmp_path / "second" / "lora" / "adapter_model.safetensors").read_bytes() == kept


@pytest.fixture(scope="module")
def dialogue(clips, tmp_path_factory):
    """90 s of two bundled voices taking turns, told apart by their files."""
    folder = tmp_path_factory.mktemp("dialogue")
    turns, audio, seconds = [], [], 0.0
    number = 0
    while seconds < 90:
        entry = clips[number % len(clips)]
        samples, rate = soundfile.read(SPEECH.parent / entry["audio"], dtype="float32")
        assert rate == RATE
        text = entry["text"].split(":", 1)[-1].strip() if entry["text"].startswith("Speaker") else entry["text"]
        turns.append(f"Speaker {number % 2}: {text}")
        audio.append(samples)
        seconds += len(samples) / RATE
        number += 1
    soundfile.write(folder / "talk.wav", np.concatenate(audio), RATE)
    voices = [str(SPEECH.parent / entry["audio"]) for entry in clips[:2]]
    row = {"text": "\n".join(turns), "audio": "talk.wav", "voice_prompts": voices}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_dialogue_of_ninety_seconds_trains(line, dialogue, tmp_path):
    assert main(line(data=dialogue / "train.jsonl")) == 0
    logs = [json.loads(text) for text in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert len(losses) == 2
    assert all(np.isfinite(losses))


@pytest.mark.parametrize(("given", "recomputed"), [("", True), ("--gradient_checkpointing False", False)])
def test_layers_are_recomputed_where_only_that_fits(line, dialogue, given, recomputed, monkeypatch, capsys):
    """The machine is said to have a byte less than the run needs without."""
    plain = Estimate.fits_here
    monkeypatch.setattr(Estimate, "fits_here", lambda self: plain(self) and self.recipe.checkpointing)
    built = {}
    trainer = run.FinetuneTrainer

    def watched(objective, loop, *rest):
        built["checkpointing"] = loop.activation_checkpointing
        return trainer(objective, loop, *rest)

    monkeypatch.setattr(run, "FinetuneTrainer", watched)
    assert main(line(f"--max_steps 1 {given}", data=dialogue / "train.jsonl")) == 0
    assert bool(built["checkpointing"]) == recomputed
    assert ("layers are recomputed to save memory" in " ".join(capsys.readouterr().err.split())) == recomputed
