"""A parsed command line of `train`, as the rest of the program sees it.

The flags are declared in `flags/`, without torch; this joins them with transformers' `TrainingArguments`, checks what
only a look at this machine or at several flags together can tell, and refuses what cannot be carried out: before any
data is touched.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # left out of its __all__
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.data import DataArguments
from vibevoice_finetune.flags.declare import check_values, shown
from vibevoice_finetune.flags.inherited import RANGES, REFUSED, check_refused
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.machine import (
    check_attention,
    check_bitsandbytes,
    check_compiler,
    check_liger,
    check_loggers,
    is_installed,
)
from vibevoice_finetune.flags.model import ModelArguments
from vibevoice_finetune.flags.samples import Steering, steering_by
from vibevoice_finetune.flags.secrets import is_secret
from vibevoice_finetune.flags.trial import check_optimizer_arguments, check_schedule

FSDP_FLAGS = ("false", "true", "full_shard", "full_shard auto_wrap")
SPLIT_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
NEEDS_SCHEDULER_KWARGS = ("cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay")
"""Schedules that do not work without `--lr_scheduler_kwargs`."""

PATH_FLAGS = frozenset(
    declared.name
    for kind in (ModelArguments, DataArguments, LoopFlags)
    for declared in fields(kind)
    if declared.metadata["is_path"]
)
"""Flags whose value is, or may be, a place on this machine."""


@dataclass
class FinetuneArguments(LoopFlags, TrainingArguments):  # type: ignore[misc]  # our choices are fewer
    """The loop and the losses, on top of transformers' `TrainingArguments`."""

    def __post_init__(self) -> None:
        self._check_run()
        self._check_launcher()
        self._check_optimization()
        self._check_loading()
        self.check_samples()
        if not self.gradient_clipping:
            self.max_grad_norm = 0.0
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        self.report_to = check_loggers(self._named_loggers())
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # the old name, without its warning
        if self.activation_checkpointing_kwargs is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        self._steering = self._take_steering()
        if self.bf16 and not torch.cuda.is_available():
            self.use_cpu = True  # transformers refuses bf16 without a GPU unless the CPU is asked for
        self._splits_weights = self._takes_fsdp()
        if self._splits_weights and self.sample_steps:
            raise ArgumentError(
                "--sample_steps and --fsdp: one process speaks, and with --fsdp none has the whole model; leave one of "
                "the two out, and listen to the run checkpoints with the command evaluate."
            )
        loads_best, self.load_best_model_at_end = self.load_best_model_at_end, False
        super().__post_init__()  # type: ignore[no-untyped-call]
        # transformers wants evaluations and checkpoints at the same steps for it; here the best weights are saved as
        # soon as they are found.
        self.load_best_model_at_end = loads_best

    def _named_loggers(self) -> list[str]:
        if self.report_to is None:
            return ["tensorboard"] if is_installed("tensorboard") else []
        return self.report_to if isinstance(self.report_to, list) else self.report_to.split(",")

    def _check_run(self) -> None:
        if self.output_dir is None:
            raise ArgumentError("--output_dir is missing: the folder that the result goes to.")
        if self.max_steps == 0:
            raise ArgumentError("--max_steps 0: must be at least 1; for whole epochs leave it out.")
        if self.fp16:
            raise ArgumentError(f"--fp16: {REFUSED['fp16']}.")
        if self.hub_model_id is not None:
            try:
                validate_repo_id(self.hub_model_id)
            except HFValidationError as error:
                raise ArgumentError(
                    f"--hub_model_id {shown(self.hub_model_id)}: is not a name of a repository, such as me/my-voice."
                ) from error
        if self.torch_compile or self.torch_compile_backend or self.torch_compile_mode:
            known, usual = torch.compiler.list_backends(exclude_tags=()), torch.compiler.list_backends()
            check_compiler(self.torch_compile_backend or "inductor", known, usual, on_gpu=self.on_gpu)
            if self.torch_compile_mode not in (None, *COMPILE_MODES):
                raise ArgumentError(
                    f"--torch_compile_mode {shown(self.torch_compile_mode)}: must be one of {', '.join(COMPILE_MODES)}."
                )

    def _check_optimization(self) -> None:
        if self.warmup_ratio and self.warmup_steps not in (0, self.warmup_ratio):
            raise ArgumentError("--warmup_ratio and --warmup_steps exclude each other; leave one of the two out.")
        if "8bit" in self.optim or "32bit" in self.optim:
            check_bitsandbytes(f"--optim {self.optim}")
        if self.optim_args:
            check_optimizer_arguments(self.optim, self.optim_args)
        if self.lr_scheduler_kwargs is not None or self.lr_scheduler_type in NEEDS_SCHEDULER_KWARGS:
            kwargs = self.lr_scheduler_kwargs or {}
            assert isinstance(kwargs, dict)
            check_schedule(self.lr_scheduler_type, self.learning_rate, kwargs)
        for chosen in (self.activation_checkpointing_kwargs, self.gradient_checkpointing_kwargs):
            for name, value in (chosen if isinstance(chosen, dict) else {}).items():
                every = name == "every_n_layers" and isinstance(value, int) and value >= 1
                if not (every or (name == "use_reentrant" and value is False)):
                    raise ArgumentError(
                        f"--activation_checkpointing_kwargs {shown(chosen)}: only every_n_layers (at least 1) can be "
                        "set; use_reentrant is always false."
                    )

    def _take_steering(self) -> Steering | None:
        """Which figure decides on the best weights and on an early end, if one does."""
        if self.early_stopping_patience:
            self.load_best_model_at_end = True
        chooses = self.load_best_model_at_end or self.save_strategy == "best"
        metric = self.metric_for_best_model or "loss"
        steering = steering_by(metric, self.greater_is_better, self.early_stopping_patience)
        if self.metric_for_best_model or chooses:
            self.metric_for_best_model, self.greater_is_better = steering.figure, steering.higher_is_better
        evaluates = IntervalStrategy(self.eval_strategy) is not IntervalStrategy.NO
        if steering.of_samples and not (self.sample_steps and self.sample_metrics):
            raise ArgumentError(
                f"--metric_for_best_model {metric} needs --sample_steps above 0 and --sample_metrics True."
            )
        self._saves_best = chooses
        if steering.of_samples and self.save_strategy == "best":
            self.save_strategy = "no"  # the best is saved when it is found; transformers would wait for an evaluation
        needing = {
            "early_stopping_patience": bool(self.early_stopping_patience) and not steering.of_samples,
            "load_best_model_at_end True": self.load_best_model_at_end and not steering.of_samples,
            "save_strategy best": self.save_strategy == "best",
            "eval_on_start True": self.eval_on_start,
        }
        for name, wanted in needing.items():
            if wanted and not evaluates:
                raise ArgumentError(f"--{name} needs --eval_strategy steps or epoch.")
        return steering if self.metric_for_best_model else None

    def _check_loading(self) -> None:
        if self.dataloader_num_workers == 0 and self.dataloader_persistent_workers:
            raise ArgumentError("--dataloader_persistent_workers needs --dataloader_num_workers above 0.")
        if self.dataloader_num_workers == 0 and self.dataloader_prefetch_factor is not None:
            raise ArgumentError("--dataloader_prefetch_factor needs --dataloader_num_workers above 0.")

    def _check_launcher(self) -> None:
        if self.deepspeed or _asks_for("DEEPSPEED"):
            raise ArgumentError(f"{REFUSED['deepspeed']}.")
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
    def on_gpu(self) -> bool:
        """Whether an NVIDIA GPU trains."""
        return torch.cuda.is_available() and not self.use_cpu

    @property
    def splits_by_request(self) -> bool:
        """Whether the flag or accelerate's configuration asks for FSDP; only until transformers has read them."""
        return str(self.fsdp or "false").lower() != "false" or _asks_for("FSDP")

    @property
    def splits_weights(self) -> bool:
        """Whether weights, gradients and the optimizer's state are split over processes (FSDP2)."""
        return self._splits_weights

    @property
    def steering(self) -> Steering | None:
        """Which figure decides on the best weights and on an early end; None: no figure does."""
        return self._steering

    @property
    def evaluation_figure(self) -> str | None:
        """The figure that decides, if an evaluation gives it."""
        return None if self._steering is None or self._steering.of_samples else self._steering.figure

    @property
    def saves_best(self) -> bool:
        """Whether the best weights are saved as soon as they are found."""
        return self._saves_best

    @property
    def place_model_on_device(self) -> bool | None:
        """For transformers: split weights lie where they belong, and moving them would fail."""
        return False if self._splits_weights else None

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation set is needed."""
        asked = bool(self.do_eval) or self.select_best_by is not None
        return asked or IntervalStrategy(self.eval_strategy) is not IntervalStrategy.NO

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
        given: the flags that somebody typed or wrote into a file, or that the recipe sets, with their values; no
            secrets.
        recipe_values: what the recipe sets; no secrets.
    """

    model: ModelArguments
    data: DataArguments
    loop: FinetuneArguments
    given: dict[str, Any]
    recipe_values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def changed_from_recipe(self) -> dict[str, Any]:
        """The flags that were given another value than the recipe's, with the recipe's."""
        return {name: value for name, value in self.recipe_values.items() if self.given.get(name) != value}


