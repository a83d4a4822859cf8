"""A figure decides: the best weights are saved when they are found, and a run that no longer improves ends early."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.rows import Small
from tests.unit.training.test_trainer import trainer
from vibevoice_finetune.training.metrics import step_of_result
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints


@pytest.fixture(scope="module")
def small(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(golden_dir / "untied" / "checkpoint", tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


class Speaking:
    """Samples whose similarity at each step is given."""

    def __init__(self, similarity: dict[int, float]) -> None:
        self.similarity = similarity
        self.steps: list[int] = []

    def at(self, step, weights, callbacks):
        self.steps.append(step)
        return {"sample_similarity": self.similarity[step]} if step in self.similarity else {}


def test_samples_decide_on_the_result_and_the_end(small: Small, tmp_path: Path) -> None:
    samples = Speaking({0: 0.9, 1: 0.3, 2: 0.7, 3: 0.6, 4: 0.5, 5: 0.8})
    built = trainer(
        small,
        tmp_path,
        max_steps=6,
        samples=samples,
        ema_decay=0.5,
        sample_steps=1,
        sample_metrics=True,
        metric_for_best_model="sample_similarity",
        early_stopping_patience=2,
    )
    built.train()
    # The base model's 0.9 does not count. Step 2 is the best; the two after it are no better, so 5 is never reached.
    assert built.state.global_step == 4
    assert [folder.name for folder in complete_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    assert step_of_result(built.args, built.state) == 2
    assert samples.steps == [0, 1, 2, 3, 4, 2]  # at the end, what the run ends with
    logged = {log["step"]: log["sample_similarity"] for log in built.state.log_history if "sample_similarity" in log}
    assert logged == {0: 0.9, 1: 0.3, 2: 0.7, 3: 0.6, 4: 0.5}


def test_an_evaluation_decides_on_the_end(small: Small, tmp_path: Path) -> None:
    built = trainer(
        small,
        tmp_path,
        eval_numbers=[0, 1],
        max_steps=9,
        learning_rate=0.5,  # far too high: the first evaluation is the best
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=5,  # not where evaluations are
        early_stopping_patience=1,
        metric_for_best_model="diffusion_loss",
    )
    built.train()
    losses = [log["eval_diffusion_loss"] for log in built.state.log_history if "eval_diffusion_loss" in log]
    assert losses[-1] >= min(losses[:-1])
    assert all(later < earlier for earlier, later in pairwise(losses[:-1]))
    assert built.state.global_step == len(losses) < 9
    best = losses.index(min(losses)) + 1
    assert built.state.best_global_step == best
    assert tmp_path / f"checkpoint-{best}" in complete_checkpoints(tmp_path)


def test_samples_are_made_every_n_steps_and_at_the_end(small: Small, tmp_path: Path) -> None:
    samples = Speaking({})
    trainer(small, tmp_path, max_steps=5, samples=samples, sample_steps=2).train()
    assert samples.steps == [0, 2, 4, 5]


def test_a_run_that_goes_on_does_not_begin_with_the_base_model(small: Small, tmp_path: Path) -> None:
    flags = {"save_strategy": "steps", "save_steps": 2, "sample_steps": 2, "max_steps": 4}
    trainer(small, tmp_path, samples=Speaking({}), **flags).train()
    samples = Speaking({})
    trainer(small, tmp_path, samples=samples, **flags).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert samples.steps == [4]
