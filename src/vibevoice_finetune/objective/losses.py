"""The three losses, as pure functions. Each returns a float32 sum; the caller divides it once, by the count over all
micro-batches of the optimizer step and all processes.

Shapes: N positions with a label, D hidden size, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS_CHUNK = 256
"""Positions whose logits exist at a time: 256 x 152k float32 is 156 MB."""


def squared_error_sum(predicted: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences in float32; its count is the number of elements."""
    return (predicted.float() - target.float()).square().sum()


def squared_error_by_band(
    predicted_FKC: Tensor, target_FKC: Tensor, timestep_FK: Tensor, num_timesteps: int, num_bands: int
) -> Tensor:
    """Squared errors of each band of timesteps: their sums and how many there are, (bands, 2) float64.

    Args:
        predicted_FKC: (F, K, C).
        target_FKC: (F, K, C).
        timestep_FK: (F, K) timesteps from 0 to `num_timesteps` - 1.
        num_timesteps: length of the noise tables.
        num_bands: bands of equal width.

    >>> zero, one = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    >>> squared_error_by_band(zero, one, torch.tensor([[0, 999]]), 1000, 4).tolist()
    [[3.0, 3.0], [0.0, 0.0], [0.0, 0.0], [3.0, 3.0]]
    """
    errors = (predicted_FKC.double() - target_FKC.double()).square().sum(-1).flatten()
    bands = (timestep_FK * num_bands // num_timesteps).flatten()
    values = torch.stack([errors, torch.full_like(errors, predicted_FKC.shape[-1])], dim=1)
    return torch.zeros(num_bands, 2, dtype=torch.float64, device=errors.device).index_add(0, bands, values)


def text_cross_entropy_sum(hidden_ND: Tensor, output_matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of next-token cross-entropies, without ever holding more than a chunk of logits.

    The gradient is computed together with the loss, while a chunk's logits are there, so they are never computed again:
    two matrix products per chunk, three if the output matrix is trained too.

    Args:
        hidden_ND: (N, D) last hidden states at labelled positions.
        output_matrix_VD: (V, D) the language model's output matrix.
        labels_N: (N,) vocabulary ids.

    Returns:
        0-d float32.
    """
    total: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, output_matrix_VD, labels_N)  # type: ignore[no-untyped-call]
    return total


class _ChunkedCrossEntropy(torch.autograd.Function):
    """`text_cross_entropy_sum` with its gradient; under autocast the products run in the autocast dtype."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, output_matrix_VD: Tensor, labels_N: Tensor) -> Tensor:
        for_hidden, for_matrix, _ = ctx.needs_input_grad
        hidden_grad_ND = torch.zeros_like(hidden_ND) if for_hidden else None
        matrix_grad_VD = torch.zeros_like(output_matrix_VD) if for_matrix else None
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        for start in range(0, len(labels_N), LOGITS_CHUNK):
            chunk = slice(start, start + LOGITS_CHUNK)
            total += _chunk_cross_entropy(
                hidden_ND[chunk],
                output_matrix_VD,
                labels_N[chunk].unsqueeze(-1),
                None if hidden_grad_ND is None else hidden_grad_ND[chunk],
                matrix_grad_VD,
            )
        ctx.grads = (hidden_grad_ND, matrix_grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (outer,) = grads
        hidden_grad_ND, matrix_grad_VD = ctx.grads
        ctx.grads = None  # the gradient of the matrix takes a gigabyte at 1.5B; it is handed on, not kept or copied
        return (
            None if hidden_grad_ND is None else hidden_grad_ND * outer.to(hidden_grad_ND.dtype),
            None if matrix_grad_VD is None else matrix_grad_VD.mul_(outer.to(matrix_grad_VD.dtype)),
            None,
        )


def _chunk_cross_entropy(
    hidden_ND: Tensor,
    output_matrix_VD: Tensor,
    labels_N1: Tensor,
    hidden_grad_ND: Tensor | None,
    matrix_grad_VD: Tensor | None,
) -> Tensor:
    """The sum over one chunk; gradients are written to, and added to, what is given for them.

    A function of its own, so that a chunk's logits are gone before the next ones are computed.
    """
    logits = F.linear(hidden_ND, output_matrix_VD)
    dtype = logits.dtype
    log_probabilities = F.log_softmax(logits, dim=-1, dtype=torch.float32)
    del logits
    total = -log_probabilities.gather(-1, labels_N1).sum()
    if hidden_grad_ND is None and matrix_grad_VD is None:
        return total
    # d(-log p[label]) / d logits = p - 1 at the label, p elsewhere
    grad = log_probabilities.exp_()
    grad.scatter_add_(-1, labels_N1, grad.new_full((1, 1), -1.0).expand_as(labels_N1))
    grad = grad.to(dtype)
    if hidden_grad_ND is not None:
        hidden_grad_ND.copy_(grad @ output_matrix_VD.to(dtype))
    if matrix_grad_VD is not None:
        if dtype is matrix_grad_VD.dtype:
            matrix_grad_VD.addmm_(grad.T, hidden_ND)
        else:
            matrix_grad_VD += grad.T @ hidden_ND.to(dtype)
    return total


def control_logits(hidden_ND: Tensor, output_matrix_VD: Tensor, control_ids_4: Tensor) -> Tensor:
    """(N, 4) float32 scores of the four tokens that generation chooses among, from their rows of the matrix alone."""
    return F.linear(hidden_ND, output_matrix_VD.index_select(0, control_ids_4)).float()


def control_cross_entropy_sum(logits_N4: Tensor, labels_N: Tensor) -> Tensor:
    """Sum of cross-entropies among the four control tokens, 0-d float32."""
    return F.cross_entropy(logits_N4, labels_N, reduction="sum")
