"""What is said of a run at its start: the report, and the files that tell how to repeat it.

The report says on one screen what is trained, on what, and for how long. `arguments.yaml` has the flags,
`environment.json` versions and device.
"""

import os
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from vibevoice_finetune import __version__
from vibevoice_finetune.adapters.attach import head_parameters
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.files.atomic import write_file, write_json
from vibevoice_finetune.flags.secrets import masked
from vibevoice_finetune.training.load_data import DataSummary, LoadedData

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
SLOW_BF16 = (
    "this processor has no instructions for bf16: a step takes up to a hundred times as long as in float32; leave "
    "--bf16 True out."
)


def is_slow_bf16(device: torch.device, *, bf16: bool) -> bool:
    """Whether a run multiplies bf16 matrices in a plain loop: on an x86 processor without AVX512-BF16 and AMX.

    Measured on one without: 0.4 GFLOP/s in a backward pass, 59 in float32 (docs/benchmarks.md).
    """
    abilities = torch.cpu.get_capabilities()
    units = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # the last two are ARM's
    return bf16 and device.type == "cpu" and not any(abilities.get(unit) for unit in units)


@dataclass(frozen=True)
class BlockSize:
    """Parameters of a block of the model."""

    block: str
    total: int
    trained: int
    dtypes: str


