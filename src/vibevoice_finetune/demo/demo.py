"""The demo: everything from audio files to an adapter, with a model small enough for two CPU cores and a minute.

In comes an output folder; out go a random checkpoint in the layout of the released models, and what `train` makes of it
with the bundled speech: the latent store, an adapter and the metrics, plus a picture of the losses. Nothing is
simulated: checkpoint, flags and training are those of a real run, only smaller. A random model makes no speech, and the
demo says so.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.base_model.random_model import write_random_model
from vibevoice_finetune.errors import ArgumentError, require
from vibevoice_finetune.training.run import train

SPEECH = Path(__file__).parent / "speech" / "speech.jsonl"
CURVES_FILE = "losses.png"
CLOSING = """
Done: {adapter}
  the adapter, in the layout that other VibeVoice tools read
{curves}
  the losses of this run

The model was random, so it makes no speech, with or without the adapter: this run shows that every part works here.
With a released model and your recordings (a line of the JSONL: {{"text": "Speaker 0: …", "audio": "clip.wav"}}):

  vibevoice-finetune train --model_name_or_path microsoft/VibeVoice-1.5B --train_jsonl train.jsonl --output_dir out \\
    --do_train --bf16 True --train_diffusion_head True --per_device_train_batch_size 4 --learning_rate 2.5e-5 \\
    --num_train_epochs 5 --voice_prompt_drop_rate 0.2

The model's text tokenizer is downloaded from the Hub with it. Train on a voice only with its owner's consent.
"""


@dataclass(frozen=True)
class Curve:
    """One number of the metrics over the steps at which it was logged."""

    steps: list[int]
    values: list[float]


def run(output_dir: Path, max_steps: int) -> None:
    """Run the demo.

    Args:
        output_dir: a folder that is empty or not there yet.
        max_steps: optimizer steps; a hundred take about a minute on two cores, and the losses have visibly fallen.

    Raises:
        ArgumentError: the output folder is not empty.
        UserError: matplotlib is not installed.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ArgumentError(f"--output_dir {output_dir}: not an empty folder; remove it or name another one.")
    figures = require("demo", "matplotlib.figure")
    console = Console(stderr=True)
    model_dir, run_dir = output_dir / "model", output_dir / "run"
    console.print(f"A small random model in the layout of the released ones: {model_dir}", highlight=False)
    write_random_model(model_dir, "tiny")
    with one_thread():
        train(make_arguments(training_flags(model_dir, run_dir, max_steps)))
    curves = output_dir / CURVES_FILE
    draw(figures, run_dir / "metrics.jsonl", curves)
    Console().print(CLOSING.format(adapter=run_dir / "lora", curves=curves), highlight=False, soft_wrap=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context torch computes in one thread.

    The model's matrices are too small to share: on a busy machine, two threads took four times the processor time of
    one (docs/log.md).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def training_flags(model_dir: Path, run_dir: Path, max_steps: int) -> dict[str, Any]:
    """The flags that the demo trains with; like real ones but for the size of the steps.

    A random model has everything to learn and little width to learn it with, hence the large learning rate.
    """
    return {
        "model_name_or_path": str(model_dir),
        "train_jsonl": [str(SPEECH)],
        "eval_split_size": 0.17,
        "output_dir": str(run_dir),
        "do_train": True,
        "max_steps": max_steps,
        "per_device_train_batch_size": 4,
        "train_diffusion_head": True,
        "train_connectors": True,
        "ddpm_batch_mul": 4,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.1,
        "gradient_clipping": True,
        "voice_prompt_drop_rate": 0.2,
        "logging_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
    }


def draw(figures: ModuleType, metrics: Path, path: Path) -> None:
    """Draw the losses of a run, training and evaluation, as a PNG.

    Args:
        figures: matplotlib's `figure` module.
        metrics: the run's `metrics.jsonl`.
        path: where the picture goes.
    """
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = figures.Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, name in zip(panels, ("diffusion_loss", "text_loss", "control_loss"), strict=True):
        for curve, label in ((read_curve(rows, name), "training"), (read_curve(rows, f"eval_{name}"), "evaluation")):
            panel.plot(curve.steps, curve.values, label=label)
        panel.set(title=name.replace("_", " "), xlabel="optimizer step")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=120)


def read_curve(rows: list[dict[str, float]], name: str) -> Curve:
    """The values of one metric, by step."""
    points = [(int(row["step"]), row[name]) for row in rows if name in row]
    return Curve([step for step, _ in points], [value for _, value in points])
