"""The loop: transformers' `Trainer` with our batches, losses, evaluation and checkpoints.

What differs from the base class: batches come from `RowBatches` instead of a shuffled sampler; the losses are summed
over all micro-batches and processes of a step and divided once; evaluation weighs by count and runs on the averaged
weights; a checkpoint holds the trained tensors, not the model, and appears whole or not at all.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import EvalLoopOutput

from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.data.collate import Batch, Counts, collate
from vibevoice_finetune.data.dataset import SpeechDataset
from vibevoice_finetune.data.sampler import EpochLoader, RowBatches, TokenBatches
from vibevoice_finetune.model.adapters import trainable_parameters
from vibevoice_finetune.model.objective import LossSums, Objective
from vibevoice_finetune.training import checkpoints
from vibevoice_finetune.training.callbacks import METRICS_FILE, EmaCallback, LossProgress, MetricsFile
from vibevoice_finetune.training.ema import Ema

TRAINABLE_FILE = "trainable.safetensors"
EMA_FILE = "ema.safetensors"
TRAINER_STATE = "trainer_state.json"


@dataclass(frozen=True)
class LossWeights:
    """Factors of the three losses in the total."""

    diffusion: float
    text: float
    control: float

    @classmethod
    def of(cls, args: FinetuneArguments) -> "LossWeights":
        """The factors that the flags say; `--control_loss_weight` is a factor on `--ce_loss_weight`."""
        return cls(args.diffusion_loss_weight, args.ce_loss_weight, args.ce_loss_weight * args.control_loss_weight)


@dataclass(frozen=True)
class Terms:
    """The three losses of a step, divided by their counts but not weighted; 0-d float32."""

    diffusion: Tensor
    text: Tensor
    control: Tensor

    @classmethod
    def of(cls, sums: LossSums, counts: Counts, factor: float = 1.0) -> "Terms":
        """Divide sums by counts; a loss without any term is zero."""
        return cls(
            sums["diffusion"] * (factor / max(counts.diffusion, 1)),
            sums["text"] * (factor / max(counts.text, 1)),
            sums["control"] * (factor / max(counts.control, 1)),
        )

    def total(self, weights: LossWeights) -> Tensor:
        """The weighted sum, what is minimised."""
        return weights.diffusion * self.diffusion + weights.text * self.text + weights.control * self.control


class FinetuneTrainer(Trainer):
    """Trains an `Objective`.

    Several overrides narrow what the base class accepts (our batches, our data sets), which mypy calls an error each.

    Args:
        objective: the model with its losses, adapters attached.
        args: the loop's flags.
        train_set: rows to learn from, or None to evaluate only.
        eval_set: rows to evaluate on, or None.
        export: writes the portable result into a folder; called with the averaged weights in place, if there are any.
        max_tokens_per_batch: size of a micro-batch in tokens instead of rows.
    """

    def __init__(
        self,
        objective: Objective,
        args: FinetuneArguments,
        train_set: SpeechDataset | None,
        eval_set: SpeechDataset | None,
        export: Callable[[Path], None],
        max_tokens_per_batch: int | None = None,
    ) -> None:
        self.output_dir = Path(str(args.output_dir))
        self.train_set = train_set
        self.eval_set = eval_set
        self.draw_seed = args.draw_seed
        self.max_tokens_per_batch = max_tokens_per_batch
        self.parameters = trainable_parameters(objective.model)
        self.ema = Ema(self.parameters, args.ema_decay) if args.ema_decay else None
        callbacks = [MetricsFile(self.output_dir / METRICS_FILE)]
        super().__init__(
            model=objective,
            args=args,
            train_dataset=train_set,
            eval_dataset=eval_set,
            callbacks=[*callbacks, *([EmaCallback(self.ema)] if self.ema else [])],
        )
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(LossProgress())
        self.loss_is_scaled_for_ga = True
        self.weights = LossWeights.of(args)
        self.export = export
        self.window = Window(torch.zeros(5, device=args.device))

    # Batches

    def get_train_dataloader(self) -> EpochLoader:
        """Micro-batches of this process; the order depends on seed and epoch alone."""
        assert self.train_set is not None, "training without rows"
        processes = {"rank": self.args.process_index, "world_size": self.args.world_size}
        if self.max_tokens_per_batch is not None:
            lengths = [row.num_tokens for row in self.train_set.rows]
            tokens = TokenBatches(lengths, self.max_tokens_per_batch, seed=self.draw_seed, **processes)
            return self._loader(self.train_set, tokens)
        rows = RowBatches(
            len(self.train_set),
            self._train_batch_size,
            seed=self.draw_seed,
            drop_last=self.args.dataloader_drop_last,
            **processes,
        )
        return self._loader(self.train_set, rows)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> EpochLoader:
        """All rows in their order, split over processes."""
        assert self.eval_set is not None, "evaluation without rows"
        args = self.args
        batches = RowBatches(
            len(self.eval_set),
            args.per_device_eval_batch_size,
            seed=None,
            rank=args.process_index,
            world_size=args.world_size,
        )
        return self._loader(self.eval_set, batches)

    def count_steps(self) -> tuple[int, int]:
        """Optimizer steps of the whole run and of an epoch; zero without training rows."""
        if self.train_set is None:
            return 0, 0
        values = self.set_initial_training_values(self.args, self.get_train_dataloader())
        return values[6], values[1]

    def _loader(self, rows: SpeechDataset, batches: RowBatches | TokenBatches) -> EpochLoader:
        args = self.args
        return EpochLoader(
            rows,  # type: ignore[arg-type]  # indexed by Draw, which DataLoader's annotations do not foresee
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            generator=torch.Generator().manual_seed(self.draw_seed),
        )

    def get_batch_samples(  # type: ignore[override]
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Counts]:
        """The micro-batches of one optimizer step, and the counts over all of them on all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = self._over_processes(reduce(add, (batch["counts"] for batch in batches), Counts(0, 0, 0, 0, 0)))
        self.window.start_step(counts)
        return batches, counts

    def _over_processes(self, counts: Counts) -> Counts:
        if self.args.world_size == 1:
            return counts
        numbers = torch.tensor(list(vars(counts).values()), device=self.args.device)
        return Counts(*self.accelerator.reduce(numbers, reduction="sum").tolist())

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
        factor = 0.0 if inputs["ghost"] else float(self.args.world_size)
        sums: LossSums = model(inputs)
        terms = Terms.of(sums, counts, factor)
        self.window.add(terms, sums, ghost=inputs["ghost"])
        return terms.total(self.weights)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss parts, control accuracy and speed of the steps since the last training log."""
        if "loss" in logs and self.window.steps:
            logs.update(self.window.logs(self.accelerator.reduce if self.args.world_size > 1 else None))
            self.window = Window(torch.zeros(5, device=self.args.device))
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
        counts = Counts(0, 0, 0, 0, 0)
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
        terms = Terms.of(everything, self._over_processes(counts))
        metrics = {
            "loss": terms.total(self.weights).item(),
            **{f"{name}_loss": value.item() for name, value in vars(terms).items()},
            **control_accuracy(
                everything["go_right"].item(),
                everything["go_total"].item(),
                everything["stop_right"].item(),
                everything["stop_total"].item(),
            ),
        }
        return EvalLoopOutput(
            predictions=None,  # type: ignore[arg-type]  # the base class itself returns None without predictions
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(dataloader.dataset),  # type: ignore[arg-type]  # Dataset has no __len__ in its annotations
        )

    def last_evaluation(self) -> dict[str, float]:
        """The newest evaluation's metrics; empty if there was none."""
        found = [log for log in self.state.log_history if "eval_loss" in log]
        return dict(found[-1]) if found else {}

    def has_evaluated_last_step(self) -> bool:
        """Whether the newest evaluation was of the weights as they are now."""
        return self.last_evaluation().get("step") == self.state.global_step

    def averaged(self) -> AbstractContextManager[None]:
        """Within the context the model has the averaged weights; without an average, nothing happens."""
        return self.ema.applied() if self.ema else nullcontext()

    # Checkpoints

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write `checkpoint-N` whole, then delete what `--save_total_limit` no longer keeps."""
        output_dir = self.output_dir
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(output_dir / f"checkpoint-{self.state.best_global_step}")
        self.store_flos()
        if self.args.should_save:
            with self.window.paused(), checkpoints.writing(folder) as staging:
                self._write_checkpoint(staging)
            best = self.state.best_model_checkpoint
            checkpoints.rotate(output_dir, self.args.save_total_limit, Path(best) if best else None)

    def _write_checkpoint(self, folder: Path) -> None:
        save_file({name: p.detach().contiguous() for name, p in self.parameters.items()}, folder / TRAINABLE_FILE)
        if self.ema is not None:
            save_file(self.ema.state_dict(), folder / EMA_FILE)
        if not self.args.save_only_model:
            self._save_optimizer_and_scheduler(str(folder))
            self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / TRAINER_STATE))
        with self.averaged():
            self.export(folder / "lora")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        self._load_parameters(folder)
        if self.ema is not None:
            self.ema.load_state_dict(load_file(folder / EMA_FILE, device=str(self.args.device)))

    def _load_best_model(self) -> None:
        folder = Path(str(self.state.best_model_checkpoint))
        self._load_parameters(folder)
        if self.ema is not None:
            self.ema.load_state_dict(load_file(folder / EMA_FILE, device=str(self.args.device)))

    @torch.no_grad()
    def _load_parameters(self, folder: Path) -> None:
        state = load_file(folder / TRAINABLE_FILE, device=str(self.args.device))
        assert set(state) == set(self.parameters), f"{folder}: a checkpoint of other parameters"
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])


class Window:
    """Sums over the micro-batches since the last log, on the device, so that no step waits for the host.

    Args:
        zeros: (5,) on the training device: the three loss terms, then right decisions to go on and to stop.
    """

    def __init__(self, zeros: Tensor) -> None:
        self.sums = zeros
        self.steps = 0
        self.frames = 0
        self.tokens = 0
        self.decisions = 0
        self.go_decisions = zeros.new_zeros(())
        self.started = time.perf_counter()

    def start_step(self, counts: Counts) -> None:
        """Note the size of an optimizer step, over all processes."""
        self.steps += 1
        self.frames += counts.frames
        self.tokens += counts.tokens
        self.decisions += counts.control

    def add(self, terms: Terms, sums: LossSums, *, ghost: bool) -> None:
        """Add a micro-batch."""
        if ghost:
            return
        parts = [terms.diffusion, terms.text, terms.control, sums["go_right"], sums["stop_right"]]
        self.sums = self.sums + torch.stack([part.detach().float() for part in parts])
        self.go_decisions = self.go_decisions + sums["go_total"].detach()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time within the context, as that of an evaluation."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    def logs(self, reduce_over_processes: Callable[..., Tensor] | None) -> dict[str, float]:
        """The averages since the window was opened; the only place where the host waits for the device."""
        numbers = torch.cat([self.sums, self.go_decisions[None]])
        if reduce_over_processes is not None:
            numbers = reduce_over_processes(numbers, reduction="sum")
            numbers[:3] /= torch.distributed.get_world_size()
        diffusion, text, control, go_right, stop_right, go_total = numbers.tolist()
        seconds = time.perf_counter() - self.started
        return {
            "diffusion_loss": diffusion / self.steps,
            "text_loss": text / self.steps,
            "control_loss": control / self.steps,
            **control_accuracy(go_right, go_total, stop_right, self.decisions - go_total),
            "frames_per_second": self.frames / seconds,
            "tokens_per_second": self.tokens / seconds,
        }


def control_accuracy(go_right: float, go_total: float, stop_right: float, stop_total: float) -> dict[str, float]:
    """Share of frames at which greedy decoding would go on, and of ends at which it would stop."""
    return {
        "control_go_accuracy": go_right / max(go_total, 1.0),
        "control_stop_accuracy": stop_right / max(stop_total, 1.0),
    }
