"""The effects of flags that transformers brings: each is seen in what is built, or in what a short run does."""

from pathlib import Path

import pytest
import torch
import transformers.trainer
import transformers.training_args
from torch import nn
from transformers import ProgressCallback, TrainerCallback

from tests.rows import Small
from tests.unit.training.test_trainer import arguments, plan, trainer
from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.objective.compilation import compile_blocks
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints


@pytest.fixture(scope="module")
def small(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(golden_dir / "untied" / "checkpoint", tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


@pytest.mark.parametrize(
    ("flags", "kind", "expected"),
    [
        (
            {"learning_rate": 0.5, "adam_beta1": 0.8, "adam_beta2": 0.7, "adam_epsilon": 1e-3, "weight_decay": 0.25},
            torch.optim.AdamW,
            {"lr": 0.5, "betas": (0.8, 0.7), "eps": 1e-3, "weight_decay": 0.25, "fused": True},
        ),
        ({"optim": "adamw_torch"}, torch.optim.AdamW, {"betas": (0.9, 0.999), "fused": None}),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
            torch.optim.SGD,
            {"momentum": 0.9, "nesterov": True},
        ),
        ({"optim": "rmsprop", "optim_args": "alpha=0.5"}, torch.optim.RMSprop, {"alpha": 0.5}),
        ({"optim": "adagrad", "optim_args": "lr_decay=0.5"}, torch.optim.Adagrad, {"lr_decay": 0.5}),
        ({"optim": "adafactor", "learning_rate": 0.1}, transformers.Adafactor, {"lr": 0.1}),
    ],
)
def test_the_optimizer_has_what_was_given(small, tmp_path, flags, kind, expected):
    built = trainer(small, tmp_path, **flags)
    optimizer = built.create_optimizer()
    assert type(optimizer) is kind
    assert expected.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"lr_scheduler_type": "constant"}, [1, 1, 1, 1]),
        ({"lr_scheduler_type": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"lr_scheduler_type": "linear", "warmup_steps": 2}, [0, 0.5, 1, 0.5]),
        ({"lr_scheduler_type": "linear", "warmup_steps": 0.5}, [0, 0.5, 1, 0.5]),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.5}, [0, 0.5, 1, 0.5]),
        # half a cosine from 1 down to the smallest rate of 0.5: 0.75 + 0.25 cos(pi step / 4)
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.5}},
            [1, 0.75 + 0.25 * 2**-0.5, 0.75, 0.75 - 0.25 * 2**-0.5],
        ),
    ],
)
def test_the_schedule_has_what_was_given(small, tmp_path, flags, expected):
    built = trainer(small, tmp_path, learning_rate=1.0, **flags)
    built.create_optimizer_and_scheduler(num_training_steps=4)
    rates = []
    for _ in expected:
        rates.append(built.optimizer.param_groups[0]["lr"])
        built.optimizer.step()
        built.lr_scheduler.step()
    assert rates == pytest.approx(expected)


def test_the_gradient_is_clipped_to_the_norm(small, tmp_path):
    """With plain gradient descent at rate 1, a step is as long as the gradient."""
    lengths = {}
    for clips in (False, True):
        flags = {"optim": "sgd", "learning_rate": 1.0, "gradient_clipping": clips, "max_grad_norm": 1e-3}
        built = trainer(small, tmp_path / str(clips), max_steps=1, **flags)
        before = {name: value.detach().clone() for name, value in built.parameters.items()}
        built.train()
        moved = [(value.detach() - before[name]).flatten() for name, value in built.parameters.items()]
        lengths[clips] = torch.cat(moved).norm().item()
    assert lengths[False] > 2e-3
    assert lengths[True] == pytest.approx(1e-3, rel=0.01)


def test_evaluation_and_logs_come_when_asked(small, tmp_path):
    def steps(name: str, **flags: object) -> tuple[list[int], list[int]]:
        built = trainer(small, tmp_path / name, eval_numbers=range(2), max_steps=4, **flags)
        built.train()
        log = built.state.log_history
        logged = [entry["step"] for entry in log if "learning_rate" in entry]
        return logged, [entry["step"] for entry in log if "eval_loss" in entry]

    assert steps("log", logging_steps=2, logging_first_step=True) == ([1, 2, 4], [])
    assert steps("no", logging_strategy="no") == ([], [])
    every_second = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 3}
    assert steps("eval", **every_second) == ([3], [2, 4])
    assert steps("start", **every_second, eval_on_start=True) == ([3], [0, 2, 4])
    assert steps("late", **every_second, eval_delay=3) == ([3], [4])


