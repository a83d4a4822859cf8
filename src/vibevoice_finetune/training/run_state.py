"""What a checkpoint holds besides the portable result: written whole, read back bit for bit.

    trainable.safetensors   trained tensors           optimizer.pt, scheduler.pt   their states
    ema.safetensors         their moving average      trainer_state.json           where the loop stands
    run.json                what makes the run itself guard.json                   the watch over numbers

All tensors are whole, also where processes hold parts of them, so that any number of processes can go on from them.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState

from vibevoice_finetune.adapters.attach import check_state
from vibevoice_finetune.errors import CheckpointError
from vibevoice_finetune.objective.sharding import gathered, gathered_optimizer, put, split_optimizer_state
from vibevoice_finetune.training.bad_steps import Guard
from vibevoice_finetune.training.ema import Ema
from vibevoice_finetune.training.same_run import Identity

TRAINABLE_FILE = "trainable.safetensors"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
TRAINER_STATE = "trainer_state.json"
GUARD_FILE = "guard.json"
IDENTITY_FILE = "run.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The parts of a run that change from step to step, but for the loop's own.

    Attributes:
        parameters: the trained ones by name.
        ema: their moving average, if there is one.
        guard: the watch over numbers.
        identity: what makes this run this run; does not change.
    """

    parameters: Mapping[str, nn.Parameter]
    ema: Ema | None
    guard: Guard
    identity: Identity

    def write(
        self,
        folder: Path,
        state: TrainerState,
        optimizer: torch.optim.Optimizer | None,
        scheduler: LRScheduler | None,
        *,
        keep: bool,
    ) -> None:
        """Write everything into a folder.

        Args:
            folder: is there.
            state: the loop's.
            optimizer: None to leave its state out, and the scheduler's.
            scheduler: of the learning rate.
            keep: False in a process that only hands out its parts of split tensors and writes nothing.
        """
        trained = gathered(self.parameters, keep=keep)
        average = gathered(self.ema.state_dict(), keep=keep) if self.ema else None
        optimizer_state = gathered_optimizer(optimizer, keep=keep) if optimizer is not None else None
        if not keep:
            return
        save_file(trained, folder / TRAINABLE_FILE)
        if average is not None:
            save_file(average, folder / EMA_FILE)
        if optimizer_state is not None:
            assert scheduler is not None
            torch.save(optimizer_state, folder / OPTIMIZER_FILE)
            torch.save(scheduler.state_dict(), folder / SCHEDULER_FILE)
        state.save_to_json(str(folder / TRAINER_STATE))
        (folder / GUARD_FILE).write_text(json.dumps(self.guard.state_dict()), encoding="utf-8")
        (folder / IDENTITY_FILE).write_text(json.dumps(self.identity, indent=1), encoding="utf-8")

    def read_weights(self, folder: Path) -> None:
        """Put back the trained tensors and their average; where none was kept, it begins at the tensors.

        Raises:
            CheckpointError: other tensors are trained now; nothing was changed.
        """
        trained = load_file(folder / TRAINABLE_FILE)  # copied from there: safetensors knows no device called "cpu:0"
        check_state(self.parameters, trained, str(folder))
        for name, parameter in self.parameters.items():
            put(parameter, trained[name])
        if self.ema is None:
            return
        if (folder / EMA_FILE).exists():
            self.ema.load_state_dict(load_file(folder / EMA_FILE))
        else:
            logger.warning("%s holds no moving average: it begins here", folder)
            self.ema.restart()

    def read_guard(self, folder: Path) -> None:
        """Put back what the watch has seen."""
        self.guard.load_state_dict(json.loads((folder / GUARD_FILE).read_text(encoding="utf-8")))

    @staticmethod
    def read_optimizer(folder: Path, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        """Put back the states of the optimizer and the scheduler."""
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(split_optimizer_state(optimizer, saved))
        scheduler.load_state_dict(torch.load(folder / SCHEDULER_FILE, weights_only=True))


def with_optimizer(checkpoint: Path) -> Path:
    """The same checkpoint.

    Raises:
        CheckpointError: it was written with `--save_only_model`, so nothing can go on from it exactly.
    """
    if not (checkpoint / OPTIMIZER_FILE).exists():
        raise CheckpointError(
            f"{checkpoint}: was saved with --save_only_model, without the optimizer's state, so the run cannot go on "
            f"from it; its result is {checkpoint / 'lora'}."
        )
    return checkpoint


def read_identity(checkpoint: Path) -> Identity:
    """What made the run that wrote a checkpoint that run."""
    found: Identity = json.loads((checkpoint / IDENTITY_FILE).read_text(encoding="utf-8"))
    return found