KINDS = (ModelArguments, DataArguments, FinetuneArguments)


def make_arguments(
    given: Mapping[str, Any],
    filled: Mapping[str, Any] | None = None,
    recipe_values: Mapping[str, Any] | None = None,
) -> Arguments:
    """Join the values of flags into what the rest of the program works with.

    Args:
        given: values that somebody gave, by the flag's name.
        filled: values that a command sets by itself where nothing was given; not recorded.
        recipe_values: those that the recipe sets; they are in `given` too, unless they were changed.

    Raises:
        ArgumentError: a value out of its range, a combination that cannot be carried out.
    """
    check_values(given, KINDS, RANGES)
    defaults = {declared.name: declared.default for declared in fields(FinetuneArguments)}
    for name, value in given.items():
        check_refused(name, value, defaults.get(name))
    values = {**(filled or {}), **given}
    parts = [{f.name: values[f.name] for f in fields(kind) if f.name in values} for kind in KINDS]
    try:
        model, data, loop = ModelArguments(**parts[0]), DataArguments(**parts[1]), FinetuneArguments(**parts[2])
    except ValueError as error:  # transformers' own checks of its arguments
        raise ArgumentError(" ".join(str(error).split())) from error
    check_attention(model.attn_implementation, on_gpu=loop.on_gpu, bf16=loop.bf16)
    if model.train_language_model and given.get("lora_target_modules", "none").strip().lower() != "none":
        raise ArgumentError(
            "--train_language_model and --lora_target_modules exclude each other: train all weights of the language "
            "model or LoRA on it; leave one of the two out."
        )
    if loop.use_liger_kernel:
        check_liger(on_gpu=loop.on_gpu)
    if model.quantised_bits:
        check_bitsandbytes(f"--load_in_{model.quantised_bits}bit")
    recorded, of_recipe = (
        {name: value for name, value in values.items() if not is_secret(name)}
        for values in (given, recipe_values or {})
    )
    return Arguments(model, data, loop, recorded, of_recipe)


def _asks_for(what: str) -> bool:
    """Whether accelerate's launcher asks for this."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"
