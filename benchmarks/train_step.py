"""One training step, taken apart: tokens a second, share of the hardware's arithmetic, memory, time by part.

The model has random weights, drawn on the device; everything else is what `train` runs: rows from a latent store, our
collate, `Objective` under autocast in bf16 (in float32 on a processor without arithmetic for bf16), adapters, fused
AdamW. What a step must at least compute is counted in `docs/benchmarks.md`.

    python -m benchmarks.train_step --size 1.5b --recipes lora,full,head-lora --rows 8 --clip_sec 10 --draws 4
"""

import argparse
import gc
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import VibeVoiceConfig

from benchmarks import random_model, record
from benchmarks.ceiling import has_bf16, matmul_flops_per_sec
from benchmarks.floor import count_floor
from benchmarks.synthetic_rows import make_rows
from benchmarks.timed import TimedObjective
from benchmarks.watch import Watch
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.lora import rely_on_autocast
from vibevoice_finetune.arguments import ModelArguments
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.quantize import keep_trainable, quantization_config
from vibevoice_finetune.base_model.random_model import Size
from vibevoice_finetune.data.collate import Batch, collate
from vibevoice_finetune.data.dataset import Draw, SpeechDataset
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.memory.count import MicroBatch, Recipe, measure
from vibevoice_finetune.memory.estimate import RUNTIME_BYTES, Estimate, estimate
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.objective import LossSums
from vibevoice_finetune.training.metrics import LossWeights, Terms

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEADS: dict[str, Literal["frozen", "full", "lora"]] = {"lora": "frozen", "full": "full", "head-lora": "lora"}
DROPOUT = 0.05


@dataclass(frozen=True)
class Case:
    """What is measured: a model's size, what is trained and how, how large a step is.

    Attributes:
        size: of the model.
        recipe: what of the head is trained, as in `HEADS`; after it `-4bit` or `-8bit`, and `-recompute`.
        rows: clips of a step.
        clip_sec: length of each.
        draws: noise draws a frame, K.
        dtype: of frozen weights and autocast.
        attention: of the language model.
    """

    size: Size
    recipe: str
    rows: int
    clip_sec: float
    draws: int
    dtype: torch.dtype
    attention: str

    @property
    def bits(self) -> int | None:
        """4 or 8 for quantised layers of the language model."""
        return 4 if "-4bit" in self.recipe else 8 if "-8bit" in self.recipe else None

    @property
    def checkpointing(self) -> bool:
        """Whether the language model recomputes its layers in the backward pass."""
        return self.recipe.endswith("-recompute")

    @property
    def head(self) -> Literal["frozen", "full", "lora"]:
        """What of the diffusion head is trained."""
        return HEADS[re.sub("-(4bit|8bit|recompute)", "", self.recipe)]


