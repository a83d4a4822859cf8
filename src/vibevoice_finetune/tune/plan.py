"""Which model, and with which flags, for the recordings and the GPU that are there.

In come what was found and what the user fixed; out go the flags of `train` and the reasons, as lines to read. The
larger model is taken where it fits without quantisation; then what saves memory and changes the result least comes
first: a smaller batch with more accumulation, activations computed again. `estimate` counts what fits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.flags.machine import is_installed
from vibevoice_finetune.memory.estimate import Estimate, device_bytes, gigabytes
from vibevoice_finetune.memory.predict import predict
from vibevoice_finetune.training.report import is_slow_bf16

LARGE, MEDIUM = "aoi-ot/VibeVoice-Large", "microsoft/VibeVoice-1.5B"
SMALL = "small"
"""The bundled model: speaks, is trained in minutes on a processor."""

HARMLESS = {"bf16", "per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing"}
"""Flags that save memory at little cost in the result; the larger model is taken if these suffice."""

LONGEST_CLIP_SEC = 20.0
"""As `prepare` cuts; memory is counted for a batch of these."""

CHECKPOINTS = 5
"""Saved in the course of a run, evenly; the evaluation chooses among them."""

SMALL_VALUES: dict[str, Any] = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "train_diffusion_head": True,
    "voice_prompt_drop_rate": 0.1,
    "ddpm_batch_mul": 4,
    "ce_loss_weight": 0.05,
    "max_steps": 150,
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "gradient_clipping": True,
}
"""For the small model: larger steps than a released one takes (examples/small_model)."""


@dataclass(frozen=True)
class Machine:
    """What trains.

    Attributes:
        device: "cuda" or "cpu".
        name: as a person knows it.
        memory_bytes: of the GPU, or of the machine.
    """

    device: str
    name: str
    memory_bytes: float


@dataclass(frozen=True)
class TrainingPlan:
    """What will be trained, and how.

    Attributes:
        model: a folder, a Hub id, or "small".
        values: flags of `train`, without places.
        memory: the estimate with these flags.
        notes: reasons, for the reader.
    """

    model: str
    values: dict[str, Any]
    memory: Estimate
    notes: tuple[str, ...]


def this_machine() -> Machine:
    """The GPU that torch sees first, else the processor."""
    if torch.cuda.is_available():
        device = torch.device("cuda", 0)
        return Machine("cuda", torch.cuda.get_device_name(device), device_bytes(device))
    return Machine("cpu", "no GPU: the processor", device_bytes(torch.device("cpu")))


def make_plan(
    machine: Machine,
    recipe: Mapping[str, Any],
    model: str | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    """Choose a model and flags for a machine.

    Args:
        machine: what trains.
        recipe: flags of a recipe.
        model: what the user named; None: the largest that fits.
        fixed: flags that the user fixed, such as `max_steps`.

    Raises:
        UserError: there is no GPU and no model was named, or nothing fits.
        BaseModelError: the model named cannot be read.
    """
    if model is None and machine.device == "cpu":
        raise UserError(
            "no GPU was found, and the released models need one: on a processor, training takes weeks. Run this on a "
            f"machine with an NVIDIA GPU, or try everything here with --model_name_or_path {SMALL}."
        )
    candidates = [LARGE, MEDIUM] if model is None else [model]
    for candidate in candidates:
        values = _values(machine, recipe, candidate, fixed or {})
        memory = _predicted(candidate, values)
        saving = memory.to_fit(machine.memory_bytes)
        if saving is None:
            continue
        changes = _values_of(saving)
        is_last = candidate == candidates[-1]
        if not is_last and not changes.keys() <= HARMLESS:
            continue
        _check_packages(changes)
        notes = [_reason(candidate, machine, model)]
        if saving:
            notes.append(f"to fit into its memory: {' '.join(saving)}")
            memory = _predicted(candidate, values | changes)
        return TrainingPlan(candidate, values | changes, memory, tuple(notes))
    least = _predicted(candidates[-1], _values(machine, recipe, candidates[-1], fixed or {}))
    raise UserError(
        f"{candidates[-1]} cannot be trained in the {gigabytes(machine.memory_bytes)} of {machine.name}, whatever the "
        f"flags (with the recipe it takes about {gigabytes(least.peak)}); use a larger GPU, or name a smaller model."
    )


def _values(machine: Machine, recipe: Mapping[str, Any], model: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(SMALL_VALUES if model == SMALL else recipe)
    values |= {"do_train": True, "save_steps": 1 / CHECKPOINTS, "save_total_limit": CHECKPOINTS, "logging_steps": 5}
    values |= fixed
    if machine.device == "cpu":
        values["use_cpu"] = True
        if is_slow_bf16(torch.device("cpu"), bf16=True):
            values["bf16"] = False
    return values


def _predicted(model: str, values: Mapping[str, Any]) -> Estimate:
    filled = {"output_dir": "", "dataset_name": "unknown", "report_to": "none"}
    arguments = make_arguments({**values, "model_name_or_path": model}, filled)
    return predict(arguments, LONGEST_CLIP_SEC).memory


def _values_of(flags: Sequence[str]) -> dict[str, Any]:
    """The advice of an estimate as values: `--bf16 True` means `{"bf16": True}`."""
    words = " ".join(flags).split()
    return {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(words[::2], words[1::2], strict=True)}


def _check_packages(changes: Mapping[str, Any]) -> None:
    if {"load_in_4bit", "optim"} & changes.keys() and not is_installed("bitsandbytes"):
        raise UserError(
            "this GPU's memory suffices only with a quantised model or optimizer, and bitsandbytes is not installed; "
            'run: pip install "vibevoice-finetune[4bit]"'
        )


def _reason(model: str, machine: Machine, named: str | None) -> str:
    if named is not None:
        return f"{model}, as you said"
    if model == LARGE:
        return f"{model} (7B): the larger model fits into the {gigabytes(machine.memory_bytes)} of this GPU"
    return f"{model} (1.5B): the 7B model would need more than the {gigabytes(machine.memory_bytes)} of this GPU"
