"""Compiled blocks compute what they did before, are compiled once for all lengths, and keep their names."""

import pytest
import torch
from torch._dynamo.utils import counters

from tests.rows import Small
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.compilation import compile_blocks

PLAN = AdapterPlan(
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    lora_target_modules=("q_proj", "v_proj", "o_proj", "down_proj"),
    head="lora",
    train_connectors=False,
)
BATCHES = ((0, 1, 2), (3, 4, 5), (6, 7), (0, 2, 4, 6), (5,))  # other numbers of rows, tokens, frames and labels


@pytest.fixture(scope="module")
def small(golden_dir, tmp_path_factory):
    model = golden_dir / "tied" / "checkpoint"
    return Small(model, tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


def trajectory(small, backend, *, recomputed):
    """Losses of a step on each batch, the trained tensors after them, and how many programs were made by each step."""
    torch._dynamo.reset()
    counters.clear()
    objective = small.objective().train()
    set_attention(parts.language_model(objective.model), "varlen")
    torch.manual_seed(0)
    attach(objective.model, PLAN)
    if recomputed:
        objective.activation_checkpointing_enable()
    if backend:
        compile_blocks(objective.model, backend, None)
    parameters = trainable_parameters(objective.model)
    optimizer = torch.optim.SGD(parameters.values(), lr=1e-3)
    dataset = small.dataset()
    losses, programs = [], []
    for rows in BATCHES:
        sums = objective(collate([dataset[Draw(0, row)] for row in rows]))
        total = sums["diffusion"] + sums["text"] + sums["control"]
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
        programs.append(counters["stats"]["unique_graphs"])
    return losses, {name: parameter.detach() for name, parameter in parameters.items()}, programs


@pytest.mark.parametrize(
    ("backend", "recomputed"),
    [("aot_eager", False), ("eager", True), pytest.param("inductor", False, marks=pytest.mark.slow)],
)
def test_the_trajectory_is_the_uncompiled_ones(small, backend, recomputed):
    expected_losses, expected, _ = trajectory(small, None, recomputed=recomputed)
    losses, found, programs = trajectory(small, backend, recomputed=recomputed)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert found.keys() == expected.keys()
    assert not any("_orig_mod" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert programs[0] > 0
    assert len(set(programs)) == 1, "another batch must not compile anything anew"
