"""What happens beside the steps: the metrics file, the progress bar, the moving average."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vibevoice_finetune.arguments import FinetuneArguments
from vibevoice_finetune.files.atomic import append_line, write_file
from vibevoice_finetune.training.bad_steps import BadSteps
from vibevoice_finetune.training.ema import Ema
from vibevoice_finetune.training.metrics import note_figure, step_of_result

METRICS_FILE = "metrics.jsonl"
SUMMARY_KEY = "train_runtime"
"""In the log that transformers writes at the end of a run."""


class MetricsFile(TrainerCallback):
    """Appends every log to `metrics.jsonl`; a resumed run first drops the lines beyond its starting step."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / METRICS_FILE

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep the lines up to the step that training starts from, but for the summary of a run that was stopped."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                log = json.loads(line)
                if state.global_step and log["step"] <= state.global_step and SUMMARY_KEY not in log:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line torn by a kill
        write_file(self.path, "".join(line + "\n" for line in kept))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs is not None:
            append_line(self.path, json.dumps({"step": state.global_step, **logs}))


class LossProgress(ProgressCallback):
    """The progress bar of transformers with the loss behind it instead of lines of numbers in between."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest training and evaluation loss."""
        if self.training_bar is None or not logs:
            return
        shown = {name: f"{logs[name]:.4g}" for name in ("loss", "eval_loss") if name in logs}
        if shown:
            self.shown = {**self.shown, **shown}
            self.training_bar.set_postfix(self.shown)


class EmaCallback(TrainerCallback):
    """Updates the moving average after every optimizer step that was not skipped."""

    def __init__(self, ema: Ema, bad_steps: BadSteps) -> None:
        self.ema = ema
        self.bad_steps = bad_steps

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the average."""
        if not self.bad_steps.bad_in_a_row:
            self.ema.update()


class StopCallback(TrainerCallback):
    """Saves and ends after the current step, once a signal has asked for it."""

    def __init__(self, must_stop: Callable[[], bool]) -> None:
        self.must_stop = must_stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the loop to save and to leave."""
        if self.must_stop():
            control.should_save = True
            control.should_training_stop = True


class SampleCallback(TrainerCallback):
    """Has samples made before the first step, every N steps and at the end, and lets their figures decide.

    Args:
        args: the loop's flags.
        sample: makes those of the step that it is told, and returns their figures.
        log: of the trainer.
        must_stop: whether a signal has asked for the end; samples would only delay it.
    """

    def __init__(
        self,
        args: FinetuneArguments,
        sample: Callable[[int], Mapping[str, float]],
        log: Callable[[dict[str, float]], None],
        must_stop: Callable[[], bool],
    ) -> None:
        self.args = args
        self.sample = sample
        self.log = log
        self.must_stop = must_stop
        self.newest_step: int | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The base model, unless the run goes on from a later step."""
        if state.global_step == 0:
            self._sample(state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Every N steps, and at the last one."""
        is_due = state.global_step % self.args.sample_steps == 0 or state.global_step >= state.max_steps
        if is_due and not self.must_stop():
            self._sample(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The result, where the run ended early or the best weights were put back."""
        step = step_of_result(self.args, state)
        if step != self.newest_step and not self.must_stop():
            self.sample(step)

    def _sample(self, state: TrainerState, control: TrainerControl) -> None:
        self.newest_step = state.global_step
        figures = self.sample(state.global_step)
        if not figures:
            return
        self.log(dict(figures))
        steering = self.args.steering
        if steering is not None and steering.figure in figures:
            note_figure(self.args, state, control, figures[steering.figure])