def test_checkpoints_are_saved_when_asked(small, tmp_path):
    def saved(name: str, **flags: object) -> list[str]:
        trainer(small, tmp_path / name, max_steps=3, per_device_train_batch_size=4, **flags).train()
        return [folder.name for folder in complete_checkpoints(tmp_path / name)]

    assert saved("no", save_strategy="no") == []
    assert saved("steps", save_strategy="steps", save_steps=2) == ["checkpoint-2", "checkpoint-3"]
    assert saved("epoch", save_strategy="epoch") == ["checkpoint-2", "checkpoint-3"]  # eight rows, two batches of four
    # The one before stays until a further step has shown that the newest is good; `train` deletes it at the end.
    kept = saved("limit", save_strategy="steps", save_steps=1, save_total_limit=1)
    assert kept == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("greater", [False, True])
def test_the_best_checkpoint_is_the_one_that_the_metric_says(small, tmp_path, greater):
    built = trainer(small, tmp_path, metric_for_best_model="text_loss", greater_is_better=greater)
    better = []
    for step, number in enumerate([3.0, 1.0, 2.0, 4.0], start=1):
        built.state.global_step = step
        better.append(built._determine_best_metric({"eval_text_loss": number, "eval_loss": 0.0}, None))
    assert better == ([True, False, False, True] if greater else [True, True, False, False])


def test_batches_are_loaded_as_asked(small, tmp_path):
    flags = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    built = trainer(small, tmp_path, numbers=range(7), eval_numbers=range(5), per_device_train_batch_size=2,
                    per_device_eval_batch_size=3, dataloader_drop_last=True, **flags)  # fmt: skip
    loader = built.get_train_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 3, True)
    assert len(loader) == 3  # seven rows by twos, the last one dropped
    assert len(built.get_eval_dataloader()) == 2
    assert len(trainer(small, tmp_path, numbers=range(7), per_device_train_batch_size=2).get_train_dataloader()) == 4


def test_memory_is_pinned_for_a_gpu_only(small, tmp_path, monkeypatch):
    built = trainer(small, tmp_path)
    assert not built.get_train_dataloader().pin_memory
    monkeypatch.setattr(FinetuneArguments, "device", torch.device("cuda"))
    for pins in (True, False):
        built.args.dataloader_pin_memory = pins
        assert built.get_train_dataloader().pin_memory is pins


def test_the_progress_bar_can_be_turned_off(small, tmp_path):
    found = {}
    for disabled in (False, True):
        built = trainer(small, tmp_path, disable_tqdm=disabled)
        found[disabled] = any(isinstance(one, ProgressCallback) for one in built.callback_handler.callbacks)
        assert built.args.device.type == "cpu"
    assert found == {False: True, True: False}


def test_the_seed_of_the_draws(tmp_path):
    assert arguments(tmp_path, seed=7).draw_seed == 7
    assert arguments(tmp_path, seed=7, data_seed=8).draw_seed == 8


def test_full_determinism_is_torchs(small, tmp_path):
    try:
        trainer(small, tmp_path, full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_tf32_is_turned_on_where_there_is_some(tmp_path, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(transformers.training_args, "is_torch_tf32_available", lambda: True)
    monkeypatch.setattr(transformers.training_args, "enable_tf32", asked.append)
    for wanted in (True, False, None):
        arguments(tmp_path, tf32=wanted)
    assert asked == [True, False]


def test_the_cache_is_emptied_when_asked(small, tmp_path, monkeypatch):
    emptied: list[int] = []
    monkeypatch.setattr(transformers.trainer, "clear_device_cache", lambda: emptied.append(1))
    trainer(small, tmp_path, max_steps=4, torch_empty_cache_steps=2).train()
    assert len(emptied) == 2  # before steps 1 and 3


def test_every_second_layer_can_be_recomputed(small, tmp_path):
    def recomputed(**kwargs: int) -> int:
        built = trainer(small, tmp_path / str(kwargs), plan(), max_steps=1, activation_checkpointing=True,
                        activation_checkpointing_kwargs=kwargs or None)  # fmt: skip
        built.train()
        return sum(layer.gradient_checkpointing for layer in parts.language_model(built.model.model).layers)

    layers = len(parts.language_model(small.objective().model).layers)
    assert recomputed() == layers
    assert recomputed(every_n_layers=2) == (layers + 1) // 2


def test_blocks_are_compiled_in_the_mode(small, monkeypatch):
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **options: asked.append(options))
    compile_blocks(small.objective().model, "inductor", "max-autotune")
    assert len(asked) > 4
    assert {str(options["mode"]) for options in asked} == {"max-autotune"}


def test_a_callback_is_told_of_every_step(small, tmp_path):
    """The tests above count steps; this is what they count."""
    seen: list[int] = []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    built = trainer(small, tmp_path, max_steps=3)
    built.add_callback(Count())
    built.train()
    assert seen == [1, 2, 3]
