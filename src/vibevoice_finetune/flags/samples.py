"""The flags of what is heard while a run trains, and of what its figures decide: the best weights, an early end.

`STEERING` lists the figures that can decide, by the name under which they are logged, and which direction is good.
"""

from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, Range, flag, shown

GROUP = "samples and choosing"

SAMPLE_FIGURES = {
    "sample_word_error": False,
    "sample_letter_error": False,
    "sample_similarity": True,
    "sample_unhealthy": False,
}
"""Figures of the samples, and whether higher is better."""

EVALUATION_FIGURES = {
    "loss": False,
    "diffusion_loss": False,
    "text_loss": False,
    "control_loss": False,
    "control_go_accuracy": True,
    "control_stop_accuracy": True,
}
"""Figures of an evaluation, logged with `eval_` before them, and whether higher is better."""


@dataclass
class SampleFlags:
    """Samples during training, and what is done with their figures."""

    sample_steps: int = flag(
        0,
        help="Let the model speak the same texts before the first step, every N steps and at the end; 0: never.",
        group=GROUP,
        range=Range(at_least=0),
    )
    sample_script: str | None = flag(
        None,
        help="What is said: rows as for training (.jsonl), or a script as for generate (.txt, .json).",
        group=GROUP,
        is_path=True,
        shown_default="three rows of the evaluation data, else of the training data",
    )
    sample_metrics: bool = flag(
        False,
        help="Log word error, similarity and end health of the samples (extras asr and evaluate).",
        group=GROUP,
    )
    keep_tokenizers: bool = flag(
        False, help="Keep the speech tokenizers in memory between samples instead of loading them anew.", group=GROUP
    )
    early_stopping_patience: int | None = flag(
        None,
        help="Stop when --metric_for_best_model has not improved N times in a row; the result is the best weights.",
        group=GROUP,
        range=COUNT,
        shown_default="train to the end",
    )
    select_best_by: Literal["similarity", "word_error", "composite"] | None = flag(
        None,
        help="After training, let all checkpoints speak the evaluation rows and write the best one to OUTPUT_DIR/best.",
        group=GROUP,
        shown_default="no choosing",
    )
    recognizer: str = flag(
        "moonshine", help="Which recogniser hears the words: moonshine (English) or a Whisper model.", group=GROUP
    )
    language: str = flag("en", help="Of the texts that are heard, two letters.", group=GROUP)

    def check_samples(self) -> None:
        """Refuse flags of samples without samples.

        Raises:
            ArgumentError: says which flag is missing.
        """
        for name, given in (
            ("sample_script", self.sample_script),
            ("sample_metrics", self.sample_metrics),
            ("keep_tokenizers", self.keep_tokenizers),
        ):
            if given and not self.sample_steps:
                raise ArgumentError(f"--{name} needs --sample_steps above 0, as in --sample_steps 200.")


@dataclass(frozen=True)
class Steering:
    """Which logged figure decides, and how.

    Attributes:
        figure: its name in the logs.
        higher_is_better: of it.
        patience: how often in a row it may fail to improve before the run stops; None: it never stops.
    """

    figure: str
    higher_is_better: bool
    patience: int | None = None

    @property
    def of_samples(self) -> bool:
        """Whether samples give the figure; else an evaluation does."""
        return self.figure in SAMPLE_FIGURES

    def is_better(self, value: float, best: float | None) -> bool:
        """Whether a value beats the best so far; one that is not a number never does.

        >>> steering = Steering("eval_loss", higher_is_better=False)
        >>> steering.is_better(0.5, None), steering.is_better(0.5, 0.5), steering.is_better(float("nan"), None)
        (True, False, False)
        """
        if best is None:
            return value == value  # noqa: PLR0124  # not for nan
        return value > best if self.higher_is_better else value < best

    def is_over(self, values: list[float]) -> bool:
        """Whether the figure has not improved for too long.

        Args:
            values: all of them so far, the oldest first.

        >>> steering = Steering("eval_loss", higher_is_better=False, patience=2)
        >>> steering.is_over([3.0, 2.0, 2.5]), steering.is_over([3.0, 2.0, 2.5, 2.0])
        (False, True)
        """
        best: float | None = None
        failed = 0
        for value in values:
            better = self.is_better(value, best)
            best, failed = (value, 0) if better else (best, failed + 1)
        return self.patience is not None and failed >= self.patience

    def __str__(self) -> str:
        return f"the {'highest' if self.higher_is_better else 'lowest'} {self.figure}"


def steering_by(metric: str, greater_is_better: bool | None, patience: int | None) -> Steering:
    """What `--metric_for_best_model` means.

    Args:
        metric: its value; the figures of an evaluation with or without `eval_`.
        greater_is_better: value of the flag; None: inferred.
        patience: value of `--early_stopping_patience`.

    Raises:
        ArgumentError: there is no such figure.
    """
    plain = metric.removeprefix("eval_")
    known = SAMPLE_FIGURES | EVALUATION_FIGURES
    if plain not in known or (plain in SAMPLE_FIGURES and plain != metric):
        raise ArgumentError(f"--metric_for_best_model {shown(metric)}: must be one of {', '.join(known)}.")
    name = plain if plain in SAMPLE_FIGURES else f"eval_{plain}"
    return Steering(name, known[plain] if greater_is_better is None else greater_is_better, patience)
