"""Optimizer and schedule, built once for a single number while parsing: what they do not take is found out then.

The one module of this room that imports torch; `arguments.py` uses it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import get_scheduler

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import shown

TRIAL_STEPS = 10
OPTIMIZER_ARGUMENTS = {
    "sgd": ("momentum", "dampening", "nesterov"),
    "adagrad": ("lr_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "centered"),
}
"""What `--optim_args` may set, as `name=value` separated by commas; the weight decay is a flag of its own."""


def check_schedule(name: str, learning_rate: float, arguments: Mapping[str, Any]) -> None:
    """Run a schedule of ten steps.

    Raises:
        ArgumentError: an argument that it does not take, or whose value makes no learning rate.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    try:
        schedule = get_scheduler(name, optimizer, 1, TRIAL_STEPS, scheduler_specific_kwargs=dict(arguments))
        rates = []
        for _ in range(TRIAL_STEPS):
            optimizer.step()
            schedule.step()
            rates.append(float(optimizer.param_groups[0]["lr"]))
    except (TypeError, ValueError, ArithmeticError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split()).replace("_get_", "get_") or type(error).__name__
        if not arguments:
            raise ArgumentError(f"--lr_scheduler_type {name} needs --lr_scheduler_kwargs: {reason}.") from error
        raise ArgumentError(f"--lr_scheduler_kwargs {shown(dict(arguments))}: {reason}.") from error
    numbers = [*rates, *(value for value in arguments.values() if isinstance(value, float))]
    if not all(map(math.isfinite, numbers)):
        raise ArgumentError(
            f"--lr_scheduler_kwargs {shown(dict(arguments))}: holds or makes numbers that are not finite."
        )


def check_optimizer_arguments(optimizer: str, text: str) -> None:
    """Refuse what the optimizer would ignore, or choke on.

    Raises:
        ArgumentError: says what it takes.
    """
    known = OPTIMIZER_ARGUMENTS.get(optimizer, ())
    if not known:
        raise ArgumentError(f"--optim_args {shown(text)}: {optimizer} takes none; leave it out.")
    for pair in text.replace(" ", "").split(","):
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            raise ArgumentError(
                f"--optim_args {shown(text)}: {optimizer} takes {', '.join(known)}, as in {known[0]}=0.9."
            )
        if name in ("nesterov", "centered"):
            holds, expected = value.lower() in ("true", "false"), "true or false"
        else:
            holds, expected = _is_share_or_positive(name, value), "a number of at least 0"
        if not holds:
            raise ArgumentError(f"--optim_args {shown(text)}: {name} must be {expected}.")
    if "nesterov=true" in text.lower() and "momentum" not in text:
        raise ArgumentError(f"--optim_args {shown(text)}: nesterov needs a momentum, as in momentum=0.9,nesterov=true.")


def _is_share_or_positive(name: str, value: str) -> bool:
    try:
        number = float(value)
    except ValueError:
        return False
    return math.isfinite(number) and number >= 0 and (name != "eps" or number > 0)
