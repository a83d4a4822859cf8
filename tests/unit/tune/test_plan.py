from typing import Any

import pytest

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.tune import plan as room
from vibevoice_finetune.tune.plan import LARGE, MEDIUM, Machine, make_plan
from vibevoice_finetune.tune.recipe import values_of
from vibevoice_finetune.tune.words import words_of

GIB = 2**30


def gpu(gib: float) -> Machine:
    return Machine("cuda", "a GPU", gib * GIB)


@pytest.fixture(autouse=True)
def _no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan for a GPU is made on a machine without one: what is about this machine is answered for it."""
    monkeypatch.setattr(room, "is_installed", lambda _module: True)


def test_the_large_model_is_taken_where_it_fits() -> None:
    plan = make_plan(gpu(80), values_of("voice"))
    assert plan.model == LARGE
    assert plan.memory.fits(80 * GIB)
    assert "larger model fits" in plan.notes[0]


def test_a_smaller_gpu_gets_the_smaller_model_and_says_why() -> None:
    plan = make_plan(gpu(16), values_of("voice"))
    assert plan.model == MEDIUM
    assert plan.memory.fits(16 * GIB)
    assert "7B model would need more" in plan.notes[0]


def test_what_saves_memory_is_added_and_said() -> None:
    small = make_plan(gpu(9), values_of("voice"))
    assert small.model == MEDIUM
    assert small.memory.fits(9 * GIB)
    assert small.values["gradient_checkpointing"] is True
    assert any("to fit into its memory" in note for note in small.notes)


def test_a_batch_that_shrinks_is_the_same_step() -> None:
    values = make_plan(gpu(16), values_of("voice")).values
    assert values["per_device_train_batch_size"] < 8
    assert values["per_device_train_batch_size"] * values["gradient_accumulation_steps"] == 8


def test_what_the_user_says_goes_first() -> None:
    plan = make_plan(gpu(80), values_of("voice"), MEDIUM, {"max_steps": 7})
    assert (plan.model, plan.values["max_steps"]) == (MEDIUM, 7)


def test_without_a_gpu_a_model_must_be_named() -> None:
    with pytest.raises(UserError, match=r"no GPU was found.*--model_name_or_path small"):
        make_plan(Machine("cpu", "", 16 * GIB), values_of("voice"))


def test_a_gpu_that_is_far_too_small_is_refused() -> None:
    with pytest.raises(UserError, match=r"cannot be trained in the 2\.1 GB of a GPU"):
        make_plan(gpu(2), values_of("voice"))


def test_a_missing_package_is_said_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_installed", lambda _module: False)
    with pytest.raises(UserError, match="bitsandbytes is not installed"):
        room._check_packages({"load_in_4bit": "True"})


def test_values_become_words() -> None:
    values: dict[str, Any] = {"bf16": True, "learning_rate": 2.5e-5, "optim": "sgd"}
    assert words_of(values) == ["--bf16", "True", "--learning_rate", "2.5e-05", "--optim", "sgd"]
