"""Runs of `train` in processes of their own: rows of noise for a golden checkpoint, and command lines over them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
MODEL = GOLDEN / "untied" / "checkpoint"
HOP_SAMPLES = 24
TEXTS = (
    "One.",
    "A longer line of text.",
    "Hi.",
    "Two words.",
    "And then the last one of them.",
    "Well.",
    "No.",
    "Go on.",
)
FRAMES = (5, 30, 3, 17, 44, 6, 9, 12)
WITH_PROMPT = (0, 3, 4, 6)
TIMED = ("per_second", "runtime", "total_flos", "train_loss")
"""Parts of names of metrics that depend on the clock, or (`train_loss`, a mean) on where the process started."""


def write_rows(folder: Path, num_rows: int = 8) -> Path:
    """Clips of noise of uneven lengths, some with a voice prompt, the others without any that could be cut."""
    rng = np.random.default_rng(11)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in range(num_rows):
        entry: dict[str, Any] = {"text": f"Speaker 0: {TEXTS[row % 8]}", "audio": f"{row}.wav", "voice_prompts": []}
        soundfile.write(
            folder / f"{row}.wav", 0.1 * rng.standard_normal(FRAMES[row % 8] * HOP_SAMPLES - row % 3), 24_000
        )
        if row % 8 in WITH_PROMPT:
            entry["voice_prompts"] = [f"{row}-voice.wav"]
            soundfile.write(folder / f"{row}-voice.wav", 0.1 * rng.standard_normal((row + 2) * HOP_SAMPLES), 24_000)
        lines.append(json.dumps(entry) + "\n")
    jsonl = folder / "train.jsonl"
    jsonl.write_text("".join(lines), encoding="utf-8")
    return jsonl


def train_words(jsonl: Path, output_dir: Path, *extra: object) -> list[str]:
    """The words after `vibevoice-finetune`."""
    words = {
        "model_name_or_path": MODEL,
        "processor_name_or_path": GOLDEN / "tokenizer",
        "train_jsonl": jsonl,
        "latents_dir": jsonl.parent / "latents",
        "output_dir": output_dir,
        "report_to": "none",
        "learning_rate": 1e-2,
        "lora_r": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    flags = [str(part) for name, value in words.items() for part in (f"--{name}", value)]
    return ["train", *flags, "--do_train", "--use_cpu", "--disable_tqdm", "True", *map(str, extra)]


def environment() -> dict[str, str]:
    """Of the processes: one thread each, no network, unbuffered output, a stack where one is aborted."""
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    return {**os.environ, **own}


def python(*words: object, processes: int | None = None) -> list[str]:
    """The command `python -m WORDS`, or the same in so many processes of this machine under torchrun."""
    if processes is None:
        return [sys.executable, "-m", *map(str, words)]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    return [sys.executable, "-m", *launcher, *map(str, words)]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command with its outputs caught, as the first of a process group of its own."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=GOLDEN.parents[1],
        start_new_session=True,
    )


def finish(command: Sequence[str], timeout_sec: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout_sec,
        check=False,
        env=environment(),
        cwd=GOLDEN.parents[1],
    )


def logs(output_dir: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl`, without what depends on the clock."""
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        {name: value for name, value in json.loads(line).items() if not any(part in name for part in TIMED)}
        for line in lines
    ]


def adapter(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's result."""
    tensors = {}
    for path in sorted((run / "lora").rglob("*.safetensors")):
        tensors |= {f"{path.parent.name}/{name}": value for name, value in load_file(path).items()}
    return tensors


def assert_same_run(one: Path, other: Path) -> None:
    """Every log and every tensor of the result within 1e-5."""
    for left, right in zip(logs(one), logs(other), strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"epoch"}:  # with a ghost, an epoch has more micro-batches
            assert right[name] == pytest.approx(left[name], rel=1e-5, abs=1e-5), name
    assert_same_tensors(adapter(one), adapter(other))


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """The same names, and values within 1e-5."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


def fresh(folder: Path) -> Path:
    """The folder, deleted if it was there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder
