"""Every flag of transformers' `TrainingArguments` works, is passed on, or is refused; none is accepted and ignored."""

import ast
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.data.collate import Counts
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.inherited import RANGES, REFUSED
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.samples import EVALUATION_FIGURES
from vibevoice_finetune.objective.objective import LossSums
from vibevoice_finetune.training.metrics import LossWeights, evaluation_metrics

TESTS = Path(__file__).parents[2]
EFFECTS = "unit/training/test_inherited_flags.py"
TRAINER = "unit/training/test_trainer.py"
TRAIN = "cli/test_train.py"
SHORT = ["--model_name_or_path", "M", "--train_jsonl", "F", "--output_dir", "O", "--do_train", "--report_to", "none"]

WORKS = {
    "activation_checkpointing": (TRAINER, "test_activation_checkpointing_gives_the_same_gradients"),
    "activation_checkpointing_kwargs": (EFFECTS, "test_every_second_layer_can_be_recomputed"),
    "adam_beta1": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "adam_beta2": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "adam_epsilon": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "bf16": (TRAIN, "test_float32_where_it_is_promised_and_bf16_elsewhere"),
    "data_seed": (EFFECTS, "test_the_seed_of_the_draws"),
    "dataloader_drop_last": (EFFECTS, "test_batches_are_loaded_as_asked"),
    "dataloader_num_workers": (EFFECTS, "test_batches_are_loaded_as_asked"),
    "dataloader_persistent_workers": (EFFECTS, "test_batches_are_loaded_as_asked"),
    "dataloader_pin_memory": (EFFECTS, "test_memory_is_pinned_for_a_gpu_only"),
    "dataloader_prefetch_factor": (EFFECTS, "test_batches_are_loaded_as_asked"),
    "disable_tqdm": (EFFECTS, "test_the_progress_bar_can_be_turned_off"),
    "do_eval": (TRAIN, "test_evaluation_alone"),
    "do_train": (TRAIN, "test_without_do_train_it_says_so_and_does_nothing"),
    "eval_delay": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "eval_on_start": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "eval_steps": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "eval_strategy": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "fsdp": ("distributed/test_launchers.py", "test_what_cannot_be_split_is_refused"),
    "full_determinism": (EFFECTS, "test_full_determinism_is_torchs"),
    "gradient_accumulation_steps": (TRAINER, "test_one_gradient_however_the_step_is_split"),
    "gradient_checkpointing": ("unit/test_arguments.py", "test_the_old_names_of_activation_checkpointing"),
    "gradient_checkpointing_kwargs": ("unit/test_arguments.py", "test_the_old_names_of_activation_checkpointing"),
    "greater_is_better": (EFFECTS, "test_the_best_checkpoint_is_the_one_that_the_metric_says"),
    "learning_rate": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "load_best_model_at_end": (TRAINER, "test_the_best_checkpoint_is_loaded_at_the_end"),
    "logging_first_step": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "logging_steps": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "logging_strategy": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "lr_scheduler_kwargs": (EFFECTS, "test_the_schedule_has_what_was_given"),
    "lr_scheduler_type": (EFFECTS, "test_the_schedule_has_what_was_given"),
    "max_grad_norm": (EFFECTS, "test_the_gradient_is_clipped_to_the_norm"),
    "max_steps": (EFFECTS, "test_evaluation_and_logs_come_when_asked"),
    "metric_for_best_model": (EFFECTS, "test_the_best_checkpoint_is_the_one_that_the_metric_says"),
    "num_train_epochs": (TRAIN, "test_the_command_lines_that_people_have_train"),
    "optim": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "optim_args": (EFFECTS, "test_the_optimizer_has_what_was_given"),
    "output_dir": (TRAIN, "test_the_command_lines_that_people_have_train"),
    "per_device_eval_batch_size": (EFFECTS, "test_batches_are_loaded_as_asked"),
    "per_device_train_batch_size": (TRAINER, "test_one_gradient_however_the_step_is_split"),
    "resume_from_checkpoint": (TRAIN, "test_resume_continues_and_a_taken_folder_is_refused"),
    "save_only_model": (TRAIN, "test_a_checkpoint_without_the_optimizer_is_not_gone_on_from"),
    "save_steps": (EFFECTS, "test_checkpoints_are_saved_when_asked"),
    "save_strategy": (EFFECTS, "test_checkpoints_are_saved_when_asked"),
    "save_total_limit": (EFFECTS, "test_checkpoints_are_saved_when_asked"),
    "seed": (EFFECTS, "test_the_seed_of_the_draws"),
    "tf32": (EFFECTS, "test_tf32_is_turned_on_where_there_is_some"),
    "torch_compile": (TRAIN, "test_compiled_blocks_learn_the_same_and_save_the_same_names"),
    "torch_compile_backend": (TRAIN, "test_compiled_blocks_learn_the_same_and_save_the_same_names"),
    "torch_compile_mode": (EFFECTS, "test_blocks_are_compiled_in_the_mode"),
    "torch_empty_cache_steps": (EFFECTS, "test_the_cache_is_emptied_when_asked"),
    "use_cpu": (EFFECTS, "test_the_progress_bar_can_be_turned_off"),
    "use_liger_kernel": ("unit/objective/test_liger.py", "test_norms_mlp_and_rotary_become_ligers"),
    "warmup_steps": (EFFECTS, "test_the_schedule_has_what_was_given"),
    "weight_decay": (EFFECTS, "test_the_optimizer_has_what_was_given"),
}
"""Flags that work, each with a test of its effect."""

PASSED_ON = {
    "a launcher, or torch's DDP": {
        "ddp_backend",
        "ddp_broadcast_buffers",
        "ddp_bucket_cap_mb",
        "ddp_find_unused_parameters",
        "ddp_static_graph",
        "ddp_timeout",
        "local_rank",
    },
    "transformers' logging": {"log_level", "log_level_replica", "log_on_each_node"},
    "a logger": {
        "project",
        "report_to",
        "run_name",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    },
    "the Hub": {"hub_model_id", "hub_private_repo", "hub_revision", "hub_token", "push_to_hub"},
}
"""Flags whose effect is another program's; see the tests of loggers, launchers and uploads."""


def inherited() -> set[str]:
    return {field.name for field in fields(TrainingArguments)}


def test_every_flag_is_exactly_one_of_the_three() -> None:
    """A new transformers with a flag that nobody has looked at fails here: give it its place."""
    places = [set(WORKS), set(REFUSED), *PASSED_ON.values()]
    assert sorted(name for place in places for name in place) == sorted(inherited())


def test_every_test_that_is_named_exists() -> None:
    for path, name in set(WORKS.values()):
        tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def hostile(name: str) -> str:
    """A value that differs from the default and that the flag's type allows."""
    special = {"train_sampling_strategy": "sequential", "hub_strategy": "end", "label_smoothing_factor": "0.1"}
    field = next(field for field in fields(FinetuneArguments) if field.name == name)
    if name in special:
        return special[name]
    if isinstance(field.default, bool):
        return str(not field.default)
    return "4"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_would_have_no_effect_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        parse([*SHORT, f"--{name}", hostile(name)])
    message = str(caught.value)
    assert message == f"--{name} {hostile(name).removesuffix('.0')}: {REFUSED[name]}."
    assert any(word in message for word in ("leave it out", "use ", "put ", "are ", "says ", "splits "))


def test_the_default_of_a_refused_flag_is_accepted() -> None:
    """Old scripts write defaults out."""
    words = []
    for field in fields(FinetuneArguments):
        if field.name in REFUSED and field.default not in (MISSING, None, ""):
            words += [f"--{field.name}", str(getattr(field.default, "value", field.default))]
    assert len(words) > 20
    assert parse([*SHORT, *words]).loop.do_train


def test_ranges_are_of_flags_that_there_are() -> None:
    own = {field.name for field in fields(LoopFlags)}
    assert set(RANGES) <= inherited() - own - set(REFUSED)


def test_every_number_of_transformers_has_a_range() -> None:
    """Unless it is refused, or declared again with its range in `flags/loop.py`."""
    hints = {field.name: field.type for field in fields(TrainingArguments)}
    numbers = {
        name
        for name, hint in hints.items()
        if str(hint) in ("<class 'int'>", "<class 'float'>", "int | None", "float | None")
    }
    declared = {field.name for field in fields(LoopFlags) if field.metadata["range"] is not None}
    assert numbers - set(REFUSED) - declared - set(RANGES) == set()


def test_schedules_and_optimizers_are_all_looked_at() -> None:
    """What is offered exists; what is new in transformers is offered or put here."""
    offered = {"lr_scheduler_type": SchedulerType, "optim": OptimizerNames}
    not_offered = {
        "lr_scheduler_type": {"reduce_lr_on_plateau", "greedy"},
        "optim": {
            *("adamw_torch_xla", "adamw_torch_npu_fused", "adamw_anyprecision"),
            *("adamw_torch_4bit", "adamw_torch_8bit", "ademamix", "ademamix_8bit", "paged_ademamix_32bit"),
            *("paged_ademamix_8bit", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "lomo", "adalomo"),
            *("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "galore_adamw_layerwise"),
            *("galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "grokadamw", "schedule_free_radam"),
            *("schedule_free_adamw", "schedule_free_sgd", "apollo_adamw", "apollo_adamw_layerwise"),
            *("stable_adamw",),
        },
    }
    for name, kind in offered.items():
        (field,) = (field for field in fields(LoopFlags) if field.name == name)
        choices = set(field.type.__args__)
        theirs = {member.value for member in kind}
        assert choices <= theirs
        assert choices | not_offered[name] == theirs
        for value in not_offered[name]:
            with pytest.raises(ArgumentError, match=f"--{name} {value}: must be one of"):
                parse([*SHORT, f"--{name}", value])


def test_the_metrics_that_can_choose_the_best_are_those_of_an_evaluation() -> None:
    import torch

    sums = {name: torch.ones((), dtype=torch.float64) for name in LossSums.__annotations__}
    found = evaluation_metrics(sums, Counts(1, 1, 1, 1, 1), LossWeights(1.0, 1.0, 1.0))
    assert set(EVALUATION_FIGURES) == set(found)
