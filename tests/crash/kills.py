"""Kill a run again and again, go on each time, and compare the end with that of a run that was left alone."""

import json
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from tests.crash.child import changes, finish, start
from tests.processes import logs, train_words
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints, damage, step_of

FLAGS = (
    *("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 2, "--per_device_train_batch_size", 2),
    *("--gradient_accumulation_steps", 2, "--ema_decay", 0.9, "--lora_dropout", 0.1, "--lr_scheduler_type", "cosine"),
    *("--eval_strategy", "steps", "--eval_steps", 3, "--eval_split_size", 0.2, "--voice_prompt_drop_rate", 0.3),
)


@dataclass
class Tally:
    """What the kills met."""

    by_change: int = 0
    by_clock: int = 0
    finished: int = 0
    newest_steps: list[int] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.by_change + self.by_clock


def kill_and_resume(base: Path, jsonl: Path, num_kills: int, seed: int, *extra: object) -> Tally:
    """Kill so many times, half at a change of a file and half by the clock; a run that came to its end starts anew.

    After each kill every run checkpoint that counts as complete is read whole, and the newest is not older than before.
    """
    flags = (*FLAGS, *extra)
    whole = base / "whole"
    began = time.monotonic()
    assert finish(start(_words(jsonl, whole, flags), whole, base / "whole.log"), 600) == 0, _said(base / "whole.log")
    seconds = time.monotonic() - began
    num_changes = changes(base / "whole.log")
    rng = random.Random(seed)
    tally = Tally()
    out = base / "killed"
    newest = 0
    while tally.kills < num_kills:
        by_change = rng.random() < 0.5
        log = base / f"{tally.kills}.log"
        # A run gets two thirds of its way at most, so that most runs take several kills.
        kill_at = rng.randint(1, num_changes * 2 // 3) if by_change else None
        process = start(_words(jsonl, out, (*flags, "--resume_from_checkpoint", "True")), out, log, kill_at)
        if not by_change:
            process.join(rng.uniform(0, seconds * 2 / 3))
            process.kill()
        code = finish(process, 600)
        assert code in (0, -signal.SIGKILL), _said(log)
        assert not [folder for folder in complete_checkpoints(out) if damage(folder)]
        steps = [check_whole(folder) for folder in complete_checkpoints(out)]
        assert max(steps, default=0) >= newest, f"step {newest} was lost, now {steps}"
        newest = max(steps, default=0)
        if code == 0:
            assert_same_end(whole, out)
            tally.finished += 1
            newest = 0
            shutil.rmtree(out)
            continue
        tally.by_change += by_change
        tally.by_clock += not by_change
        tally.newest_steps.append(newest)
    log = base / "last.log"
    assert finish(start(_words(jsonl, out, (*flags, "--resume_from_checkpoint", "True")), out, log), 600) == 0, _said(
        log
    )
    assert_same_end(whole, out)
    tally.finished += 1
    return tally


def check_whole(folder: Path) -> int:
    """Read all of a checkpoint; its step."""
    state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == step_of(folder)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))
    load_file(folder / "trainable.safetensors")
    load_file(folder / "ema.safetensors")
    load_file(folder / "lora" / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        with safe_globals():
            torch.load(folder / name, weights_only=True)
    return int(state["global_step"])


def assert_same_end(whole: Path, other: Path) -> None:
    """The same metrics, result and last checkpoints, bit for bit; nothing half written is left."""
    assert logs(other) == logs(whole)
    assert [folder.name for folder in complete_checkpoints(other)] == [
        folder.name for folder in complete_checkpoints(whole)
    ]
    for path in sorted(whole.rglob("*.safetensors")):
        if "latents" in path.parts:
            continue
        one, again = load_file(path), load_file(other / path.relative_to(whole))
        assert one.keys() == again.keys()
        assert all(torch.equal(value, again[name]) for name, value in one.items()), path
    for path in sorted(whole.glob("checkpoint-*/optimizer.pt")):
        one, again = (torch.load(folder, weights_only=True) for folder in (path, other / path.relative_to(whole)))
        assert one["param_groups"] == again["param_groups"]
        for number, moments in one["state"].items():
            assert all(torch.equal(value, again["state"][number][name]) for name, value in moments.items())
    assert not [path.name for path in other.iterdir() if path.name.startswith(".")]


def _words(jsonl: Path, out: Path, flags: tuple[object, ...]) -> list[str]:
    # The store lies in the output folder, so that its filling is killed as well.
    return train_words(jsonl, out, "--latents_dir", out / "latents", *flags)


def _said(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-3000:] if log.exists() else "nothing"
