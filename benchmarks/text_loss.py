"""The text loss: ours, PyTorch's `F.linear_cross_entropy` and the plain one, at the size of a 1.5B step.

Forward and backward with respect to the hidden states; the output matrix is frozen. Resident memory at the peak above
what the inputs take, and the error of the reported loss and of the gradient against float64, are measured in a process
of its own for each; times one after the other in turns, since a shared machine is not equally fast for long.

    python -m benchmarks.text_loss --labels float32=744,bfloat16=64

A processor without instructions for bf16 takes minutes for 744 labels in it; the errors do not depend on their number.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LinearCrossEntropyOptions

from benchmarks import record
from vibevoice_finetune.objective.losses import LOGITS_CHUNK, text_cross_entropy_sum

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _chunked(hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    options = LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden_ND, matrix_VD, labels_N, reduction="sum", options=options)


def _accurate(hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    options = LinearCrossEntropyOptions(batch_chunk_size=LOGITS_CHUNK, chunking_method=None, acc_policy="accurate")
    return F.linear_cross_entropy(hidden_ND, matrix_VD, labels_N, reduction="sum", options=options)


def _plain(hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_ND, matrix_VD).float(), labels_N, reduction="sum")


LOSSES: dict[str, Loss] = {
    "ours": text_cross_entropy_sum,
    "linear_cross_entropy": _chunked,
    "linear_cross_entropy, our chunks, accurate": _accurate,
    "plain": _plain,
}


def main() -> None:
    """Measure every loss in both dtypes and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", default="float32=744,bfloat16=64", help="by comma: dtype=labels")
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", default=str(record.RESULTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        name, dtype, labels = flags.one.split("=")
        print(json.dumps(measured(name, dtype, int(labels), flags)))
        return
    results = []
    sizes = {name: getattr(flags, name) for name in ("hidden", "vocab", "repeats")}
    for part in flags.labels.split(","):
        dtype, labels = part.split("=")
        times = seconds(dtype, int(labels), flags)
        for name in LOSSES:
            command = [sys.executable, "-m", "benchmarks.text_loss", f"--one={name}={part}"]
            command += [f"--{size}={value}" for size, value in sizes.items()]
            # Freed blocks go back to the system at once, so that resident memory is what is held.
            environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
            found = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(found.splitlines()[-1]) | {"forward_backward_sec": times[name]})
            print(results[-1], flush=True)
            record.write("text-loss-cpu", {"benchmark": "text_loss", **sizes, "results": results}, Path(flags.out))


def inputs(dtype_name: str, labels: int, flags: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states that need a gradient, the output matrix, labels."""
    dtype = getattr(torch, dtype_name)
    torch.manual_seed(0)
    hidden_ND = torch.randn(labels, flags.hidden).to(dtype).requires_grad_()
    matrix_VD = (torch.randn(flags.vocab, flags.hidden) * 0.02).to(dtype)
    return hidden_ND, matrix_VD, torch.randint(flags.vocab, (labels,))


def seconds(dtype_name: str, labels: int, flags: argparse.Namespace) -> dict[str, float]:
    """The shortest forward and backward pass of each loss."""
    hidden_ND, matrix_VD, labels_N = inputs(dtype_name, labels, flags)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(flags.repeats):
        for name, loss in LOSSES.items():
            hidden_ND.grad = None
            began = time.perf_counter()
            loss(hidden_ND, matrix_VD, labels_N).backward()  # type: ignore[no-untyped-call]
            times[name].append(time.perf_counter() - began)
    return {name: round(min(values), 2) for name, values in times.items()}


def measured(name: str, dtype_name: str, labels: int, flags: argparse.Namespace) -> record.Json:
    """Memory and errors of one loss in one dtype, in this process."""
    hidden_ND, matrix_VD, labels_N = inputs(dtype_name, labels, flags)
    loss = LOSSES[name]
    loss(hidden_ND[:1, :8], matrix_VD[:8, :8], labels_N[:1] * 0)  # what it imports when it is first called
    before = resident()
    peak = Peak()
    total = loss(hidden_ND, matrix_VD, labels_N)
    total.backward()  # type: ignore[no-untyped-call]
    top = peak.stop() - before
    assert hidden_ND.grad is not None
    exact, gradient_ND = reference(hidden_ND.detach(), matrix_VD, labels_N)
    difference_ND = hidden_ND.grad.double() - gradient_ND
    return {
        "loss": name,
        "dtype": dtype_name,
        "labels": labels,
        "peak_mb_above_inputs": round(top / 1e6),
        "mean_loss": round(total.item() / labels, 5),
        "mean_loss_float64": round(exact / labels, 5),
        "loss_relative_error": float(f"{abs(total.item() / exact - 1):.2g}"),
        "gradient_relative_error": float(f"{(difference_ND.norm() / gradient_ND.norm()).item():.2g}"),
    }


def reference(hidden_ND: Tensor, matrix_VD: Tensor, labels_N: Tensor, chunk: int = 16) -> tuple[float, Tensor]:
    """The sum and its gradient in float64 of the same rounded inputs, some rows at a time."""
    matrix_VD = matrix_VD.double()
    total, gradients = 0.0, []
    for start in range(0, len(labels_N), chunk):
        rows = hidden_ND[start : start + chunk].double().requires_grad_()
        part = F.cross_entropy(rows @ matrix_VD.T, labels_N[start : start + chunk], reduction="sum")
        part.backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        total += part.item()
        gradients.append(rows.grad)
    return total, torch.cat(gradients)


class Peak:
    """The largest resident memory of this process until it is stopped, sampled by a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> int:
        """End sampling."""
        self._done.set()
        self._thread.join()
        return self.bytes

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, resident())


def resident() -> int:
    """Memory of this process that is in the machine's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
