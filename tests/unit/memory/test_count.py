"""The count of what a training step keeps, against what autograd really saves and what the parameters really take."""

from dataclasses import dataclass, replace
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

from tests.unit.training.medium_model import RECIPE, config, objective, packed_batch, size_of
from vibevoice_finetune.adapters.attach import trainable_parameters
from vibevoice_finetune.data.collate import Batch
from vibevoice_finetune.memory import count
from vibevoice_finetune.memory.count import BF16, FLOAT32, Recipe
from vibevoice_finetune.objective.objective import Objective

CONFIG = config(hidden=64, intermediate=160, layers=10, vocab=300)
BATCH = packed_batch(rows=3, tokens=37, voice=6, frames=11, draws=3)

RECIPES = {
    "bf16, head": replace(RECIPE, bf16=True),
    "bf16, head, recomputed": replace(RECIPE, bf16=True, checkpointing=True),
    "bf16, LoRA on the head": replace(RECIPE, bf16=True, head="lora"),
    "bf16, LoRA on two layers": replace(RECIPE, bf16=True, head="frozen", lora_targets=("q_proj", "down_proj")),
    "bf16, no dropout": replace(RECIPE, bf16=True, lora_dropout=0.0),
    "bf16, sdpa": replace(RECIPE, bf16=True, attention="sdpa"),
    "bf16, eager": replace(RECIPE, bf16=True, attention="eager"),
    "bf16, connectors": replace(RECIPE, bf16=True, train_connectors=True),
    "bf16, all weights": replace(RECIPE, bf16=True, lora_targets=(), train_language_model=True),
    "bf16, all weights, recomputed": replace(
        RECIPE, bf16=True, lora_targets=(), train_language_model=True, checkpointing=True, head="frozen"
    ),
    "float32, all weights": replace(RECIPE, lora_targets=(), train_language_model=True, train_connectors=True),
    "bf16, DoRA": replace(RECIPE, bf16=True, dora=True),
    "float32, DoRA": replace(RECIPE, dora=True),
    "float32, DoRA, no dropout": replace(RECIPE, dora=True, lora_dropout=0.0),
    "float32, head": RECIPE,
    "float32, sdpa": replace(RECIPE, attention="sdpa"),
    "float32, no dropout": replace(RECIPE, lora_dropout=0.0, head="frozen"),
    "float32, LoRA on the head": replace(RECIPE, head="lora"),
}


@dataclass(eq=False)
class Kept:
    """A tensor that autograd keeps."""

    tensor: Tensor


def saved_bytes(learner: Objective, batch: Batch, *, bf16: bool) -> int:
    """Bytes of all tensors that autograd saves in a forward pass and that are neither parameters nor the batch."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*learner.parameters(), *learner.buffers())}
    own |= {value.untyped_storage().data_ptr() for value in batch.values() if isinstance(value, Tensor)}
    kept: WeakSet[Kept] = WeakSet()  # what is dropped again before the backward pass leaves it

    def pack(tensor: Tensor) -> Kept:
        one = Kept(tensor)
        kept.add(one)
        return one

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        sums = learner(batch)
    assert sums["diffusion"].requires_grad
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in kept}
    return sum(size for pointer, size in storages.items() if pointer not in own)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_activations_are_what_autograd_saves(recipe: Recipe) -> None:
    learner = objective(CONFIG, recipe)
    size, batch = count.measure(CONFIG), packed_batch(3, 37, 6, 11, recipe.draws)
    # Autograd keeps autocast's copies of trained weights; those of recomputed layers are made anew.
    copied = replace(recipe, lora_targets=(), train_language_model=False) if recipe.checkpointing else recipe
    copies = BF16 * count.trained_numbers(size, copied) if recipe.bf16 else 0
    expected = (
        count.language_model_bytes(size, recipe, size_of(batch))
        + count.head_bytes(size, recipe, size_of(batch))
        + copies
    )
    assert expected == pytest.approx(saved_bytes(learner, batch, bf16=recipe.bf16), rel=0.06)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_weights_are_what_the_parameters_take(recipe: Recipe) -> None:
    learner = objective(CONFIG, recipe)
    size = count.measure(CONFIG)
    trained = trainable_parameters(learner.model)
    assert count.trained_numbers(size, recipe) == sum(parameter.numel() for parameter in trained.values())
    frozen = [parameter for parameter in learner.model.parameters() if not parameter.requires_grad]
    assert count.weight_bytes(size, recipe) == pytest.approx(sum(p.nbytes for p in frozen), abs=100)


def test_four_bits_take_little_more_than_half_a_byte() -> None:
    size = count.measure(CONFIG)
    linear = 10 * (64 * 64 * 2 + 2 * 16 * 64 + 3 * 64 * 160)  # q and o, k and v, and the feed-forward part, ten times
    saved = count.weight_bytes(size, RECIPE) - count.weight_bytes(size, replace(RECIPE, quantised_bits=4))
    # 4 bytes become 0.5, and a scale of 1 byte for 64 weights, which has one of 4 bytes for 256 of them.
    assert saved == pytest.approx(linear * (FLOAT32 - 0.5 - 1 / 64 - 4 / (64 * 256)))


def test_optimizers_by_name() -> None:
    found = {
        name: count.optimizer_bytes(replace(RECIPE, optimizer=name))
        for name in ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_8bit", "sgd", "adafactor", "lion_32bit")
    }
    assert found == {
        "adamw_torch_fused": 8.0,
        "adamw_bnb_8bit": 2.1,
        "paged_adamw_8bit": 0.0,
        "sgd": 0.0,
        "adafactor": 0.1,
        "lion_32bit": 4.0,
    }


def test_attention_kinds() -> None:
    """Of a token: 4 D for queries, keys, values and output; flash attention keeps keys and values before repetition."""
    size, batch = count.measure(CONFIG), size_of(BATCH)
    bf16 = replace(RECIPE, bf16=True)

    def layer(attention: str) -> float:
        return count.layer_bytes(size, replace(bf16, attention=attention), batch) / batch.tokens

    assert layer("varlen") == layer("flash_attention_2")
    keys_and_values = 2 * BF16 * (64 - 16)  # 2 of 8 heads
    mask = BF16 * 3 * 37
    assert layer("sdpa") - layer("flash_attention_2") == pytest.approx(keys_and_values + mask)
    scores, log_sums = 8 * 3 * 37 * (FLOAT32 + BF16), FLOAT32 * 8
    assert layer("eager") - layer("sdpa") == pytest.approx(scores - mask - log_sums)
