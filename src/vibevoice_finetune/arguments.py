"""A parsed command line of `train`, as the rest of the program sees it.

The flags are declared in `flags/`, without torch; this joins them with transformers' `TrainingArguments`, checks what
only a look at this machine or at several flags together can tell, and refuses what cannot be carried out: before any
data is touched.
"""

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.data import DataArguments
from vibevoice_finetune.flags.declare import check_values
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.model import ModelArguments
from vibevoice_finetune.flags.secrets import is_secret

FSDP_FLAGS = ("false", "true", "full_shard", "full_shard auto_wrap")
SPLIT_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")

PATH_FLAGS = frozenset(
    field.name
    for kind in (ModelArguments, DataArguments, LoopFlags)
    for field in fields(kind)
    if field.metadata["is_path"]
)
"""Flags whose value is, or may be, a place on this machine."""


@dataclass
class FinetuneArguments(LoopFlags, TrainingArguments):  # type: ignore[misc]  # our choices are fewer
    """The loop and the losses, on top of transformers' `TrainingArguments`."""

    def __post_init__(self) -> None:
        self._check_own()
        if not self.gradient_clipping:
            self.max_grad_norm = 0.0
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if self.report_to is None:
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # the old name, without its warning
        if self.bf16 and not torch.cuda.is_available():
            self.use_cpu = True  # transformers refuses bf16 without a GPU unless the CPU is asked for
        self._splits_weights = self._takes_fsdp()
        super().__post_init__()  # type: ignore[no-untyped-call]

    def _check_own(self) -> None:
        if self.output_dir is None:
            raise ArgumentError("--output_dir is missing: the folder that the result goes to.")
        if self.fp16:
            raise ArgumentError("--fp16: VibeVoice overflows in float16; use --bf16 True, or neither for float32.")
        self._check_launcher()
        if self.warmup_ratio and self.warmup_steps not in (0, self.warmup_ratio):
            raise ArgumentError("--warmup_ratio and --warmup_steps exclude each other; leave one of the two out.")

    def _check_launcher(self) -> None:
        if self.deepspeed or _asks_for("DEEPSPEED"):
            raise ArgumentError("DeepSpeed is not supported; to split a model over several GPUs, use --fsdp.")
        if self.fsdp_config:
            raise ArgumentError("--fsdp_config: there is nothing to set; --fsdp splits layer by layer.")
        asked = str(self.fsdp or FSDP_FLAGS[0]).lower()
        if asked not in FSDP_FLAGS:
            raise ArgumentError(f"--fsdp {asked}: only full_shard is offered: weights, gradients and optimizer split.")
        offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        if _asks_for("FSDP") and offload:
            raise ArgumentError("accelerate's fsdp_offload_params: weights stay on the GPUs; set it to false.")
        if self.splits_by_request and self.optim not in SPLIT_OPTIMIZERS:
            raise ArgumentError(
                f"--optim {self.optim}: cannot work on split tensors; with --fsdp use {' or '.join(SPLIT_OPTIMIZERS)}."
            )

    def _takes_fsdp(self) -> bool:
        """Whether weights are to be split; the request is taken away from transformers and accelerate.

        They would wrap the model once more, with checkpoints of their own, and on CPUs run plain DDP and say nothing.
        """
        wanted = self.splits_by_request
        self.fsdp = None
        if _asks_for("FSDP"):
            os.environ["ACCELERATE_USE_FSDP"] = "false"
        return wanted

    def check_processes(self, processes: int) -> None:
        """Refuse what needs several processes if there is one.

        Raises:
            ArgumentError: weights are to be split, but there is one process.
        """
        if self.splits_weights and processes == 1:
            raise ArgumentError("--fsdp splits weights over processes, but there is one; start several with torchrun.")

    @property
    def splits_by_request(self) -> bool:
        """Whether the flag or accelerate's configuration asks for FSDP; only until transformers has read them."""
        return str(self.fsdp or "false").lower() != "false" or _asks_for("FSDP")

    @property
    def splits_weights(self) -> bool:
        """Whether weights, gradients and the optimizer's state are split over processes (FSDP2)."""
        return self._splits_weights

    @property
    def place_model_on_device(self) -> bool | None:
        """For transformers: split weights lie where they belong, and moving them would fail."""
        return False if self._splits_weights else None

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation set is needed."""
        return bool(self.do_eval) or IntervalStrategy(self.eval_strategy) is not IntervalStrategy.NO

    @property
    def draw_seed(self) -> int:
        """Seed of the sampler's order and of every draw of a row."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
        model: which model, what is trained.
        data: rows and latents.
        loop: the loop and the losses.
        given: the flags that somebody typed or wrote into the file of `--config`, with their values; no secrets.
    """

    model: ModelArguments
    data: DataArguments
    loop: FinetuneArguments
    given: dict[str, Any]


KINDS = (ModelArguments, DataArguments, FinetuneArguments)


def make_arguments(given: Mapping[str, Any], filled: Mapping[str, Any] | None = None) -> Arguments:
    """Join the values of flags into what the rest of the program works with.

    Args:
        given: values that somebody gave, by the flag's name.
        filled: values that a command sets by itself where nothing was given; not recorded.

    Raises:
        ArgumentError: a value out of its range, a combination that cannot be carried out.
    """
    check_values(given, KINDS)
    values = {**(filled or {}), **given}
    parts = [{field.name: values[field.name] for field in fields(kind) if field.name in values} for kind in KINDS]
    try:
        model, data, loop = ModelArguments(**parts[0]), DataArguments(**parts[1]), FinetuneArguments(**parts[2])
    except ValueError as error:  # transformers' own checks of its arguments
        raise ArgumentError(" ".join(str(error).split())) from error
    return Arguments(model, data, loop, {name: value for name, value in given.items() if not is_secret(name)})


def _asks_for(what: str) -> bool:
    """Whether accelerate's launcher asks for this."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"
