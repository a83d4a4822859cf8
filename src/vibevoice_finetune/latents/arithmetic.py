"""How the speech encoders multiply float32, said once: by the device, in a scope, and in the name of what they make.

PyTorch lets convolutions on NVIDIA GPUs round their factors to tf32 (10 bits of mantissa) unless it is told otherwise,
and matrix products not; so "float32" is one thing on a GPU and another elsewhere. Here it is always said.

Measured on emulated tf32 (`benchmarks/encoder_precision.py`): latents are off by 0.07 to 0.31 %; with bf16 by 1.1 to
4.1 %. What coarser arithmetic may cost them is 1 %, so tf32 is used where there is hardware for it, and bf16 is not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import torch

_TF32_CAPABILITY = (8, 0)  # Ampere


class Arithmetic(StrEnum):
    """How factors of float32 products are rounded; sums are float32 in both."""

    FLOAT32 = "float32"
    TF32 = "tf32"


def fastest(device: torch.device | str) -> Arithmetic:
    """What the encoders compute in on a device, if nothing else is known."""
    device = torch.device(device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY:
        return Arithmetic.TF32
    return Arithmetic.FLOAT32


@contextmanager
def computing_in(arithmetic: Arithmetic) -> Iterator[None]:
    """Within the context, convolutions and matrix products on NVIDIA GPUs are exact float32 or tf32.

    A device without tf32 computes in float32 all the same. PyTorch's older switches (`allow_tf32`) cannot be read
    within it: PyTorch refuses to mix the two.
    """
    cudnn: Any = torch.backends.cudnn  # its parts have no types
    switches: tuple[Any, ...] = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    wanted = "tf32" if arithmetic is Arithmetic.TF32 else "ieee"
    try:
        for switch in switches:
            switch.fp32_precision = wanted
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
