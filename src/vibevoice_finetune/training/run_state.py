"""What a run checkpoint holds besides the portable result: written whole, read back bit for bit.

    trainable.safetensors   trained tensors            optimizer.pt, scheduler.pt   their states
    ema.safetensors         their moving average       trainer_state.json           where the loop stands
    run.json                what identifies the run    bad_steps.json               what was seen of its numbers
    lora_starts.safetensors where LoRA began, if it began at the weights

All tensors are whole, also where processes hold parts of them, so that any number of processes can go on from them.
"""

import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import TrainerState

from vibevoice_finetune.adapters.attach import check_state
from vibevoice_finetune.errors import RunCheckpointError
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.objective.sharding import gathered, gathered_optimizer, put, split_optimizer_state
from vibevoice_finetune.training.bad_steps import BadSteps
from vibevoice_finetune.training.ema import Ema
from vibevoice_finetune.training.same_run import Identity

TRAINABLE_FILE = "trainable.safetensors"
EMA_FILE = "ema.safetensors"
STARTS_FILE = "lora_starts.safetensors"
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
TRAINER_STATE = "trainer_state.json"
BAD_STEPS_FILE = "bad_steps.json"
IDENTITY_FILE = "run.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class RunState:
    """The parts of a run that change from step to step, except the loop's own.

    Attributes:
        parameters: the trained ones by name.
        ema: their moving average, if there is one.
        bad_steps: what was seen of the steps' numbers.
        identity: what identifies this run; does not change.
        starts: where LoRA began, if it began at the weights; does not change.
    """

    parameters: Mapping[str, nn.Parameter]
    ema: Ema | None
    bad_steps: BadSteps
    identity: Identity
    starts: Mapping[str, Tensor] = field(default_factory=dict)

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
        if self.starts:
            save_file(gathered(self.starts, keep=True), folder / STARTS_FILE)
        if average is not None:
            save_file(average, folder / EMA_FILE)
        if optimizer_state is not None:
            assert scheduler is not None
            torch.save(optimizer_state, folder / OPTIMIZER_FILE)
            torch.save(scheduler.state_dict(), folder / SCHEDULER_FILE)
        # How often to log, to evaluate and to save is not kept: what is given to the run that goes on counts.
        kept = {**asdict(state), "logging_steps": None, "eval_steps": None, "save_steps": None}
        (folder / TRAINER_STATE).write_text(json.dumps(kept, indent=1, sort_keys=True), encoding="utf-8")
        write_json(folder / BAD_STEPS_FILE, self.bad_steps.state_dict())
        write_json(folder / IDENTITY_FILE, self.identity)

    def read_weights(self, folder: Path) -> None:
        """Put back the trained tensors and their average; where none was kept, it begins at the tensors.

        Raises:
            RunCheckpointError: other tensors are trained now; nothing was changed.
        """
        with naming(folder / TRAINABLE_FILE):
            # Copied from there to the device: safetensors knows no device called "cpu:0".
            trained = load_file(folder / TRAINABLE_FILE)
        check_state(self.parameters, trained, str(folder))
        average = None
        if self.ema is not None and (folder / EMA_FILE).exists():
            with naming(folder / EMA_FILE):
                average = load_file(folder / EMA_FILE)
                self.ema.check(average)
        for name, parameter in self.parameters.items():
            put(parameter, trained[name])
        if self.ema is None:
            return
        if average is not None:
            self.ema.load_state_dict(average)
        else:
            logger.warning("%s holds no moving average: it begins here", folder)
            self.ema.restart()

    def read_bad_steps(self, folder: Path) -> None:
        """Put back what was seen of the steps' numbers."""
        with naming(folder / BAD_STEPS_FILE):
            self.bad_steps.load_state_dict(json.loads((folder / BAD_STEPS_FILE).read_text(encoding="utf-8")))

    @staticmethod
    def read_optimizer(folder: Path, optimizer: torch.optim.Optimizer, scheduler: LRScheduler) -> None:
        """Put back the states of the optimizer and the scheduler.

        Raises:
            RunCheckpointError: the states are those of other tensors; nothing was changed.
        """
        with naming(folder / OPTIMIZER_FILE):
            saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
            check_optimizer_state(optimizer, saved)
        with naming(folder / SCHEDULER_FILE):
            scheduler_state = torch.load(folder / SCHEDULER_FILE, weights_only=True)
        optimizer.load_state_dict(split_optimizer_state(optimizer, saved))
        scheduler.load_state_dict(scheduler_state)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Say in one line which file of a run checkpoint cannot be used.

    Raises:
        RunCheckpointError: reading or checking the file within the context went wrong.
    """
    try:
        yield
    except (OSError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RunCheckpointError(
            f"{path}: cannot be used ({reason}); go on from another run checkpoint with "
            "--resume_from_checkpoint FOLDER."
        ) from error


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Compare the shapes of a saved state with the tensors it is for: fused kernels read past the end of short ones.

    A state tensor is a number, or has the shape of its tensor, or (Adafactor) that of its rows or columns. The tables
    of 8-bit optimizers are of one or a few hundred entries, or one for each block of 256 numbers.

    Raises:
        ValueError: says what does not fit.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if len(parameters) != len(numbers) or len(saved["param_groups"]) != len(optimizer.param_groups):
        raise ValueError(f"it is the state of {len(numbers):,} tensors, {len(parameters):,} are trained")
    names = {frozenset(values) for values in saved["state"].values()}
    if len(names) > 1:
        raise ValueError("its tensors have states of different kinds")
    for number, parameter in zip(numbers, parameters, strict=True):
        shape = tuple(parameter.shape)
        known = {(), (1,), (100,), (256,), shape, shape[:-1], (*shape[:-2], *shape[-1:])}
        known.add((-(-parameter.numel() // 256),))
        for name, value in saved["state"].get(number, {}).items():
            if isinstance(value, Tensor) and tuple(value.shape) not in known:
                raise ValueError(f"{name} has the shape {list(value.shape)}, its tensor {list(shape)}")


def with_optimizer(checkpoint: Path) -> Path:
    """The same run checkpoint.

    Raises:
        RunCheckpointError: it was written with `--save_only_model`, so nothing can go on from it exactly.
    """
    if not (checkpoint / OPTIMIZER_FILE).exists():
        raise RunCheckpointError(
            f"{checkpoint}: was saved with --save_only_model, without the optimizer's state, so the run cannot go on "
            f"from it; its result is {checkpoint / ('model' if (checkpoint / 'model').is_dir() else 'lora')}."
        )
    return checkpoint


def read_starts(checkpoint: Path) -> dict[str, Tensor] | None:
    """Where LoRA began in the run that wrote a run checkpoint; None if it did not begin at the weights.

    Raises:
        RunCheckpointError: it cannot be read.
    """
    path = checkpoint / STARTS_FILE
    if not path.exists():
        return None
    with naming(path):
        return load_file(path)


def read_identity(checkpoint: Path) -> Identity:
    """What identified the run that wrote a run checkpoint.

    Raises:
        RunCheckpointError: it cannot be read.
    """
    with naming(checkpoint / IDENTITY_FILE):
        found: Identity = dict(json.loads((checkpoint / IDENTITY_FILE).read_text(encoding="utf-8")))
    return found
