"""Attention of packed rows without a mask: each row by itself, as `--attn_implementation varlen`.

Why: transformers keeps packed rows apart by a block-diagonal mask over the whole batch. It grows with the square of the
batch, all but a few of its blocks are empty, and PyTorch's flash kernels take no mask. The batch knows where its rows
end, on the host, so the queries, keys and values are cut there instead, and each row is attended to causally. On NVIDIA
GPUs PyTorch has a kernel for all rows at once, in bf16.

In: the lengths that `language_model(...)` is called with. Out: two attention functions that transformers calls in each
layer. Shapes: B batch (1 for packed rows), H heads, G heads of keys and values, T tokens, E width of a head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import Qwen2Model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vibevoice_finetune.errors import ArgumentError

VARLEN = "varlen"
VARLEN_KERNEL = "varlen_kernel"
"""PyTorch's own kernel for packed rows, whatever `kernel_works` says; for benchmarks."""


def set_attention(language_model: Qwen2Model, name: str) -> None:
    """Choose the attention of a language model, by a value of `--attn_implementation` or `VARLEN_KERNEL`.

    Raises:
        ArgumentError: the model's layers attend to a sliding window, which is not done row by row.
    """
    if name in (VARLEN, VARLEN_KERNEL):
        if language_model.has_sliding_layers:
            raise ArgumentError(
                "--attn_implementation varlen: this model attends to a sliding window, which only a mask expresses; "
                "use --attn_implementation sdpa."
            )
        # A name without a mask function of its own gets no mask.
        ALL_ATTENTION_FUNCTIONS.register(VARLEN, _attend_by_row)
        ALL_ATTENTION_FUNCTIONS.register(VARLEN_KERNEL, _attend_in_one_kernel)
    language_model.set_attn_implementation(name)


@dataclass(frozen=True, eq=False)
class Rows:
    """Lengths of the rows in tokens; an object, since `torch.compile` makes a program for each length of a list."""

    lengths: list[int]


def row_arguments(lengths: Sequence[int], borders: Tensor) -> dict[str, Any]:
    """What `language_model(...)` is given so that every kind of attention knows the rows without asking the device.

    Args:
        lengths: tokens of each row.
        borders: (rows + 1,) int32, first tokens of the rows and the end of the last; on the device.
    """
    longest = max(lengths)
    return {
        "rows": Rows(list(lengths)),
        # transformers' names for flash attention, which would otherwise search `position_ids` for rows, in each layer.
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@torch.compiler.disable  # type: ignore[untyped-decorator]  # unrolled, it would be compiled for each number of rows
def _attend_by_row(
    _module: nn.Module,
    query_BHTE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    _attention_mask: None,  # transformers makes none for these names
    *,
    scaling: float,
    dropout: float = 0.0,
    rows: Rows | None = None,
    **borders: Any,
) -> tuple[Tensor, None]:
    """PyTorch's kernel for packed rows, or one call of its attention per row; the result is (B, T, H, E)."""
    lengths = _lengths(rows)
    query_BHTE, key_BGTE, value_BGTE = _in_autocast_dtype(query_BHTE, key_BGTE, value_BGTE)
    if query_BHTE.dtype is torch.bfloat16 and not dropout and kernel_works(query_BHTE.device):
        return _attend_in_one_kernel(
            _module, query_BHTE, key_BGTE, value_BGTE, _attention_mask, scaling=scaling, rows=rows, **borders
        )
    groups = query_BHTE.shape[1] // key_BGTE.shape[1]
    # Of the kernels for GPUs, only flash attention takes fewer heads of keys and values, and it takes no float32.
    repeated = groups > 1 and query_BHTE.is_cuda and query_BHTE.dtype is torch.float32
    if repeated:
        key_BGTE, value_BGTE = (part.repeat_interleave(groups, dim=1) for part in (key_BGTE, value_BGTE))
    parts = zip(*(part.split_with_sizes(lengths, dim=2) for part in (query_BHTE, key_BGTE, value_BGTE)), strict=True)
    attended = [
        F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=dropout, scale=scaling, enable_gqa=groups > 1 and not repeated
        ).transpose(1, 2)
        for query, key, value in parts
    ]
    return (attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)).contiguous(), None


def _attend_in_one_kernel(
    _module: nn.Module,
    query_BHTE: Tensor,
    key_BGTE: Tensor,
    value_BGTE: Tensor,
    _attention_mask: None,  # transformers makes none for these names
    *,
    scaling: float,
    rows: Rows | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **_: object,
) -> tuple[Tensor, None]:
    """`torch.nn.attention.varlen`, in bf16 or float16 on a GPU; without dropout, of which Qwen2 has none."""
    _lengths(rows)
    query_BHTE, key_BGTE, value_BGTE = _in_autocast_dtype(query_BHTE, key_BGTE, value_BGTE)
    assert cu_seq_lens_q is not None
    query, key, value = (part.transpose(1, 2).flatten(0, 1) for part in (query_BHTE, key_BGTE, value_BGTE))
    borders, longest = cu_seq_lens_q, max_length_q
    attended_THE = varlen_attn(
        *(query, key, value, borders, borders, longest, longest),
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, attended_THE).unsqueeze(0), None


@cache
def kernel_works(device: torch.device) -> bool:
    """Whether `torch.nn.attention.varlen` runs on a device, forward and backward, and gives what attention by row does.

    It needs a GPU with flash kernels, which not every one has that knows bf16; tried once, on rows of 2 and 3 tokens.
    """
    if device.type != "cuda":
        return False
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, 5, 128, generator=generator).to(device, torch.bfloat16) for heads in (4, 2, 2)]
    borders = torch.tensor([0, 2, 5], dtype=torch.int32, device=device)
    with torch.enable_grad():
        query, key, value = (part.requires_grad_() for part in parts)
        try:
            found, _ = _attend_in_one_kernel(
                nn.Identity(),
                *(query, key, value),
                None,
                scaling=128**-0.5,
                rows=Rows([2, 3]),
                cu_seq_lens_q=borders,
                max_length_q=3,
            )
            torch.autograd.backward(found.sum())
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            return False
    rows = zip(*(part.detach().split_with_sizes([2, 3], dim=2) for part in parts), strict=True)
    expected = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2) for q, k, v in rows
    ]
    return torch.allclose(found.detach().float(), torch.cat(expected, dim=1).float(), atol=0.05)


def _in_autocast_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What is multiplied, in autocast's dtype: with a trained language model the rotary embedding gives float32."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _lengths(rows: Rows | None) -> list[int]:
    if rows is None:
        raise ValueError("varlen attention needs the lengths of the rows")
    return rows.lengths
