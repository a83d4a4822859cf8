"""The text loss at full vocabulary: ours, torch's fused one, and plain logits; time, memory, and what bf16 does to it.

The reference is float64. One process a case, so that the peak of each is its own.

    python -m benchmarks.cross_entropy
"""

import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from benchmarks import record
from vibevoice_finetune.model.losses import text_cross_entropy_sum

POSITIONS, HIDDEN, VOCABULARY = 744, 1536, 151_936
WAYS = ("ours", "torch linear_cross_entropy", "plain logits")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def loss_of(way: str, hidden: torch.Tensor, matrix: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy, computed in one of the ways."""
    if way == "ours":
        return text_cross_entropy_sum(hidden, matrix, labels) / len(labels)
    if way == "torch linear_cross_entropy":
        return F.linear_cross_entropy(hidden, matrix, labels)
    return F.cross_entropy(F.linear(hidden, matrix).float(), labels)


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, output matrix and labels, the same in every process, on bf16's grid."""
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN).bfloat16().float()
    matrix = (torch.randn(VOCABULARY, HIDDEN) * 0.02).bfloat16().float()
    return hidden, matrix, torch.randint(VOCABULARY, (POSITIONS,))


def one(way: str, dtype: str) -> None:
    """Measure one case and print it as JSON."""
    hidden, matrix, labels = inputs()
    hidden, matrix = hidden.to(DTYPES[dtype]).requires_grad_(), matrix.to(DTYPES[dtype])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    loss = loss_of(way, hidden, matrix, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(
        json.dumps({"loss": loss.item(), "seconds": round(seconds, 2), "peak_growth_gb": round(grown * 1024 / 1e9, 2)})
    )


def main() -> None:
    """Measure every case in its own process and write the record."""
    if len(sys.argv) > 1:
        one(sys.argv[1], sys.argv[2])
        return
    hidden, matrix, labels = inputs()
    chunks = zip(hidden.double().split(64), labels.split(64), strict=True)
    exact = sum(F.cross_entropy(part @ matrix.double().T, right, reduction="sum").item() for part, right in chunks)
    results: dict[str, object] = {"float64": {"loss": exact / POSITIONS}}
    for dtype in DTYPES:
        for way in WAYS:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.cross_entropy", way, dtype],
                capture_output=True,
                text=True,
                check=False,
            )
            last = done.stdout.strip().splitlines()[-1:] or ["null"]
            results[f"{way}, {dtype}"] = json.loads(last[0]) if done.returncode == 0 else done.stderr.strip()[-200:]
    print(json.dumps(results, indent=1))
    shape = {"positions": POSITIONS, "hidden": HIDDEN, "vocabulary": VOCABULARY}
    record.write("cross-entropy-cpu", {**shape, "results": results})


if __name__ == "__main__":
    main()
