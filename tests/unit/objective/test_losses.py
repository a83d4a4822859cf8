"""Losses against torch's own on a few numbers."""

import pytest
import torch
import torch.nn.functional as F

from vibevoice_finetune.objective import losses
from vibevoice_finetune.objective.losses import (
    control_cross_entropy_sum,
    control_logits,
    squared_error_sum,
    text_cross_entropy_sum,
)


def test_squared_error_by_hand():
    # (1-0)^2 + (2-4)^2 = 5
    assert squared_error_sum(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])).item() == 5.0


def test_squared_error_is_summed_in_float32():
    # 10,000 times 1 in bf16 would stop at 256
    ones = torch.ones(10_000, dtype=torch.bfloat16)
    assert squared_error_sum(ones, torch.zeros_like(ones)).item() == 10_000


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunked_cross_entropy_equals_torch(monkeypatch, chunk):
    monkeypatch.setattr(losses, "LOGITS_CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, requires_grad=True)
    matrix = torch.randn(11, 5, requires_grad=True)
    labels = torch.randint(11, (7,))
    expected = F.cross_entropy(hidden @ matrix.T, labels, reduction="sum")
    expected_grads = torch.autograd.grad(expected, [hidden, matrix])
    found = text_cross_entropy_sum(hidden, matrix, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, [hidden, matrix]), expected_grads)


def test_under_autocast_loss_and_gradient_are_torchs(monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_CHUNK", 2)
    torch.manual_seed(0)
    hidden = torch.randn(5, 8, dtype=torch.bfloat16, requires_grad=True)
    matrix = torch.randn(11, 8, dtype=torch.bfloat16)
    labels = torch.randint(11, (5,))
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(F.linear(hidden, matrix).float(), labels, reduction="sum")
        found = text_cross_entropy_sum(hidden, matrix, labels)
    torch.testing.assert_close(found, expected)
    (expected_grad,) = torch.autograd.grad(3 * expected, hidden)
    (found_grad,) = torch.autograd.grad(3 * found, hidden)
    torch.testing.assert_close(found_grad, expected_grad, rtol=0.02, atol=0.02)


def test_without_gradient_nothing_is_kept():
    found = text_cross_entropy_sum(torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 5, 2]))
    assert found.grad_fn is None


def test_no_label_gives_zero_and_still_reaches_the_hidden_states():
    hidden = torch.randn(0, 5, requires_grad=True)
    found = text_cross_entropy_sum(hidden, torch.randn(11, 5), torch.zeros(0, dtype=torch.long))
    assert found.item() == 0
    found.backward()
    assert hidden.grad is not None


def test_control_loss_is_cross_entropy_among_four_rows():
    torch.manual_seed(0)
    hidden, matrix = torch.randn(3, 5), torch.randn(20, 5)
    ids = torch.tensor([7, 3, 19, 0])
    labels = torch.tensor([2, 2, 1])
    logits = control_logits(hidden, matrix, ids)
    all_logits = hidden @ matrix.T
    for position in range(3):
        for place, token in enumerate(ids.tolist()):
            assert logits[position, place].item() == pytest.approx(all_logits[position, token].item(), rel=1e-5)
    expected = -torch.log_softmax(all_logits[:, ids], -1)[range(3), labels].sum()
    torch.testing.assert_close(control_cross_entropy_sum(logits, labels), expected)
