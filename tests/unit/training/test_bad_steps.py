"""Numbers gone bad, spikes, and who is to blame."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.training.bad_steps import Guard, MicroBatch, StopRequest


def micro_batch(rows, **losses):
    return MicroBatch(rows, {name: torch.tensor(value) for name, value in losses.items()})


def parameters(gradient=1.0):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), gradient)
    return {"head.weight": weight}


def test_a_bad_step_names_part_and_rows_and_drops_the_gradient(tmp_path):
    guard = Guard(tmp_path, max_bad_steps=3)
    guard.micro_batches = [
        micro_batch(["a:1", "a:2"], diffusion=1.0, text=2.0),
        micro_batch(["a:3"], diffusion=float("nan"), text=2.0),
    ]
    trained = parameters()
    line = guard.skip(7, trained)
    assert line == "step 8 is skipped: the diffusion loss of a:3 is not finite"
    assert trained["head.weight"].grad is None


def test_finite_losses_with_a_bad_gradient_name_the_parameter(tmp_path):
    guard = Guard(tmp_path, max_bad_steps=3)
    guard.micro_batches = [micro_batch(["a:1"], diffusion=1.0)]
    assert "the gradient of head.weight is not; rows: a:1" in guard.skip(0, parameters(float("inf")))


def test_bad_steps_in_a_row_stop_the_run_but_good_ones_between_do_not(tmp_path):
    guard = Guard(tmp_path, max_bad_steps=2)
    guard.micro_batches = [micro_batch(["a:1"], text=float("inf"))]
    guard.skip(0, parameters())
    guard.accept(1, 1.0)
    guard.skip(2, parameters())
    with pytest.raises(UserError, match=r"text loss of a:1 .* 2 steps in a row were not finite"):
        guard.skip(3, parameters())


def test_a_spike_is_written_with_its_rows_and_ordinary_noise_is_not(tmp_path):
    guard = Guard(tmp_path, max_bad_steps=3)
    guard.micro_batches = [micro_batch(["a:1"], text=1.0)]
    for step in range(100):
        guard.accept(step, 1.0 + 0.1 * (-1) ** step)
    assert not (tmp_path / "spikes.jsonl").exists()
    guard.accept(100, 5.0)
    (line,) = (tmp_path / "spikes.jsonl").read_text().splitlines()
    spike = json.loads(line)
    assert (spike["step"], spike["loss"], spike["rows"]) == (101, 5.0, ["a:1"])
    assert spike["average"] == pytest.approx(1.0, abs=0.05)


def test_state_goes_on(tmp_path):
    first, second = Guard(tmp_path, 3), Guard(tmp_path, 3)
    for step in range(10):
        first.accept(step, float(step))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    first.accept(10, 3.0)
    second.accept(10, 3.0)
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    stop = StopRequest()
    before = signal.getsignal(number)
    with stop.listening():
        os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before
