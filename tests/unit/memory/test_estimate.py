"""Estimates: against the memory that a training really takes, and that the advice holds what it promises."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.training.medium_model import RECIPE, as_argument, config
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.config import config_to_native
from vibevoice_finetune.base_model.random_model import original_config
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.data.voice_prompts import PlannedRow, PromptSource
from vibevoice_finetune.memory.count import FLOAT32, MicroBatch, Recipe, measure, trained_numbers
from vibevoice_finetune.memory.estimate import (
    GIB,
    RUNTIME_BYTES,
    Estimate,
    Part,
    estimate,
    largest,
    micro_batches,
    optimizer_steps,
    recipe_of,
)

ROOT = Path(__file__).parents[3]
MEDIUM = {"hidden": 512, "intermediate": 2304, "layers": 6, "vocab": 12_000}
GPU = replace(RECIPE, device="cuda", bf16=True, checkpointing=False, attention="varlen")
TEN_SECONDS = MicroBatch(rows=8, tokens=1840, frames=600, labels=900)


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        pytest.param(replace(RECIPE, checkpointing=True, head="lora", lora_dropout=0.0), marks=pytest.mark.slow),
        replace(RECIPE, lora_targets=(), train_language_model=True),
        pytest.param(
            replace(RECIPE, lora_targets=(), train_language_model=True, checkpointing=True), marks=pytest.mark.slow
        ),
    ],
    ids=["head", "recomputed, LoRA", "all weights", "all weights, recomputed"],
)
def test_the_estimate_is_within_15_percent_of_what_a_training_takes(recipe: Recipe) -> None:
    """Anonymous memory by which a process grows: its own base of half a gigabyte would hide the rest.

    glibc keeps freed blocks of up to 32 MB for later, which is no part of the estimate: here every block of some size
    goes back to the system at once.
    """
    rows, tokens = 2, 330
    command = [sys.executable, "-m", "tests.unit.training.medium_model", as_argument(MEDIUM, recipe, rows, tokens)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured = int(result.stdout)
    batch = MicroBatch(rows, rows * tokens, rows * (tokens // 3), rows * (tokens - tokens // 3 - tokens // 6 - 5))
    expected = estimate(measure(config(**MEDIUM)), recipe, batch, encodes=False).training - RUNTIME_BYTES["cpu"]
    print(f"measured {measured / 1e6:.0f} MB, expected {expected / 1e6:.0f} MB")
    assert measured > 300e6, "too small to tell a model from an interpreter"
    assert expected == pytest.approx(measured, rel=0.15)


@pytest.fixture(scope="module")
def released() -> Estimate:
    """1.5B, its head trained, eight clips of ten seconds, four draws."""
    size = measure(config_to_native(original_config("1.5b"), "released"))
    return estimate(size, GPU, TEN_SECONDS, encodes=True)


def test_the_released_model_is_counted_as_published(released: Estimate) -> None:
    size = released.size
    assert sum(rows * columns for rows, columns in size.language_model.values()) == 28 * (
        2 * 1536**2 + 2 * 256 * 1536 + 3 * 1536 * 8960
    )
    assert size.head == 123_279_360
    parts = {part.name: part.bytes for part in released.parts}
    lora = 8 * 28 * (2 * (1536 + 1536) + 2 * (1536 + 256) + 3 * (1536 + 8960))
    assert trained_numbers(size, GPU) == lora + size.head
    assert parts["trained weights"] == FLOAT32 * (lora + size.head)
    assert parts["optimizer"] == 2 * parts["trained weights"]
    assert released.peak < 14e9  # what was asked of this setting


def test_seven_billion_in_four_bits_fits_twelve_gigabytes() -> None:
    size = measure(config_to_native(original_config("7b"), "released"))
    recipe = replace(GPU, head="lora", quantised_bits=4, checkpointing=True)
    assert estimate(size, recipe, TEN_SECONDS, encodes=False).peak < 12e9
    in_bf16 = estimate(size, replace(recipe, quantised_bits=None), TEN_SECONDS, encodes=False)
    assert in_bf16.peak < 24e9


def test_more_of_anything_needs_more(released: Estimate) -> None:
    def peak(recipe: Recipe = GPU, batch: MicroBatch = TEN_SECONDS) -> float:
        return estimate(released.size, recipe, batch, encodes=False).peak

    assert peak(replace(GPU, ema=True)) - peak() == FLOAT32 * trained_numbers(released.size, GPU)
    assert peak(replace(GPU, accumulation=2)) > peak()
    assert peak(replace(GPU, bf16=False)) > 1.5 * peak()
    assert peak(replace(GPU, draws=8)) > peak()
    assert peak(replace(GPU, processes=2, accumulation=2)) > peak(replace(GPU, accumulation=2))
    assert peak(batch=replace(TEN_SECONDS, tokens=3680)) > peak()
    assert peak(replace(GPU, checkpointing=True)) < 0.6 * peak()


def test_advice_names_what_helps_and_what_it_leaves(released: Estimate) -> None:
    advice = released.advice()
    assert advice[0].startswith("--gradient_checkpointing True: about ")
    assert any(line.startswith("--per_device_train_batch_size 4 --gradient_accumulation_steps 2: ") for line in advice)
    assert not any("--bf16" in line or "--ema_decay" in line for line in advice)  # already so
    in_float32 = estimate(released.size, replace(GPU, bf16=False), TEN_SECONDS, encodes=False)
    assert any(line.startswith("--bf16 True: ") for line in in_float32.advice())


def test_what_fits_which_gpu(released: Estimate) -> None:
    assert released.to_fit(16 * GIB) == []
    on_twelve = released.to_fit(12 * GIB)
    assert on_twelve == ["--per_device_train_batch_size 4 --gradient_accumulation_steps 2"]
    assert released.to_fit(2 * GIB) is None
    needed = released.to_fit(6 * GIB)
    assert needed is not None
    assert len(needed) > 1
    assert len({flags.split()[0] for flags in needed}) == len(needed), "a flag twice"


def test_the_line_says_what_there_is_and_adds_up(released: Estimate) -> None:
    line = replace(released, available=8 * GIB).line()
    assert line.startswith(f"about {released.training / 1e9:.1f} GB of 8.6 GB in training (8 rows, 1,840 tokens): ")
    assert ": frozen weights 3.1, trained weights 0.5, " in line
    assert line.endswith("; may not fit")
    assert "may not fit" not in released.line()
    parts = [float(part.split()[-1]) for part in released.line().split("): ")[1].split(", ")]
    assert sum(parts) == pytest.approx(released.training / 1e9, abs=0.05 * len(parts))  # each is rounded to 0.1


def test_the_line_names_the_encoding_where_that_takes_most(released: Estimate) -> None:
    small = replace(released, parts=(Part("frozen weights", 1e9),), encoding=4.2e9)
    assert small.peak == 4.2e9
    assert small.line().endswith("frozen weights 1.0; encoding audio before that takes 4.2 GB")
    assert replace(small, available=4e9).line().endswith("takes 4.2 GB; may not fit")


def arguments(*words: str) -> Arguments:
    return parse(["--model_name_or_path", "m", "--train_jsonl", "t", "--output_dir", "o", "--do_train", *words])


def planned(*lengths: int) -> list[PlannedRow]:
    return [
        PlannedRow(
            where=f"t:{number}",
            turns=(),
            target_key="",
            target_frames=length // 2,
            prompt_choices=(),
            own_choice=None,
            num_tokens=length,
            speaker=None,
            source=PromptSource.NONE,
        )
        for number, length in enumerate(lengths)
    ]


def test_micro_batches_are_the_trainers_over_all_epochs() -> None:
    rows = planned(10, 20, 40, 80, 160)
    words = ("--per_device_train_batch_size", "2", "--num_train_epochs", "3", "--gradient_accumulation_steps", "2")
    batches = list(micro_batches(arguments(*words), rows))
    assert len(batches) == 3 * 3  # two pairs and a single row, three times
    assert sum(batch.tokens for batch in batches) == 3 * 310
    assert sum(batch.frames for batch in batches) == 3 * 155
    assert {batch.rows for batch in batches} == {1, 2}
    assert optimizer_steps(arguments(*words), rows) == (6, 2)
    assert optimizer_steps(arguments(*words, "--max_steps", "5"), rows) == (5, 2)


def test_token_batches_stay_below_their_limit() -> None:
    batches = list(micro_batches(arguments("--max_tokens_per_batch", "200"), planned(10, 20, 40, 80, 160)))
    assert max(batch.tokens for batch in batches) <= 200
    assert sum(batch.tokens for batch in batches) == 3 * 310  # three epochs are the default


def test_the_largest_batch_counts(released: Estimate) -> None:
    small, long, spoken = MicroBatch(2, 100, 40, 50), MicroBatch(2, 900, 40, 800), MicroBatch(2, 300, 290, 10)
    found = largest(released.size, GPU, iter([small, long, spoken, small]), encodes=False)
    assert found.batch == long


def test_what_of_the_flags_memory_depends_on() -> None:
    recipe = recipe_of(
        arguments(
            *("--bf16", "True", "--load_in_4bit", "True", "--train_diffusion_head", "True", "--ema_decay", "0.9"),
            *("--ddpm_batch_mul", "4", "--lora_target_modules", "q_proj", "--gradient_checkpointing", "True"),
        ),
        "cuda",
    )
    assert recipe == replace(
        GPU, quantised_bits=4, lora_targets=("q_proj",), checkpointing=True, ema=True, draws=4, accumulation=1
    )
    assert recipe_of(arguments("--lora_wrap_diffusion_head", "True"), "cpu").head == "lora"
