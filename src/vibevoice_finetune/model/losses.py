"""The three losses, as pure functions. Each returns a float32 sum; the caller divides it once, by the count over all
micro-batches of the optimizer step and all processes.

Shapes: N positions with a label, D hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_CHUNK = 256
"""Positions whose logits exist at a time: 256 x 152k float32 is 156 MB."""


def squared_error_sum(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences in float32; its count is the number of elements."""
    return (predicted.float() - target.float()).square().sum()


def text_cross_entropy_sum(hidden_ND: Tensor, output_matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of next-token cross-entropies, without ever holding more than a chunk of logits.

    The logits of a chunk are computed again in the backward pass, so that neither pass holds an (N, V) tensor.

    Args:
        hidden_ND: (N, D) last hidden states at labelled positions.
        output_matrix_VD: (V, D) the language model's output matrix.
        labels_N: (N,) vocabulary ids.

    Returns:
        0-d float32.
    """
    total = hidden_ND.new_zeros((), dtype=torch.float32) + 0.0 * hidden_ND.sum().float()
    for hidden, labels in zip(hidden_ND.split(LOGITS_CHUNK), labels_N.split(LOGITS_CHUNK), strict=True):
        part: Tensor = checkpoint(_chunk_cross_entropy_sum, hidden, output_matrix_VD, labels, use_reentrant=False)
        total = total + part
    return total


def _chunk_cross_entropy_sum(hidden_ND: Tensor, output_matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    logits_NV = F.linear(hidden_ND, output_matrix_VD)
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def control_logits(hidden_ND: Tensor, output_matrix_VD: Tensor, control_ids_4: Tensor) -> Tensor:
    """(N, 4) float32 scores of the four tokens that generation chooses among, from their rows of the matrix alone."""
    return F.linear(hidden_ND, output_matrix_VD.index_select(0, control_ids_4)).float()


def control_cross_entropy_sum(logits_N4: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of cross-entropies among the four control tokens, 0-d float32."""
    return F.cross_entropy(logits_N4, labels_N, reduction="sum")
