"""The moving average."""

import pytest
import torch
from torch import nn

from vibevoice_finetune.training.ema import Ema


def parameter(value):
    return nn.Parameter(torch.tensor([value]))


def test_warm_up_by_hand():
    weight = parameter(0.0)
    ema = Ema({"w": weight}, decay=0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    ema.update()  # decay min(0.9, 1/10): 0.1 * 0 + 0.9 * 1
    assert ema.average["w"].item() == pytest.approx(0.9)
    ema.update()  # decay min(0.9, 2/11): 0.9 + 9/11 * 0.1
    assert ema.average["w"].item() == pytest.approx(0.9 + 0.1 * 9 / 11)


def test_decay_is_the_limit_of_the_warm_up():
    weight = parameter(0.0)
    ema = Ema({"w": weight}, decay=0.5)
    ema.num_updates = 1000
    with torch.no_grad():
        weight.fill_(1.0)
    ema.update()
    assert ema.average["w"].item() == pytest.approx(0.5)


def test_a_small_step_with_a_long_memory_still_moves_the_average():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.bfloat16))
    ema = Ema({"w": weight}, decay=0.999)
    ema.num_updates = 100_000
    with torch.no_grad():
        weight.fill_(1.0078125)  # the next bf16 number
    before = ema.average["w"].clone()
    ema.update()
    assert ema.average["w"].dtype == torch.float32
    assert ema.average["w"] > before


def test_applied_restores_bit_for_bit_even_after_an_error():
    weight = parameter(0.1)
    ema = Ema({"w": weight}, decay=0.9)
    with torch.no_grad():
        weight.fill_(0.3)
    kept = weight.detach().clone()

    def fail_inside():
        with ema.applied():
            assert weight.item() == pytest.approx(0.1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.equal(weight, kept)


def test_state_goes_on_exactly():
    weight = parameter(0.0)
    first, second = Ema({"w": weight}, decay=0.9), Ema({"w": parameter(5.0)}, decay=0.9)
    with torch.no_grad():
        weight.fill_(1.0)
    first.update()
    second.load_state_dict(first.state_dict())
    assert second.num_updates == 1
    assert torch.equal(first.average["w"], second.average["w"])
