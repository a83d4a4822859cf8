"""The loop: transformers' `Trainer` with our batches, losses, evaluation and checkpoints.

What differs from the base class: batches come from `RowBatches` instead of a shuffled sampler; the losses are summed
over all micro-batches and processes of a step and divided once; evaluation weighs by count and runs on the averaged
weights; a run checkpoint holds the trained tensors, not the model, and appears whole or not at all; a run that goes on
from the end of its last step trains no further.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from vibevoice_finetune.adapters.attach import trainable_parameters
from vibevoice_finetune.adapters.lora import starts
from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.data.collate import Batch, Counts
from vibevoice_finetune.data.dataset import SpeechDataset
from vibevoice_finetune.data.sampler import EpochLoader
from vibevoice_finetune.objective.objective import LossSums, Objective
from vibevoice_finetune.objective.sharding import is_split, whole
from vibevoice_finetune.samples.samples import Samples
from vibevoice_finetune.training import run_checkpoints
from vibevoice_finetune.training.bad_steps import BadSteps, RowLosses
from vibevoice_finetune.training.callbacks import EmaCallback, LossProgress, MetricsFile, SampleCallback, StopCallback
from vibevoice_finetune.training.ema import Ema
from vibevoice_finetune.training.loaders import eval_loader, train_loader
from vibevoice_finetune.training.metrics import LossWeights, Terms, Window, evaluation_metrics, note_figure
from vibevoice_finetune.training.run_state import RunState
from vibevoice_finetune.training.same_run import Identity
from vibevoice_finetune.training.stop import StopRequest

NOTHING = Counts(0, 0, 0, 0, 0)
DROPOUT_STREAM = 4
"""Last number of the seed of dropout; 0 to 2 are the streams of the rows, 3 that of their order."""

logger = logging.getLogger(__name__)


class FinetuneTrainer(Trainer):
    """Trains an `Objective`.

    Several overrides narrow what the base class accepts (our batches, our data sets), which mypy calls an error each.

    Args:
        objective: the model with its losses, adapters attached.
        args: the loop's flags.
        train_set: rows to learn from, or None to evaluate only.
        eval_set: rows to evaluate on, or None.
        export: writes the portable result into a folder; called with the averaged weights in place, if there are any.
        identity: what identifies this run; kept in run checkpoints.
        max_tokens_per_batch: size of a micro-batch in tokens instead of rows.
        result: name of the portable result's folder.
        samples: what the model says while it is trained; None: nothing.
    """

    def __init__(
        self,
        objective: Objective,
        args: FinetuneArguments,
        train_set: SpeechDataset | None,
        eval_set: SpeechDataset | None,
        export: Callable[[Path], None],
        identity: Identity,
        max_tokens_per_batch: int | None = None,
        result: str = "lora",
        samples: Samples | None = None,
    ) -> None:
        self.output_dir = Path(str(args.output_dir))
        self.train_set = train_set
        self.eval_set = eval_set
        self.finetune_args = args
        self.draw_seed = args.draw_seed
        self.max_tokens_per_batch = max_tokens_per_batch
        self.result = result
        self.parameters = trainable_parameters(objective.model)
        self.ema = Ema(self.parameters, args.ema_decay) if args.ema_decay else None
        self.bad_steps = BadSteps(self.output_dir, args.max_bad_steps)
        self.stop = StopRequest()
        self.stop_agreed = False
        self.micro_batch = 0
        self.rotation_is_due = False
        self.samples = samples
        self.holds_parts = is_split(objective)
        callbacks = [MetricsFile(self.output_dir), StopCallback(self.must_stop)]
        super().__init__(
            model=objective,
            args=args,
            train_dataset=train_set,
            eval_dataset=eval_set,
            callbacks=[*callbacks, *([EmaCallback(self.ema, self.bad_steps)] if self.ema else [])],
        )
        if samples is not None:
            self.add_callback(SampleCallback(args, self.sample, self.log, self.must_stop))
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LossProgress())
        # With split weights the model sees to placement and gradient exchange itself, as one that transformers splits
        # while loading does; set after the base class has refused to resume those.
        self.is_distributed_loading_by_transformers = is_split(objective)
        self.loss_is_scaled_for_ga = True
        self.weights = LossWeights.of(args)
        self.export = export
        self.run_state = RunState(self.parameters, self.ema, self.bad_steps, identity, starts(objective.model))
        self.window = Window(args.device)
        self.step_counts = NOTHING
        self.loss_before_step = torch.zeros((), device=args.device)

    def must_stop(self) -> bool:
        """Whether a signal asked for the end after the current step; all processes answer alike."""
        return self.stop_agreed if self.args.world_size > 1 else self.stop.signal_name is not None

    # Going on

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Where to begin; how often to log, to evaluate and to save is what this run was told, not an earlier one."""
        position = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self.state.compute_steps(self.args, max_steps)  # type: ignore[no-untyped-call]
        return position

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train an epoch, unless all steps were done before: the base class would train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[no-untyped-call]

    # Batches

    def get_train_dataloader(self) -> EpochLoader:
        """Micro-batches to learn from."""
        assert self.train_set is not None, "training without rows"
        return train_loader(self.finetune_args, self.train_set, self._train_batch_size, self.max_tokens_per_batch)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> EpochLoader:
        """All rows to evaluate on."""
        assert self.eval_set is not None, "evaluation without rows"
        return eval_loader(self.finetune_args, self.eval_set)

    def count_steps(self) -> tuple[int, int]:
        """Optimizer steps of the whole run and of an epoch; zero without training rows."""
        if self.train_set is None:
            return 0, 0
        values = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return values[6], values[1]

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Counts]:
        """The micro-batches of one optimizer step, and the counts over all of them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_counts = self._over_processes(reduce(add, (batch["counts"] for batch in batches), NOTHING))
        self.loss_before_step = self._tr_loss.clone()
        self.bad_steps.micro_batches.clear()
        self.micro_batch = 0
        return batches, self.step_counts

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """The batch on the training device, copied while the host goes on."""
        device = self.args.device
        return {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }

    def _over_processes(self, counts: Counts) -> Counts:
        """The sum over processes; on the way they agree whether one of them was asked to stop."""
        if self.args.world_size == 1:
            return counts
        asked = int(self.stop.signal_name is not None)
        numbers = torch.tensor([*vars(counts).values(), asked], device=self.args.device)
        *totals, asked = self.accelerator.reduce(numbers, reduction="sum").tolist()
        self.stop_agreed = asked > 0
        return Counts(*totals)

    # Losses

    def compute_loss(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Counts | None = None,
    ) -> Tensor:
        """This micro-batch's share of the step's loss.

        Processes are averaged in the backward pass, so each share is multiplied by their number.
        """
        counts = num_items_in_batch or inputs["counts"]
        self._seed_dropout()
        factor = 0.0 if inputs["ghost"] else float(self.args.world_size)
        sums: LossSums = model(inputs)
        terms = Terms.of(sums, counts, factor)
        if not inputs["ghost"]:
            self.window.add(terms, sums)
            losses = {name: value.detach() for name, value in vars(terms).items()}
            self.bad_steps.micro_batches.append(RowLosses(inputs["rows"], losses))
        return terms.total(self.weights)

    @contextmanager
    def _defer_fsdp_gradient_reduction(self) -> Iterator[None]:
        """Split weights: exchange gradients after the last micro-batch of a step only."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self.model.set_requires_gradient_sync(True)

    def _seed_dropout(self) -> None:
        """Make the draws of dropout depend on seed, step and micro-batch alone, whichever process has it.

        A checkpoint holds the generator of its writer only; with this, none needs to be held.
        """
        number = self.micro_batch * self.args.world_size + self.args.process_index
        self.micro_batch += 1
        entropy = (self.draw_seed, self.state.global_step, number, DROPOUT_STREAM)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor | None:
        """The gradient's norm, after which the step is accepted or skipped; the one wait for the device in a step."""
        total = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        norm = whole(torch.as_tensor(total, device=self.args.device)).float()
        loss_and_norm = torch.stack([self._tr_loss - self.loss_before_step, norm]).tolist()
        good = all(map(math.isfinite, loss_and_norm[1 if self.args.world_size > 1 else 0 :]))
        self.window.end_step(self.step_counts, good=good)
        if good:
            self.bad_steps.accept(self.state.global_step, loss_and_norm[0])
            if self.rotation_is_due:
                self.rotate_checkpoints()
            return norm
        self._tr_loss.copy_(self.loss_before_step)
        logger.warning(self.bad_steps.skip(self.state.global_step, self.parameters))
        return None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss parts, control accuracy and speed of the steps since the last training log."""
        if "loss" in logs:
            logs.update(self.window.logs(self.accelerator.reduce if self.args.world_size > 1 else None))
            self.window = Window(self.args.device)
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights, if there are any."""
        with self.window.paused(), self.averaged():
            metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    def evaluation_loop(  # type: ignore[override]
        self,
        dataloader: EpochLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Losses and control decisions over all rows, each term weighing the same."""
        assert self.model is not None
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        totals: dict[str, Tensor] = {}
        counts = NOTHING
        with torch.no_grad():
            for batch in dataloader:
                inputs = cast(Batch, self._prepare_inputs(batch))
                counts += inputs["counts"]
                sums = model(inputs)
                if not inputs["ghost"]:
                    totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        names = list(LossSums.__annotations__)
        stacked = torch.stack([totals.get(name, torch.zeros((), device=self.args.device)) for name in names])
        if self.args.world_size > 1:
            stacked = self.accelerator.reduce(stacked, reduction="sum")
        everything = cast(LossSums, dict(zip(names, stacked.double(), strict=True)))
        metrics = evaluation_metrics(everything, self._over_processes(counts), self.weights)
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]  # the base class itself returns None without predictions
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]  # Dataset has no __len__ in its annotations
        )

    def last_evaluation(self) -> dict[str, float]:
        """The newest evaluation's metrics; empty if there was none."""
        return next((dict(log) for log in reversed(self.state.log_history) if "eval_loss" in log), {})

    def has_evaluated_last_step(self) -> bool:
        """Whether the newest evaluation was of the weights as they are now."""
        return self.last_evaluation().get("step") == self.state.global_step

    def averaged(self) -> AbstractContextManager[None]:
        """Within the context the model has the averaged weights; without an average, nothing happens."""
        return self.ema.applied() if self.ema else nullcontext()

    # Samples, the best weights

    def sample(self, step: int) -> Mapping[str, float]:
        """Let the model speak as it stands, by its averaged weights if there are any; the figures of what it says."""
        assert self.samples is not None
        with self.window.paused(), self.averaged():
            return self.samples.at(step, self.parameters, self.callback_handler.callbacks)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Whether an evaluation found the best weights so far."""
        asked = self.finetune_args.evaluation_figure
        return asked is not None and note_figure(self.finetune_args, self.state, self.control, metrics[asked])

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` whole.

        What `--save_total_limit` no longer keeps is deleted after the next good step: only that shows that the new
        weights give finite numbers, so at every moment there is a run checkpoint whose weights do.
        """
        self.bad_steps.check_weights(self.state.global_step, self.parameters)
        output_dir = self.output_dir
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        best = output_dir / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best == folder or best.is_dir() else None
        self.store_flos()
        with self.window.paused():
            if self.args.should_save:
                with run_checkpoints.writing(folder) as staging:
                    self._write_checkpoint(staging)
                self.rotation_is_due = True
            elif self.holds_parts:
                self._write_checkpoint(folder)

    def rotate_checkpoints(self) -> None:
        """Delete what `--save_total_limit` no longer keeps, also what a kill kept from being deleted."""
        self.rotation_is_due = False
        best = self.state.best_model_checkpoint
        run_checkpoints.rotate(self.output_dir, self.args.save_total_limit, Path(best) if best else None)

    def leave_resumable(self) -> str:
        """After a step broke off for want of memory: drop its gradients and save the steps before it.

        Returns:
            Where the run was left.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        if self.holds_parts:
            return "the steps since the last run checkpoint are lost, because the other processes hold parts of them."
        if self.state.global_step == 0:
            return "not even the first step fits; nothing was saved."
        assert self.model is not None
        self._save_checkpoint(self.model, trial=None)
        return f"step {self.state.global_step} was saved; change the flags, then --resume_from_checkpoint True."

    def _write_checkpoint(self, folder: Path) -> None:
        """Write all but the marker; a process that does not write only hands out its parts of split tensors."""
        writes = self.args.should_save
        optimizer = None if self.args.save_only_model else self.optimizer
        self.run_state.write(folder, self.state, optimizer, self.lr_scheduler, keep=writes)
        if writes and optimizer is not None:
            self._save_rng_state(str(folder))
        with self.averaged():
            self.export(folder / self.result)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.run_state.read_weights(Path(resume_from_checkpoint))
        self.run_state.read_bad_steps(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            assert self.lr_scheduler is not None
            self.run_state.read_optimizer(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_best_model(self) -> None:
        self.run_state.read_weights(Path(str(self.state.best_model_checkpoint)))
