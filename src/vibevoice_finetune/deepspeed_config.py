"""A DeepSpeed configuration, written by hand or by accelerate: what of it is done, and what is refused.

Why: of the hundreds of settings that DeepSpeed takes, many change the numbers of a run and say nothing: bf16 casts what
is trained, absent clipping means none, an optimizer section replaces ours. So ZeRO-2 alone is offered; a few settings
that only trade memory for speed are passed on, all others must be absent or say what the flags say.

In: a JSON file, or what accelerate's launcher left in the environment. Out: a configuration made anew.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from vibevoice_finetune.errors import ArgumentError, UserError, require

SERIES = "0.19."
"""Of DeepSpeed: `training/zero2.py` reaches into its optimizer, which other versions may have rebuilt."""
BUCKET = 50_000_000
"""Gradients exchanged at once, as long as the configuration does not say. DeepSpeed's own 500 million are allocated
whole: 2 GB in float32, more than is saved."""
PASSED_ON = (
    *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm"),
    *("reduce_bucket_size", "reduce_scatter"),
)
WITHOUT_MEANING = ("steps_per_print", "wall_clock_breakdown", "zero_allow_untested_optimizer")
INSTEAD = {
    "optimizer": "the optimizer is set with --optim, --learning_rate and their like",
    "scheduler": "the learning rate's course is set with --lr_scheduler_type and --warmup_ratio",
    "offload_optimizer": "nothing is moved to the host",
    "offload_param": "nothing is moved to the host",
    "torch_autocast": "--bf16 True computes in bf16; gradients are exchanged in float32",
    "communication_data_type": "gradients are exchanged in float32",
}
STAGES = {
    0: "splits nothing, as torchrun without DeepSpeed does; leave DeepSpeed out",
    1: "leaves gradients whole; write stage 2, which costs no more",
    3: "splits the weights too; for that use --fsdp full_shard instead",
}


def asked(flag: Mapping[str, Any] | str | None, launcher_asks: bool) -> dict[str, Any] | None:
    """The configuration that the flag names or accelerate's launcher passes, or None; the launcher's request is taken.

    Raises:
        ArgumentError: a file that cannot be read, or two configurations.
    """
    if not flag and not launcher_asks:
        return None
    if flag and launcher_asks:
        raise ArgumentError("--deepspeed and accelerate's configuration both ask for DeepSpeed; leave one of them out.")
    if launcher_asks:
        from accelerate.utils import DeepSpeedPlugin  # noqa: PLC0415  # slow, and few need it

        found: Any = DeepSpeedPlugin().deepspeed_config
        for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_CONFIG_DS_FIELDS"):
            os.environ.pop(name, None)  # transformers is handed the configuration that is made here
    else:
        found = flag if isinstance(flag, Mapping) else _read(Path(str(flag)))
    if not isinstance(found, Mapping) or not isinstance(found.get("zero_optimization"), Mapping):
        raise ArgumentError('--deepspeed: expected {"zero_optimization": {"stage": 2}} and, at will, more.')
    return dict(found)


def said_by(loop: TrainingArguments) -> dict[str, Any]:
    """What the flags say of that which a configuration may say again, by DeepSpeed's names, with dots."""
    rows, accumulated = loop.per_device_train_batch_size, loop.gradient_accumulation_steps
    return {
        "bf16.enabled": bool(loop.bf16),
        "fp16.enabled": False,
        "gradient_accumulation_steps": accumulated,
        "gradient_clipping": loop.max_grad_norm,
        "train_batch_size": rows * accumulated * int(os.environ.get("WORLD_SIZE", "1")),
        "train_micro_batch_size_per_gpu": rows,
    }


def settled(found: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that DeepSpeed is given.

    Args:
        found: what `asked` returned.
        flags: what `said_by` returned.

    Raises:
        ArgumentError: ZeRO of another stage, or a setting that is not offered or contradicts a flag.

    >>> flags = {"gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 8}
    >>> settled({"zero_optimization": {"stage": 2}, "gradient_clipping": "auto"}, flags)["gradient_clipping"]
    0.5
    >>> settled({"zero_optimization": {"stage": 2}, "gradient_clipping": 1.0}, flags)
    Traceback (most recent call last):
    ...
    vibevoice_finetune.errors.ArgumentError: DeepSpeed's gradient_clipping is 1.0, but the flags say 0.5; write "auto".
    """
    zero = found["zero_optimization"]
    stage = zero.get("stage", 0)
    if stage != 2:
        raise ArgumentError(f"DeepSpeed's stage {stage} {STAGES.get(stage, 'is unknown')} (2 is offered).")
    for name, said in flags.items():
        section, _, key = name.rpartition(".")
        value = (found.get(section) or {} if section else found).get(key, "auto")
        if value not in ("auto", said):
            raise ArgumentError(
                f'DeepSpeed\'s {name} is {json.dumps(value)}, but the flags say {json.dumps(said)}; write "auto".'
            )
    sections = {"zero_optimization", *WITHOUT_MEANING, *(name.split(".")[0] for name in flags)}
    _refuse({name: value for name, value in found.items() if name not in sections})
    of_stage_2 = {name: value for name, value in zero.items() if not name.startswith("stage3_")}
    _refuse({name: value for name, value in of_stage_2.items() if name not in {"stage", *PASSED_ON}})
    passed_on = {name: value for name, value in of_stage_2.items() if name in PASSED_ON and value != "auto"}
    return {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": BUCKET, **passed_on},
        # Steps are accumulated by the trainer, and precision is not DeepSpeed's: see training/zero2.py.
        **{name: flags[name] for name in ("gradient_clipping", "train_micro_batch_size_per_gpu")},
    }


def make_ready(*, on_cpu: bool) -> None:
    """Import DeepSpeed, and let it find its compiler's helper.

    Raises:
        UserError: it is not installed, is of another series, or lacks ninja on a CPU.
    """
    deepspeed = require("deepspeed", "deepspeed")
    if not str(deepspeed.__version__).startswith(SERIES):
        raise UserError(
            f"deepspeed {deepspeed.__version__} was never tried with this; run: pip install "
            '"vibevoice-finetune[deepspeed]"'
        )
    if on_cpu and shutil.which("ninja") is None:
        beside = Path(sys.executable).parent  # an environment that was not activated
        if shutil.which("ninja", path=str(beside)) is None:
            raise UserError("ninja is not found; on a CPU, DeepSpeed compiles its exchange with it: pip install ninja")
        os.environ["PATH"] += f"{os.pathsep}{beside}"


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"--deepspeed {path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"--deepspeed {path}: is not JSON ({error}).") from error


def _refuse(settings: Mapping[str, Any]) -> None:
    """Refuse settings, but for those that are switched off."""
    for name, value in settings.items():
        switch = value.get("enabled", value.get("device", True)) if isinstance(value, Mapping) else value
        if switch not in (None, False, "none"):
            reason = INSTEAD.get(name, "is not offered")
            raise ArgumentError(f"DeepSpeed's {name}: {reason}; leave it out.")