def main() -> None:
    """Measure each recipe and write one result file."""
    flags = parse_flags()
    device = torch.device(flags.device)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    ceiling = matmul_flops_per_sec(device, dtype)
    results: list[record.Json] = []
    numbers: record.Json = {
        "benchmark": "train_step",
        "dtype": str(dtype).removeprefix("torch."),
        "attention": flags.attention or attention(device),
        "matmul_tflops": round(ceiling / 1e12, 3),
        "results": results,
    }
    for name in flags.recipes.split(","):
        chosen = flags.attention or attention(device)
        case = Case(flags.size, name, flags.rows, flags.clip_sec, flags.draws, dtype, chosen)
        results.append(measured(case, device, flags.steps, ceiling))
        print_row(results[-1])
        # After each, so that a recipe that fails does not take the ones before it with it.
        record.write(flags.name or f"train-step-{flags.size}-{device.type}", numbers, Path(flags.out))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def parse_flags() -> argparse.Namespace:
    """The benchmark's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "1.5b", "7b"], default="tiny")
    parser.add_argument(
        "--recipes",
        default="lora,full,head-lora",
        help="by comma: lora, full or head-lora, with -4bit, -8bit, -recompute after it",
    )
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--clip_sec", type=float, default=10.0)
    parser.add_argument("--draws", type=int, default=4, help="noise draws a frame, --ddpm_batch_mul")
    parser.add_argument(
        "--attention",
        choices=["varlen", "varlen_kernel", "sdpa", "eager", "flash_attention_2"],
        help="default: what --attn_implementation auto chooses; varlen_kernel is torch.nn.attention.varlen",
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps, after three to warm up")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=str(record.RESULTS), help="folder for the result")
    parser.add_argument("--name", help="name of the result file")
    return parser.parse_args()


def measured(case: Case, device: torch.device, num_steps: int, ceiling: float) -> record.Json:
    """The numbers of one case; where memory does not suffice, that and the estimate."""
    head: record.Json = {"size": case.size, "recipe": case.recipe}
    config = random_model.config_of(case.size)
    with tempfile.TemporaryDirectory() as folder:
        rows = make_rows(
            Path(folder),
            case.rows,
            case.clip_sec,
            case.draws,
            parts.facts(config),
            random_model.special_of(case.size),
        )
        batch = collate([rows[Draw(0, row)] for row in range(case.rows)])
        predicted = predict(case, config, batch, device)
        head |= {"tokens": batch["counts"].tokens, "frames": batch["counts"].frames, "draws": case.draws}
        head |= {"estimate_gb": round((predicted.training - RUNTIME_BYTES[device.type]) / 1e9, 2)}
        try:
            return head | run(case, config, rows, device, num_steps, ceiling)
        except torch.OutOfMemoryError as error:
            return head | {"not_run": str(error).partition(".")[0]}
        except UserError as error:  # bitsandbytes is not installed
            return head | {"not_run": str(error)}


def predict(case: Case, config: VibeVoiceConfig, batch: Batch, device: torch.device) -> Estimate:
    """What `estimate` says of this case."""
    recipe = Recipe(
        device=device.type,
        bf16=case.dtype is torch.bfloat16,
        quantised_bits=case.bits,
        lora_r=8,
        lora_dropout=DROPOUT,
        lora_targets=TARGETS,
        head=case.head,
        train_connectors=False,
        checkpointing=case.checkpointing,
        attention=case.attention.removesuffix("_kernel"),
        optimizer="adamw_torch_fused",
        ema=False,
        draws=case.draws,
        accumulation=1,
        processes=1,
    )
    size = MicroBatch(case.rows, batch["counts"].tokens, batch["counts"].frames, batch["counts"].text)
    return estimate(measure(config), recipe, size, encodes=False)


def attention(device: torch.device) -> str:
    """What `--attn_implementation auto` chooses."""
    return ModelArguments(model_name_or_path="random").attention(device.type, bf16=has_bf16(device))


def run(
    case: Case, config: VibeVoiceConfig, rows: SpeechDataset, device: torch.device, num_steps: int, ceiling: float
) -> record.Json:
    """Build the model, warm up, time the steps."""
    watch = Watch()
    watch.enter("all")
    time.sleep(3 * watch.every_sec)
    before = watch.peaks["all"].anonymous
    model = random_model.model_for_training(
        config, case.dtype, device, quantization_config(case.bits) if case.bits else None
    )
    if case.bits == 4:
        keep_trainable(model)
    set_attention(parts.language_model(model), case.attention)
    attach(model, AdapterPlan(8, 32, DROPOUT, TARGETS, case.head, train_connectors=False))
    if case.dtype is torch.bfloat16:
        rely_on_autocast(model)
    objective = TimedObjective(model, random_model.special_of(case.size)).train()
    if case.checkpointing:
        objective.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=2.5e-5, fused=True)
    for step in range(3):
        train_step(objective, optimizer, rows, step, device, bf16=case.dtype is torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    objective.clock.forget()
    began = time.perf_counter()
    for step in range(num_steps):
        train_step(objective, optimizer, rows, 3 + step, device, bf16=case.dtype is torch.bfloat16)
    seconds = objective.clock.seconds()
    step_sec = (time.perf_counter() - began) / num_steps
    watch.stop()
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else watch.peaks["all"].anonymous - before
    batch = collate([rows[Draw(0, row)] for row in range(case.rows)])
    return numbers(case, config, batch, step_sec, {name: sec / num_steps for name, sec in seconds.items()}, ceiling) | {
        "peak_gb": round(peak / 1e9, 2),
        "reserved_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2) if device.type == "cuda" else None,
    }


def numbers(
    case: Case, config: VibeVoiceConfig, batch: Batch, step_sec: float, parts: dict[str, float], ceiling: float
) -> record.Json:
    """Rates, and what was reached of the floor."""
    floor = count_floor(config, case.head, batch, case.draws)
    datasheet = record.datasheet_bf16_flops()
    return {
        "step_sec": round(step_sec, 4),
        "tokens_per_sec": round(batch["counts"].tokens / step_sec, 1),
        "audio_sec_per_sec": round(case.rows * case.clip_sec / step_sec, 2),
        "floor_tflop": {name: round(value / 1e12, 4) for name, value in vars(floor).items()},
        "floor_sec": round(floor.total / ceiling, 5),
        "mfu_of_matmul": round(floor.total / step_sec / ceiling, 4),
        "mfu_of_datasheet": round(floor.total / step_sec / datasheet, 4) if datasheet else None,
        "parts_ms": {name: round(1000 * sec, 2) for name, sec in parts.items()},
    }


def train_step(
    objective: TimedObjective,
    optimizer: torch.optim.Optimizer,
    rows: SpeechDataset,
    epoch: int,
    device: torch.device,
    *,
    bf16: bool,
) -> None:
    """What `FinetuneTrainer` does in a step without accumulation."""
    clock = objective.clock
    clock.start()
    host = collate([rows[Draw(epoch, row)] for row in range(len(rows))])
    batch = cast(Batch, {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in host.items()})
    clock.mark("data")
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        sums: LossSums = objective(batch)
    Terms.of(sums, batch["counts"]).total(LossWeights(1.4, 0.04, 0.04)).backward()
    clock.mark("language model")
    optimizer.step()
    optimizer.zero_grad()
    clock.mark("optimizer")


def print_row(result: record.Json) -> None:
    """A result on the terminal."""
    shown = ("recipe", "tokens_per_sec", "audio_sec_per_sec", "mfu_of_matmul", "mfu_of_datasheet", "peak_gb")
    parts = [f"{name} {result[name]}" for name in (*shown, "estimate_gb", "not_run") if name in result]
    print(f"{result['size']}: " + ", ".join(parts) + f"; ms: {result.get('parts_ms', {})}", flush=True)


if __name__ == "__main__":
    main()
