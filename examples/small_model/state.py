"""Training states on disk, learning rates and log lines: what all trainers here share.

States are saved beside and renamed, so that a run can be killed at any moment and go on.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write atomically."""
    beside = path.with_name(path.name + ".part")
    torch.save(state, beside)
    beside.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What was saved, or None."""
    return torch.load(path, map_location="cpu", weights_only=False) if path.exists() else None


def need_state(path: Path) -> dict[str, Any]:
    """What was saved by an earlier stage.

    Raises:
        FileNotFoundError: nothing was.
    """
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path}: is not there; run the stage that makes it first")
    return state


def cosine_lr(step: int, total: int, peak: float, warmup: int = 100, floor: float = 0.02) -> float:
    """Linear warm-up, then half a cosine down to `floor` of the peak."""
    done = min(1.0, step / total)
    return peak * min(1.0, (step + 1) / warmup) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One learning rate for all weights."""
    for group in optimizer.param_groups:
        group["lr"] = lr


class Meter:
    """Running means for a log line."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._count = 0
        self._since = time.perf_counter()

    def add(self, **values: float) -> None:
        """One step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def line(self, step: int, lr: float) -> str:
        """The means since the last line, and steps per second."""
        speed = self._count / (time.perf_counter() - self._since)
        means = " ".join(f"{name} {value / self._count:.4f}" for name, value in self._sums.items())
        self._sums, self._count, self._since = {}, 0, time.perf_counter()
        return f"{time.strftime('%H:%M:%S')} step {step} {means} lr {lr:.1e} {speed:.2f} steps/s"
