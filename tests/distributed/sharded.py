"""The objective under FSDP2 in every process of torchrun: ``python -m tests.distributed.sharded OUT``.

Each process computes the loss of its half of four rows on weights split by `fully_shard`; the first one writes whether
the averaged gradients are those of one process with all four rows.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.processes import GOLDEN, MODEL
from tests.rows import Small
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.objective.sharding import gathered, own_part, split
from vibevoice_finetune.training.metrics import LossWeights, Terms


def gradients(small: Small, numbers: list[int], counts, *, sharded: bool) -> tuple[dict[str, torch.Tensor], float]:
    """Gradients of the loss of some rows, divided by the counts of all rows; the share of all weights held here."""
    objective = small.objective()
    torch.manual_seed(3)
    attach(objective.model, AdapterPlan(4, 8, 0.0, ("q_proj", "v_proj"), "full", True, ()))
    if sharded:
        split(objective, objective.model, torch.device("cpu"), dist.get_world_size())
    rows = small.dataset()
    sums = objective(collate([rows[Draw(0, number)] for number in numbers]))
    factor = float(dist.get_world_size()) if sharded else 1.0
    Terms.of(sums, counts, factor).total(LossWeights(1.0, 1.0, 1.0)).backward()
    weights = list(objective.parameters())
    share = sum(own_part(weight).numel() for weight in weights) / sum(weight.numel() for weight in weights)
    found = {name: parameter.grad for name, parameter in trainable_parameters(objective.model).items()}
    assert all(isinstance(gradient, DTensor) == sharded for gradient in found.values())
    return gathered(found, keep=True), share


def main(out: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    small = Small(MODEL, Path(tempfile.mkdtemp()), GOLDEN / "tokenizer")
    rows = small.dataset()
    counts = collate([rows[Draw(0, number)] for number in range(4)])["counts"]
    whole, _ = gradients(small, [0, 1, 2, 3], counts, sharded=False)
    parts, share = gradients(small, [[0, 1], [2, 3]][rank], counts, sharded=True)
    if rank == 0:
        worst = max(
            ((whole[name] - parts[name]).abs().max() / whole[name].abs().max().clamp_min(1e-8)).item() for name in whole
        )
        same = whole.keys() == parts.keys()
        out.write_text(json.dumps({"tensors": len(whole), "worst": worst, "same names": same, "share": share}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
