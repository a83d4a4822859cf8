"""What an optimizer or a schedule does not take is found out while parsing."""

import pytest

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.trial import check_optimizer_arguments, check_schedule


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", {"x": 1}, "unexpected keyword argument 'x'"),
        ("cosine_with_min_lr", {}, "--lr_scheduler_type cosine_with_min_lr needs --lr_scheduler_kwargs: "),
        ("cosine_with_min_lr", {"min_lr": "1e-6"}, "--lr_scheduler_kwargs {'min_lr': '1e-6'}: unsupported"),
        ("warmup_stable_decay", {}, "num_decay_steps"),
        ("polynomial", {"lr_end": 1.0}, "lr_end"),
        ("cosine_with_restarts", {"num_cycles": float("nan")}, "not finite"),
    ],
)
def test_schedules_that_cannot_be(name, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        check_schedule(name, 1e-4, arguments)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cosine", {"num_cycles": 2}),
        ("cosine_with_min_lr", {"min_lr": 1e-6}),
        ("warmup_stable_decay", {"num_decay_steps": 3, "min_lr_ratio": 0.1}),
        ("polynomial", {"power": 2.0}),
    ],
)
def test_schedules_that_can(name, arguments):
    check_schedule(name, 1e-4, arguments)


@pytest.mark.parametrize(
    ("optimizer", "text", "message"),
    [
        ("adamw_torch", "a=1", "adamw_torch takes none"),
        ("sgd", "momentum", "as in momentum=0.9"),
        ("sgd", "weight_decay=1", "sgd takes momentum, dampening, nesterov"),
        ("sgd", "momentum=nan", "momentum must be a number of at least 0"),
        ("sgd", "momentum=-1", "momentum must be a number of at least 0"),
        ("sgd", "nesterov=2", "nesterov must be true or false"),
        ("sgd", "nesterov=true", "nesterov needs a momentum"),
        ("rmsprop", "eps=0", "eps must be"),
    ],
)
def test_arguments_that_an_optimizer_would_ignore(optimizer, text, message):
    with pytest.raises(ArgumentError, match=message):
        check_optimizer_arguments(optimizer, text)


def test_arguments_that_it_takes():
    check_optimizer_arguments("sgd", "momentum=0.9, nesterov=true")
    check_optimizer_arguments("rmsprop", "alpha=0.5,centered=True")
