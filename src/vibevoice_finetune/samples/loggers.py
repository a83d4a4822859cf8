"""Samples in the loggers that transformers has set up: sound and picture to TensorBoard, W&B and trackio."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import TrainerCallback
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.errors import require


@dataclass(frozen=True, eq=False)
class Shown:
    """One sample for a logger.

    Attributes:
        name: the same at every step, such as ``samples/1``.
        caption: what was to be said.
        samples: (N,) at 24 kHz.
        picture: (H, W, 3).
    """

    name: str
    caption: str
    samples: NDArray[np.float32]
    picture: NDArray[np.uint8]


def show(callbacks: Iterable[TrainerCallback], step: int, shown: Iterable[Shown]) -> None:
    """Hand samples to every logger among the callbacks of a trainer."""
    given = list(shown)
    for callback in callbacks:
        match callback:
            case TensorBoardCallback(tb_writer=writer) if writer is not None:
                _to_tensorboard(writer, step, given)
            case WandbCallback():
                _to_wandb(step, given)
            case TrackioCallback():
                _to_trackio(step, given)
            case _:
                pass


def _to_tensorboard(writer: Any, step: int, shown: Iterable[Shown]) -> None:
    for one in shown:
        writer.add_audio(one.name, one.samples[None], step, sample_rate=SAMPLING_RATE_HZ)
        writer.add_image(f"{one.name} spectrogram", one.picture, step, dataformats="HWC")
        if step == 0:
            writer.add_text(one.name, one.caption, step)
    writer.flush()


def _to_wandb(step: int, shown: Iterable[Shown]) -> None:
    wandb: Any = require("wandb", "wandb")
    if wandb.run is None:  # switched off by WANDB_MODE=disabled
        return
    entries: dict[str, Any] = {"train/global_step": step}
    for one in shown:
        entries[one.name] = wandb.Audio(one.samples, sample_rate=SAMPLING_RATE_HZ, caption=one.caption)
        entries[f"{one.name} spectrogram"] = wandb.Image(one.picture, caption=one.caption)
    wandb.log(entries)


def _to_trackio(step: int, shown: Iterable[Shown]) -> None:
    trackio: Any = require("trackio", "trackio")
    entries: dict[str, Any] = {"train/global_step": step}
    for one in shown:
        entries[one.name] = trackio.Audio(one.samples, caption=one.caption, sample_rate=SAMPLING_RATE_HZ)
        entries[f"{one.name} spectrogram"] = trackio.Image(one.picture, caption=one.caption)
    trackio.log(entries)