def block_sizes(model: nn.Module) -> list[BlockSize]:
    """Parameters a block, in the model's order; a tied output matrix counts once, with the embedding."""
    totals: dict[str, int] = defaultdict(int)
    trained: dict[str, int] = defaultdict(int)
    dtypes: dict[str, set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters():
        block = next(label for prefix, label in tensor_names.BLOCK_TITLES.items() if name.startswith(prefix))
        totals[block] += parameter.numel()
        trained[block] += parameter.numel() if parameter.requires_grad else 0
        dtypes[block].add(str(parameter.dtype).removeprefix("torch."))
    return [BlockSize(block, totals[block], trained[block], ", ".join(sorted(dtypes[block]))) for block in totals]


def print_report(
    console: Console, arguments: Arguments, data: LoadedData, model: nn.Module, max_steps: int, steps_per_epoch: int
) -> None:
    """Print the report; the indices of `--layers_to_freeze` follow if the diffusion head is trained."""
    table = Table(title=f"{data.checkpoint.source} ({data.checkpoint.layout.value} layout)", title_justify="left")
    for heading, justify in (("part", "left"), ("parameters", "right"), ("trained", "right"), ("dtype", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # rich wants a literal
    for size in block_sizes(model):
        table.add_row(size.block, f"{size.total:,}", f"{size.trained:,}" if size.trained else "-", size.dtypes)
    console.print(table, soft_wrap=False)
    for name, summary in data.summaries.items():
        console.print(f"{name:5} {_data_line(summary)}")
    if data.train_set is not None and data.train_set.mix is not None:
        console.print(f"mix   {_mix_line(data.train_set.mix, data.set_names)}")
    if data.bad_rows:
        console.print(f"left out: {data.bad_rows}", style="yellow")
    if is_slow_bf16(arguments.loop.device, bf16=arguments.loop.bf16):
        console.print(SLOW_BF16, style="yellow")
    for line in _loop_lines(arguments, max_steps, steps_per_epoch):
        console.print(line)
    if arguments.model.train_diffusion_head:
        console.print(_head_indices(model, arguments.model.frozen_head_layers))


def _data_line(summary: DataSummary) -> str:
    prompts = ", ".join(f"{count:,} {source}" for source, count in summary.prompt_sources.most_common())
    speakers = f", {summary.speakers} speakers" if summary.speakers else ""
    return f"{summary.rows:,} rows, {_duration(summary.audio_hours)}{speakers}; voice prompts: {prompts}"


def _mix_line(mix: Mix, names: Sequence[str]) -> str:
    parts = (
        f"{count:,} of the {size:,} rows of {name} ({count / sum(mix.rows_of_epoch):.1%})"
        for count, size, name in zip(mix.rows_of_epoch, mix.sizes, names, strict=True)
    )
    return f"an epoch has {', '.join(parts)}"


def _duration(hours: float) -> str:
    return f"{hours:.1f} h of audio" if hours >= 1 else f"{hours * 60:.1f} min of audio"


def _loop_lines(arguments: Arguments, max_steps: int, steps_per_epoch: int) -> Iterable[str]:
    loop, model = arguments.loop, arguments.model
    yield f"steps {max_steps:,} ({steps_per_epoch:,} an epoch), {_batch(arguments)}"
    yield (
        f"loss  {loop.diffusion_loss_weight:g} diffusion (K = {loop.ddpm_batch_mul}) + {loop.ce_loss_weight:g} (text"
        f" + {loop.control_loss_weight:g} control)"
    )
    lora = (
        f"r {model.lora_r}, alpha {model.lora_alpha}, dropout {model.lora_dropout:g}"
        if model.target_modules
        else "none"
    )
    extras = [f"EMA {loop.ema_decay:g}"] if loop.ema_decay else []
    extras += [f"gradients clipped to {loop.max_grad_norm:g}" if loop.gradient_clipping else "gradients not clipped"]
    extras += ["activation checkpointing"] if loop.activation_checkpointing else []
    schedule = SchedulerType(loop.lr_scheduler_type).value
    yield f"LoRA  {lora}; learning rate {loop.learning_rate:g} ({schedule}); {', '.join(extras)}"
    if loop.splits_weights:
        yield f"FSDP2 weights, gradients and optimizer are split over {loop.world_size} processes, layer by layer"
    if loop.steering is not None:
        patience = loop.early_stopping_patience
        early = f"; the run stops once it is no better {patience} times in a row" if patience else ""
        yield f"best  the weights with {loop.steering}{early}"
    if loop.sample_steps:
        yield f"heard samples every {loop.sample_steps:,} steps: {loop.output_dir}/samples/index.html"
    loggers = ", ".join(loop.report_to) if loop.report_to else "none"
    strategy = IntervalStrategy(loop.eval_strategy)
    evaluation = f"every {loop.eval_steps:g} steps" if strategy is IntervalStrategy.STEPS else strategy.value
    yield f"logs  metrics.jsonl, {loggers}; evaluation: {evaluation}; device: {loop.device}"


def _batch(arguments: Arguments) -> str:
    loop, tokens = arguments.loop, arguments.data.max_tokens_per_batch
    times = f" × {loop.gradient_accumulation_steps} accumulated"
    times += f" × {loop.world_size} processes" if loop.world_size > 1 else ""
    if tokens is not None:
        return f"effective batch up to {tokens:,} tokens{times}"
    rows = loop.per_device_train_batch_size * loop.gradient_accumulation_steps * loop.world_size
    return f"effective batch {rows} rows ({loop.per_device_train_batch_size} a process{times})"


def _head_indices(model: nn.Module, frozen: tuple[int, ...]) -> str:
    names = (
        f"{head.index} {head.original_name.removesuffix('.weight')}{' (fixed)' if head.index in frozen else ''}"
        for head in head_parameters(model)
    )
    return "head tensors, for --layers_to_freeze: " + " · ".join(names)


def write_settings(arguments: Arguments, output_dir: Path) -> None:
    """Write the flags, so that `--config arguments.yaml` repeats the run, and what it runs on."""
    write_file(output_dir / "arguments.yaml", _changes(arguments) + _as_yaml(arguments.given))
    environment = {
        "command": [Path(sys.argv[0]).name, *masked(sys.argv[1:])],
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(arguments.loop.device),
        "device_name": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor(),
        "cpu_count": os.cpu_count(),
        "processes": arguments.loop.world_size,
    }
    write_json(output_dir / "environment.json", environment)


def _changes(arguments: Arguments) -> str:
    """Comments that say what differs from the recipe; the flags below are all there, whatever the recipe becomes."""
    changed = arguments.changed_from_recipe
    lines = [f"# not as in the recipe: {_as_yaml({name: value}).strip()}" for name, value in changed.items()]
    return "".join(f"{line}\n" for line in lines)


def _as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def versions() -> dict[str, str]:
    """Versions of this package and of those that the numbers depend on."""
    return {"vibevoice-finetune": __version__, **{name: version(name) for name in PACKAGES}}
