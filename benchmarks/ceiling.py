"""What the hardware reaches on the simplest work of its kind: the ceilings that a step is compared with."""

import statistics
import time
from collections.abc import Callable

import torch

WARM_UPS, REPEATS = 3, 7
SIDE = {"cuda": 8192, "cpu": 1024}


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 matrices are multiplied by instructions of their own: on GPUs, and on processors with AVX-512."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def matmul_flops_per_sec(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square matrix product, on random numbers; the median of several."""
    side = SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median_sec(lambda: left @ right.T, device)


def copy_bytes_per_sec(device: torch.device) -> float:
    """Bytes read and written a second by a copy within the device's memory, of 2 GB (0.2 GB on a processor)."""
    source = torch.randn((500 if device.type == "cuda" else 50) * 10**6, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_sec(lambda: target.copy_(source), device)


def median_sec(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes on the device, the median of several runs after a few to warm up."""
    times = []
    for number in range(WARM_UPS + REPEATS):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            torch.cuda.synchronize()
            passed = begin.elapsed_time(end) / 1000
        else:
            began = time.perf_counter()
            work()
            passed = time.perf_counter() - began
        if number >= WARM_UPS:
            times.append(passed)
    return statistics.median(times)
