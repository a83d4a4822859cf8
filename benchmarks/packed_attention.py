"""Attention of packed rows: one layer forward and backward, as each `--attn_implementation` computes it.

The shape is a layer's of the 1.5B model: 12 heads of queries, 2 of keys and values, 128 wide. sdpa and eager get the
block-diagonal mask that transformers makes of restarting positions; its making, once a forward pass, is timed apart.
Memory is what autograd keeps for the backward pass, counted by its hooks.

    python -m benchmarks.packed_attention --rows 8x110,8x400,1x2048
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

from benchmarks import record
from vibevoice_finetune.objective.attention import VARLEN, VARLEN_KERNEL, row_arguments, set_attention

HEADS, KEY_VALUE_HEADS, WIDTH = 12, 2, 128


def main() -> None:
    """Time every kind at every shape and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="8x110,8x400,1x2048", help="by comma: rows x tokens of each")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: bfloat16 on a GPU, else float32")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--out", default=str(record.RESULTS))
    flags = parser.parse_args()
    device = torch.device(flags.device)
    dtype = getattr(torch, flags.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    model = one_layer(device, dtype)
    results: list[record.Json] = []
    for shape in flags.rows.split(","):
        rows, tokens = map(int, shape.split("x"))
        found = measured(model, kinds(device), [tokens] * rows, dtype, device, flags.repeats)
        for name, values in found.items():
            results.append({"rows": rows, "tokens": tokens, "attention": name, **values})
            print(results[-1], flush=True)
    numbers = {"benchmark": "packed_attention", "dtype": str(dtype).removeprefix("torch."), "results": results}
    record.write(f"packed-attention-{device.type}", numbers, Path(flags.out))


def kinds(device: torch.device) -> list[str]:
    """What can run on this device; PyTorch's kernel for packed rows has no CPU version."""
    return ["eager", "sdpa", VARLEN, *([VARLEN_KERNEL] if device.type == "cuda" else [])]


def one_layer(device: torch.device, dtype: torch.dtype) -> Qwen2Model:
    """A language model of one layer with the 1.5B model's attention; the rest of it is small."""
    config = Qwen2Config(
        hidden_size=HEADS * WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=8,
    )
    return Qwen2Model(config).to(device, dtype)


def measured(
    model: Qwen2Model, names: list[str], lengths: list[int], dtype: torch.dtype, device: torch.device, repeats: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of the layer's attention and of its mask, and megabytes kept between forward and backward pass.

    The kinds take turns, since a shared machine is not equally fast for long; the shortest of the repeats counts.
    """
    calls = {name: Calls.of(model, name, lengths, dtype, device) for name in names}
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    for repeat in range(1 + repeats):
        for name, call in calls.items():
            set_attention(model, name)
            once = {
                "mask_ms": milliseconds(call.mask, device),
                "forward_ms": milliseconds(call.forward, device),
                "forward_backward_ms": milliseconds(call.both, device),
            }
            if repeat:  # the first one warms up
                found[name] = {part: min(value, found[name].get(part, value)) for part, value in once.items()}
    for name, call in calls.items():
        found[name]["kept_mb"] = round(kept_bytes(call.forward, call.inputs) / 1e6, 2)
    return found


@dataclass(frozen=True)
class Calls:
    """What is timed of one kind."""

    inputs: tuple[Tensor, ...]
    mask: Callable[[], object]
    forward: Callable[[], Tensor]

    def both(self) -> None:
        """Forward and backward."""
        self.forward().sum().backward()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, model: Qwen2Model, name: str, lengths: list[int], dtype: torch.dtype, device: torch.device) -> "Calls":
        """Random queries, keys and values, and the layer's attention of them."""
        torch.manual_seed(0)
        total = sum(lengths)
        query, key, value = (
            torch.randn(1, total, heads, WIDTH, device=device, dtype=dtype).transpose(1, 2).requires_grad_()
            for heads in (HEADS, KEY_VALUE_HEADS, KEY_VALUE_HEADS)
        )
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
        borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)
        set_attention(model, name)
        embeddings = torch.empty(1, total, HEADS * WIDTH, device=device, dtype=dtype)
        make_mask = partial(create_causal_mask, model.config, embeddings, None, None, positions)
        mask = cast(Tensor | None, make_mask())
        function = eager_attention_forward if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        layer, rows = model.layers[0].self_attn, row_arguments(lengths, borders)

        def forward() -> Tensor:
            attended: Tensor = function(layer, query, key, value, mask, scaling=WIDTH**-0.5, **rows)[0]
            return attended

        return cls((query, key, value), make_mask, forward)


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call."""
    wait_for(device)
    began = time.perf_counter()
    call()
    wait_for(device)
    return round(1000 * (time.perf_counter() - began), 3)


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def kept_bytes(forward: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> int:
    """Bytes that autograd keeps besides queries, keys and values, the mask among them."""
    own = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    kept[result.untyped_storage().data_ptr()] = result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


if __name__ == "__main__":
    main()
