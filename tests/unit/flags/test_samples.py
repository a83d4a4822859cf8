"""Which figure decides on the best weights and on an early end, and what is refused."""

import math
import shlex

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.samples import Steering, steering_by

SHORT = "--model_name_or_path M --train_jsonl F --output_dir O --do_train"


@pytest.mark.parametrize(
    ("metric", "figure", "higher"),
    [
        ("loss", "eval_loss", False),
        ("eval_loss", "eval_loss", False),
        ("text_loss", "eval_text_loss", False),
        ("control_go_accuracy", "eval_control_go_accuracy", True),
        ("sample_similarity", "sample_similarity", True),
        ("sample_word_error", "sample_word_error", False),
        ("sample_unhealthy", "sample_unhealthy", False),
    ],
)
def test_which_direction_is_better(metric: str, figure: str, higher: bool) -> None:
    found = steering_by(metric, None, None)
    assert (found.figure, found.higher_is_better) == (figure, higher)


@pytest.mark.parametrize("metric", ["accuracy", "eval_sample_similarity", "", "train_loss"])
def test_other_figures_are_refused(metric: str) -> None:
    with pytest.raises(ArgumentError, match=r"--metric_for_best_model .*: must be one of .*sample_similarity"):
        steering_by(metric, None, None)


def test_patience_counts_since_the_last_improvement() -> None:
    lowest = Steering("eval_loss", higher_is_better=False, patience=2)
    assert not lowest.is_over([])
    assert not lowest.is_over([5.0, 4.0, 4.5])
    assert lowest.is_over([5.0, 4.0, 4.5, 4.0])  # equal is no better
    assert not lowest.is_over([5.0, 4.0, 4.5, 3.9, 4.2])
    assert lowest.is_over([5.0, math.nan, math.nan])
    highest = Steering("sample_similarity", higher_is_better=True, patience=1)
    assert highest.is_over([0.5, 0.4])
    assert not highest.is_over([0.5, 0.6])
    assert not Steering("eval_loss", higher_is_better=False).is_over([1.0] * 100)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--sample_metrics True", "--sample_metrics needs --sample_steps above 0"),
        ("--sample_script a.txt", "--sample_script needs --sample_steps above 0"),
        ("--keep_tokenizers True", "--keep_tokenizers needs --sample_steps above 0"),
        ("--sample_steps -1", "--sample_steps -1: must be at least 0"),
        ("--early_stopping_patience 0", "--early_stopping_patience 0: must be at least 1"),
        ("--early_stopping_patience 2", "--early_stopping_patience needs --eval_strategy"),
        ("--load_best_model_at_end True", "--load_best_model_at_end True needs --eval_strategy"),
        ("--save_strategy best", "--save_strategy best needs --eval_strategy"),
        ("--metric_for_best_model sample_similarity", "needs --sample_steps above 0 and --sample_metrics True"),
        ("--metric_for_best_model sample_similarity --sample_steps 5", "and --sample_metrics True"),
        ("--select_best_by ear", "--select_best_by ear: must be one of similarity, word_error, composite"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(extra: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse(shlex.split(f"{SHORT} {extra}"))


def test_the_best_may_be_wanted_wherever_checkpoints_are_saved() -> None:
    """transformers refuses this: its checkpoints and evaluations have to fall on the same steps."""
    loop = parse(shlex.split(f"{SHORT} --eval_strategy steps --eval_steps 3 --early_stopping_patience 2")).loop
    assert loop.load_best_model_at_end
    assert loop.saves_best
    assert (loop.metric_for_best_model, loop.greater_is_better) == ("eval_loss", False)


def test_samples_can_decide_without_an_evaluation() -> None:
    line = f"{SHORT} --sample_steps 5 --sample_metrics True --metric_for_best_model sample_similarity"
    loop = parse(shlex.split(f"{line} --save_strategy best --early_stopping_patience 3")).loop
    assert loop.steering == Steering("sample_similarity", higher_is_better=True, patience=3)
    assert loop.saves_best
    assert not loop.evaluates


def test_without_the_wish_no_figure_decides() -> None:
    assert parse(shlex.split(SHORT)).loop.steering is None


def test_choosing_needs_rows_that_are_held_out() -> None:
    assert parse(shlex.split(f"{SHORT} --select_best_by similarity")).loop.evaluates
