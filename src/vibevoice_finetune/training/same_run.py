"""What makes two runs the same run: base model, rows, and the flags that the numbers depend on.

A checkpoint keeps this; a run that goes on from it compares, and names what has changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import Enum
from typing import Any

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.data.dataset import SpeechDataset
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.model import ModelArguments

MODEL_FLAGS = (
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_wrap_diffusion_head",
    "train_diffusion_head",
    "train_connectors",
    "layers_to_freeze",
    "load_in_4bit",
    "load_in_8bit",
)
NEWER_MODEL_FLAGS = (
    "train_language_model",
    "lora_rank_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
)
"""Named only where they are not at their defaults, which a run checkpoint without them had."""

DATA_FLAGS = ("voice_prompt_drop_rate", "max_tokens_per_batch", "mix")
LOOP_FLAGS = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "seed",
    "data_seed",
    "dataloader_drop_last",
    "ddpm_batch_mul",
    "diffusion_loss_weight",
    "ce_loss_weight",
    "control_loss_weight",
    "unconditional_rate",
    "ema_decay",
)

Identity = dict[str, Any]


def identity(
    arguments: Arguments,
    base_fingerprint: str,
    train_set: SpeechDataset | None,
    eval_set: SpeechDataset | None,
    adapter: str | None = None,
) -> Identity:
    """The facts to compare, as JSON.

    The rows of an optimizer step (or its micro-batches, if those are filled by tokens) count as a product, so that they
    may be split over another number of processes.
    """
    loop = arguments.loop
    found: Identity = {"base model": base_fingerprint}
    for name, rows in (("training rows", train_set), ("evaluation rows", eval_set)):
        if rows is not None:
            found[name] = digest_rows(rows)
            if rows.mix is not None:
                found[f"sizes of the {name}"] = list(rows.mix.sizes)
    for part, names in ((arguments.model, MODEL_FLAGS), (arguments.data, DATA_FLAGS), (loop, LOOP_FLAGS)):
        values = vars(part)
        found |= {f"--{name}": _plain(values[name]) for name in names}
    defaults = {field.name: field.default for field in fields(ModelArguments)}
    newer = {name: vars(arguments.model)[name] for name in NEWER_MODEL_FLAGS}
    found |= {f"--{name}": value for name, value in newer.items() if value != defaults[name]}
    if adapter is not None:
        found["adapter to start from"] = adapter
    micro_batches = loop.gradient_accumulation_steps * loop.world_size
    if arguments.data.max_tokens_per_batch is None:
        found["rows of an optimizer step"] = loop.per_device_train_batch_size * micro_batches
    else:
        found["micro-batches of an optimizer step"] = micro_batches
    found_again: Identity = json.loads(json.dumps(found))
    return found_again


def digest_rows(rows: SpeechDataset) -> str:
    """A hash over scripts, audio and choices of voice prompts, in order."""
    state = hashlib.blake2b(digest_size=16)
    shared: dict[int, str] = {}  # the rows of a speaker share one tuple of choices, which is hashed once
    for row in rows.rows:
        turns = [asdict(turn) for turn in row.turns]
        choices = shared.get(id(row.prompt_choices)) or _digest(row.prompt_choices)
        shared[id(row.prompt_choices)] = choices
        state.update(json.dumps([turns, row.target_key, choices, row.own_choice]).encode())
    return state.hexdigest()


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def check_same_run(then: Mapping[str, Any], now: Mapping[str, Any], where: str, *, allow: bool = False) -> list[str]:
    """Refuse to go on with another run than the checkpoint's.

    Args:
        then: the checkpoint's identity.
        now: this run's.
        where: the checkpoint.
        allow: whether to go on all the same.

    Returns:
        Every difference; empty unless they are allowed.

    Raises:
        ArgumentError: lists every difference; or the optimizer is another, whose state nothing can be made of.
    """
    changed = differences(then, now)
    optimizers = [change for change in changed if change.startswith("--optim ")]
    if allow and optimizers:
        raise ArgumentError(f"{where} holds the state of another optimizer ({optimizers[0]}); keep --optim.")
    if changed and not allow:
        raise ArgumentError(
            f"{where} belongs to a run with other settings: {'; '.join(changed)}. Put them back, "
            "or go on all the same with --allow_changed_run True."
        )
    return changed


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a phrase each; hashes are not printed."""
    found = []
    for name in sorted({*then, *now}):
        old, new = then.get(name), now.get(name)
        if old == new:
            continue
        flag_like = name.startswith(("--", "rows of", "micro-batches of"))
        found.append(f"{name} {old} → {new}" if flag_like else f"other {name}")
    return found


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
