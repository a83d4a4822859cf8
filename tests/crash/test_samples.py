"""Training does not notice that samples are spoken, nor a run that it was killed while they were."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.crash.child import changes, finish, start
from tests.crash.kills import FLAGS, assert_same_end
from tests.processes import GOLDEN, MODEL, TEXTS, adapter, train_words, write_rows
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.generation.generate import ModelSource, load_speech_model
from vibevoice_finetune.generation.prompts import make_prompt
from vibevoice_finetune.generation.scripts import script_from_text

SETTINGS = (*FLAGS, "--save_total_limit", 100, "--max_steps", 4, "--train_diffusion_head", "True")
SAMPLES = ("--sample_steps", 2, "--sample_script")


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, with an output matrix by which it always goes on; by itself it never says anything."""
    folder = tmp_path_factory.mktemp("models") / "talkative"
    shutil.copytree(MODEL, folder)
    source = ModelSource(str(folder), dtype=torch.float32, processor_name_or_path=str(GOLDEN / "tokenizer"))
    speaker = load_speech_model(source)
    prompts = [make_prompt(speaker, script_from_text(line), 0, 9, {}).embeddings_TD for line in TEXTS]
    language_model = parts.language_model(speaker.model)
    with torch.no_grad():
        states = [language_model(inputs_embeds=prompt[None]).last_hidden_state[0, -1] for prompt in prompts]
    usual = torch.stack(states).mean(0)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for token in speaker.special.ids:
        tensors["lm_head.weight"][token] = usual if token == speaker.special.frame else -usual
    save_file(tensors, file)
    return folder


@pytest.fixture
def script(jsonl: Path) -> Path:
    """Two short clips, one with a voice; the random model speaks on to three times the longer one's 5 frames."""
    lines = [
        {"text": "Speaker 0: One.", "audio": "0.wav", "voice_prompts": ["0-voice.wav"]},
        {"text": "Speaker 0: Hi.", "audio": "2.wav"},
    ]
    path = jsonl.parent / "script.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def run(model: Path, jsonl: Path, out: Path, *extra: object, kill_at: int | None = None) -> int:
    log, words = out.with_suffix(".log"), ("--model_name_or_path", model, *SETTINGS, *extra)
    return finish(start(train_words(jsonl, out, *words), out / "samples", log, kill_at), 300)


def said(samples: Path) -> dict[str, int]:
    """The samples whose record was written, with the moment of their making."""
    found = (path for path in samples.glob("step-*/*.flac") if path.with_suffix(".json").exists())
    return {str(path.relative_to(samples)): path.stat().st_mtime_ns for path in found}


def test_the_weights_are_the_same_with_and_without_samples(
    model: Path, jsonl: Path, script: Path, tmp_path: Path
) -> None:
    """With dropout and an average of the weights, and the diffusion head trained whole."""
    assert run(model, jsonl, tmp_path / "without") == 0, (tmp_path / "without.log").read_text()
    assert run(model, jsonl, tmp_path / "with", *SAMPLES, script) == 0, (tmp_path / "with.log").read_text()
    one, other = adapter(tmp_path / "without"), adapter(tmp_path / "with")
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    folders = {path.parent.name for path in (tmp_path / "with" / "samples").glob("step-*/sample.json")}
    assert folders == {"step-0", "step-2", "step-4"}
    assert {f"{folder}/{name}.flac" for folder in folders for name in (1, 2)} <= said(tmp_path / "with/samples").keys()


@pytest.mark.slow
def test_killed_during_a_sample_it_goes_on_and_makes_nothing_twice(
    model: Path, jsonl: Path, script: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    assert run(model, jsonl, whole, *SAMPLES, script) == 0
    total = changes(whole.with_suffix(".log"))
    for kill_at in range(total // 3, total, total // 6):  # during the second and the third of three samples
        out = tmp_path / f"killed-{kill_at}"
        assert run(model, jsonl, out, *SAMPLES, script, kill_at=kill_at) == -signal.SIGKILL
        before = said(out / "samples")
        assert "step-0/1.flac" in before
        assert run(model, jsonl, out, *SAMPLES, script, "--resume_from_checkpoint", "True") == 0
        after = said(out / "samples")
        assert before.items() <= after.items()
        assert after.keys() == said(whole / "samples").keys()
        assert_same_end(whole, out)
