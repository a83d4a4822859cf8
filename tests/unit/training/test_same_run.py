"""What makes two runs the same run."""

import shlex

import pytest

from tests.rows import Small
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.training.same_run import check_same_run, differences, identity

LINE = "--model_name_or_path M --train_jsonl F --output_dir O --do_train --report_to none"


@pytest.fixture(scope="module")
def small(golden_dir, tmp_path_factory):
    return Small(golden_dir / "untied" / "checkpoint", tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


def of(small, extra="", numbers=range(8), base="b"):
    return identity(parse(shlex.split(f"{LINE} {extra}")), base, small.dataset(numbers), None)


@pytest.mark.parametrize(
    "extra",
    [
        "--logging_steps 3 --save_steps 7 --output_dir P",
        "--per_device_train_batch_size 4 --gradient_accumulation_steps 2",
        "--gradient_checkpointing True --dataloader_num_workers 2",
    ],
)
def test_what_does_not_change_the_numbers_is_the_same_run(small, extra):
    assert differences(of(small), of(small, extra)) == []


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ("--learning_rate 1", "--learning_rate 5e-05 → 1.0"),
        ("--lora_r 4", "--lora_r 8 → 4"),
        ("--lr_scheduler_type cosine", "--lr_scheduler_type linear → cosine"),
        ("--per_device_train_batch_size 4", "rows of an optimizer step 8 → 4"),
        ("--ddpm_batch_mul 2", "--ddpm_batch_mul 1 → 2"),
        ("--max_steps 5", "--max_steps -1 → 5"),
    ],
)
def test_changed_flags_are_named(small, extra, named):
    assert differences(of(small), of(small, extra)) == [named]


def test_of_batches_by_tokens_the_number_in_a_step_counts(small):
    by_tokens = "--max_tokens_per_batch 100"
    accumulated = f"{by_tokens} --gradient_accumulation_steps 2"
    assert differences(of(small, by_tokens), of(small, accumulated)) == ["micro-batches of an optimizer step 1 → 2"]


def test_other_rows_and_another_base_are_named(small):
    with pytest.raises(
        ArgumentError, match=r"checkpoint-3 .* other base model; other training rows.*allow_changed_run"
    ):
        check_same_run(of(small), of(small, numbers=[1, 0], base="c"), "out/checkpoint-3")


def test_allowed_changes_are_told_and_another_optimizer_is_not_allowed(small):
    then = of(small)
    assert check_same_run(then, of(small, "--lora_r 4"), "there", allow=True) == ["--lora_r 8 → 4"]
    with pytest.raises(ArgumentError, match=r"there holds the state of another optimizer \(--optim .* → sgd\)"):
        check_same_run(then, of(small, "--optim sgd"), "there", allow=True)
