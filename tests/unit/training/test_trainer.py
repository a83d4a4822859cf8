"""The loop on a small model: one gradient however a step is split, only what should move moves, it resumes."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from tests.rows import Small
from vibevoice_finetune.adapters.attach import AdapterPlan, attach
from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.training import callbacks
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints
from vibevoice_finetune.training.trainer import FinetuneTrainer

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def small(golden_dir, tmp_path_factory):
    return Small(golden_dir / "untied" / "checkpoint", tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


def plan(head="frozen", connectors=False, targets=TARGETS, dropout=0.0):
    return AdapterPlan(
        lora_r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        lora_target_modules=targets,
        head=head,
        train_connectors=connectors,
        layers_to_freeze=(),
    )


def arguments(output_dir: Path, **changes) -> FinetuneArguments:
    defaults = {
        "output_dir": str(output_dir),
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "do_train": True,
    }
    return FinetuneArguments(**{**defaults, **changes})


def trainer(
    small, output_dir, chosen=None, *, numbers=range(8), eval_numbers=None, draws=None, samples=None, **changes
):
    objective = small.objective()
    torch.manual_seed(3)
    attach(objective.model, chosen or plan())
    eval_set = small.dataset(eval_numbers, evaluation=True, **(draws or {})) if eval_numbers is not None else None
    return FinetuneTrainer(
        objective,
        arguments(output_dir, **changes),
        small.dataset(numbers, **(draws or {})),
        eval_set,
        export=lambda folder: folder.mkdir(parents=True),
        identity={},
        samples=samples,
    )


def gradients(built):
    """Gradients of the first optimizer step, caught before the optimizer uses them."""
    caught = {}

    class Catch(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            caught.update({name: p.grad.clone() for name, p in built.parameters.items()})

    built.add_callback(Catch())
    built.train()
    return caught


def test_one_gradient_however_the_step_is_split(small, tmp_path):
    everything = plan("full", connectors=True)
    found = [
        gradients(
            trainer(
                small,
                tmp_path / f"{rows}x{accumulated}",
                everything,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=accumulated,
                max_steps=1,
            )
        )
        for rows, accumulated in [(8, 1), (4, 2), (1, 8)]
    ]
    assert len(found[0]) > 20
    for other in found[1:]:
        assert set(other) == set(found[0])
        for name, gradient in found[0].items():
            scale = gradient.abs().max()
            assert (gradient - other[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "chosen",
    [
        plan(),
        plan(targets=("q_proj",)),
        plan("full"),
        plan("lora"),
        plan(connectors=True),
        plan("full", connectors=True),
        plan("lora", connectors=True),
        plan("full", targets=()),
    ],
    ids=["lora", "lora q", "head", "head lora", "connectors", "head connectors", "head lora connectors", "head alone"],
)
def test_only_what_is_trained_moves(small, tmp_path, chosen, checkpointing):
    built = trainer(
        small, tmp_path, chosen, max_steps=2, per_device_train_batch_size=4, activation_checkpointing=checkpointing
    )
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    caught = gradients(built)
    trained = {f"model.{name}" for name in built.parameters}
    for name, value in built.model.state_dict().items():
        if name in trained:
            assert not torch.equal(value, before[name]), f"{name} did not move"
        else:
            assert torch.equal(value, before[name]), f"{name} moved"
    for name, gradient in caught.items():
        if "lora_B" in name:
            assert gradient.abs().max() > 0, f"{name} has no gradient"
        assert built.parameters[name].dtype == torch.float32, name
    if chosen.lora_target_modules:
        assert any("language_model" in name and "lora_B" in name for name in caught)


def test_activation_checkpointing_gives_the_same_gradients(small, tmp_path):
    plain, recomputed = (
        gradients(
            trainer(
                small,
                tmp_path / str(on),
                plan("full", connectors=True),
                max_steps=1,
                per_device_train_batch_size=4,
                activation_checkpointing=on,
            )
        )
        for on in (False, True)
    )
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def logs_of(output_dir):
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def test_logs_have_the_parts_of_the_loss(small, tmp_path):
    built = trainer(
        small,
        tmp_path,
        max_steps=4,
        per_device_train_batch_size=2,
        diffusion_loss_weight=1.4,
        ce_loss_weight=0.5,
        control_loss_weight=2.0,
        gradient_accumulation_steps=2,
        logging_steps=2,
    )
    built.train()
    logged = [log for log in logs_of(tmp_path) if "loss" in log]
    assert [log["step"] for log in logged] == [2, 4]
    for log in logged:
        total = 1.4 * log["diffusion_loss"] + 0.5 * log["text_loss"] + 0.5 * 2.0 * log["control_loss"]
        assert log["loss"] == pytest.approx(total, rel=1e-5)
        assert log["grad_norm"] > 0
        assert log["learning_rate"] == 1e-2
        assert log["frames_per_second"] > 0
        assert 0 <= log["control_go_accuracy"] <= 1
        assert 0 <= log["control_stop_accuracy"] <= 1


def test_evaluation_weighs_every_frame_the_same_and_moves_only_with_the_model(small, tmp_path):
    built = trainer(small, tmp_path, eval_numbers=range(8), max_steps=2, per_device_eval_batch_size=8)
    first = built.evaluate()
    built.args.per_device_eval_batch_size = 3
    other_batches = built.evaluate()
    for name in ("eval_loss", "eval_diffusion_loss", "eval_text_loss", "eval_control_loss"):
        assert first[name] == pytest.approx(other_batches[name], rel=1e-5)
        assert first[name] > 0
    built.train()
    assert built.evaluate()["eval_loss"] != pytest.approx(first["eval_loss"], rel=1e-3)


def test_the_average_is_used_for_evaluation_and_taken_out_again(small, tmp_path):
    built = trainer(small, tmp_path, eval_numbers=[0], max_steps=3, ema_decay=0.9)
    start = {name: p.detach().clone() for name, p in built.parameters.items()}
    built.train()
    assert built.ema.num_updates == 3
    trained = {name: p.detach().clone() for name, p in built.parameters.items()}
    averaged = built.evaluate()["eval_loss"]
    for name, value in built.parameters.items():
        assert torch.equal(value, trained[name])
    built.ema = None
    assert built.evaluate()["eval_loss"] != averaged
    assert any(not torch.equal(trained[name], start[name]) for name in start)


def test_resuming_gives_the_same_weights_and_metrics(small, tmp_path):
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 1,
        "ema_decay": 0.9,
        "lr_scheduler_type": "cosine",
    }
    chosen = plan("full", dropout=0.1)
    whole = trainer(small, tmp_path / "whole", chosen, **settings)
    whole.train()
    for stopped_at in (1, 2, 3):
        folder = tmp_path / f"stopped{stopped_at}"
        first = trainer(small, folder, chosen, **settings)

        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == stopped_at  # noqa: B023

        first.add_callback(Stop())
        first.train()
        newest = complete_checkpoints(folder)[-1]
        assert newest.name == f"checkpoint-{stopped_at}"
        second = trainer(small, folder, chosen, **settings)
        second.train(resume_from_checkpoint=str(newest))
        for name, value in whole.parameters.items():
            assert torch.equal(value, second.parameters[name]), name
        for name, value in whole.ema.average.items():
            assert torch.equal(value, second.ema.average[name]), name
        for one, other in zip(logs_of(tmp_path / "whole"), logs_of(folder), strict=True):
            timed = {name for name in one if "per_second" in name or "runtime" in name or name == "train_loss"}
            assert {k: v for k, v in one.items() if k not in timed} == {
                k: v for k, v in other.items() if k not in timed
            }
        resumed = [log for log in logs_of(folder) if log["step"] > stopped_at]
        losses = [log["loss"] for log in resumed if "loss" in log]
        (closing,) = [log["train_loss"] for log in resumed if "train_loss" in log]
        assert closing == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_checkpoint_holds_what_is_trained_and_nothing_else(small, tmp_path):
    built = trainer(small, tmp_path, plan("full"), max_steps=1, save_strategy="steps", save_steps=1)
    built.train()
    (folder,) = complete_checkpoints(tmp_path)
    stored = load_file(folder / "trainable.safetensors")
    assert set(stored) == set(built.parameters)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


def test_the_best_checkpoint_is_loaded_at_the_end(small, tmp_path):
    built = trainer(
        small,
        tmp_path,
        eval_numbers=[0, 1],
        max_steps=4,
        learning_rate=0.5,  # far too high, so that the first evaluation is the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
    )
    built.train()
    losses = {log["step"]: log["eval_loss"] for log in logs_of(tmp_path) if "eval_loss" in log}
    best = min(losses, key=losses.get)
    assert built.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    assert built.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)


def test_every_callback_method_exists_on_the_base_class():
    hooks = {name for name, _ in inspect.getmembers(TrainerCallback, inspect.isfunction) if name.startswith("on_")}
    for name, kind in inspect.getmembers(callbacks, inspect.isclass):
        if issubclass(kind, TrainerCallback):
            own = {method for method in vars(kind) if method.startswith("on_")}
            assert own <= hooks, f"{name}: {own - hooks} are never called"


def test_a_step_gone_bad_is_skipped_and_nothing_moves(small, tmp_path, caplog):
    built = trainer(small, tmp_path, max_steps=3, per_device_train_batch_size=8, save_strategy="steps", save_steps=1)
    rows = built.train_set.rows
    at = {}

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            at[state.global_step] = {name: p.detach().clone() for name, p in built.parameters.items()}

    built.add_callback(Poison())
    plain = built.compute_loss
    calls = iter(range(10))

    def poisoned(model, inputs, return_outputs=False, num_items_in_batch=None):
        if next(calls) == 1:
            inputs["noise"] = inputs["noise"].clone()
            inputs["noise"][0, 0, 0] = float("nan")
        return plain(model, inputs, return_outputs, num_items_in_batch)

    built.compute_loss = poisoned
    built.train()
    assert "step 2 is skipped: the diffusion loss of" in caplog.text
    assert all(row.where in caplog.text for row in rows)
    for name, value in at[2].items():
        assert torch.equal(value, at[1][name]), f"{name} moved in a skipped step"
        if "lora_B" in name:  # A's first gradient is zero, because B starts at zero
            assert not torch.equal(value, at[0][name])
        assert torch.isfinite(built.parameters[name]).all()
    logged = {log["step"]: log for log in logs_of(tmp_path) if "loss" in log}
    assert logged[2]["skipped_steps"] == 1
    assert all(abs(log["loss"]) < 1e9 for log in logged.values())
