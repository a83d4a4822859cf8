"""What the latent store saves: a training step from stored latents against one that encodes its audio first.

Full-size speech encoders with random weights and a small language model, on the CPU: a larger language model would make
the store's share smaller, and the encoders cost the same. The audio is noise; the time does not depend on what it says.

    python -m benchmarks.store_pays
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import random_model, record
from benchmarks.synthetic_rows import PROMPT_SEC, make_rows
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.latents.shards import Part
from vibevoice_finetune.objective.objective import Objective

CLIPS = 2
CLIP_SEC = 5.0
REPEATS = 3
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main() -> None:
    """Measure both parts of a step and write the record."""
    cpu = torch.device("cpu")
    full_size = random_model.config_of("1.5b")
    acoustic, semantic = (random_model.encoders(full_size, torch.float32, cpu) for _ in Part)  # both stay loaded
    hop = acoustic.hop_length
    samples = {"targets": CLIP_SEC, "prompts": PROMPT_SEC}
    audio = {name: torch.randn(CLIPS, round(sec * 24_000) // hop * hop) * 0.05 for name, sec in samples.items()}

    def encode() -> None:
        acoustic.encode(Part.ACOUSTIC, audio["targets"])
        acoustic.encode(Part.ACOUSTIC, audio["prompts"])
        semantic.encode(Part.SEMANTIC, audio["targets"])

    with tempfile.TemporaryDirectory() as folder:
        step = training_step(Path(folder), cpu)
        encode_sec, step_sec = median_sec(encode), median_sec(step)
    share = step_sec / (step_sec + encode_sec)
    print(f"encoding {encode_sec:.2f} s, step from the store {step_sec:.3f} s, share {share:.3f}")
    record.write(
        "store-pays-cpu",
        {
            "clips": CLIPS,
            "clip_sec": CLIP_SEC,
            "prompt_sec": PROMPT_SEC,
            "encode_sec": round(encode_sec, 3),
            "step_from_store_sec": round(step_sec, 4),
            "step_that_encodes_sec": round(step_sec + encode_sec, 3),
            "ratio": round(share, 4),
        },
    )


def training_step(folder: Path, device: torch.device) -> Callable[[], None]:
    """A step of the small model, LoRA and full head, reading its rows from a store."""
    config = random_model.config_of("tiny")
    special = random_model.special_of("tiny")
    model = random_model.model_for_training(config, torch.float32, device)
    plan = AdapterPlan(
        lora_r=8,
        lora_alpha=32,
        lora_dropout=0.0,
        lora_target_modules=TARGETS,
        head="full",
        train_connectors=False,
        layers_to_freeze=(),
    )
    attach(model, plan)
    objective = Objective(model, special)
    rows = make_rows(folder, CLIPS, CLIP_SEC, 4, facts(config), special)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-4, fused=True)

    def step() -> None:
        batch = collate([rows[Draw(0, row)] for row in range(CLIPS)])
        sums = objective(batch)
        (sums["diffusion"] / batch["counts"].diffusion + sums["text"] / batch["counts"].text).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def median_sec(work: Callable[[], None]) -> float:
    """Median wall time of a few runs after one that does not count."""
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


if __name__ == "__main__":
    main()
