"""Numbers gone bad, spikes, and which rows they came from."""

import json

import pytest
import torch
from torch import nn

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.training import run_checkpoints
from vibevoice_finetune.training.bad_steps import BadSteps, RowLosses


def micro_batch(rows, **losses):
    return RowLosses(rows, {name: torch.tensor(value) for name, value in losses.items()})


def parameters(gradient=1.0):
    weight = nn.Parameter(torch.zeros(2))
    weight.grad = torch.full((2,), gradient)
    return {"head.weight": weight}


def test_a_bad_step_names_part_and_rows_and_drops_the_gradient(tmp_path):
    watch = BadSteps(tmp_path, max_bad_steps=3)
    watch.micro_batches = [
        micro_batch(["a:1", "a:2"], diffusion=1.0, text=2.0),
        micro_batch(["a:3"], diffusion=float("nan"), text=2.0),
    ]
    trained = parameters()
    line = watch.skip(7, trained)
    assert line == "step 8 is skipped: the diffusion loss of a:3 is not finite"
    assert trained["head.weight"].grad is None


def test_finite_losses_with_a_bad_gradient_name_the_parameter(tmp_path):
    watch = BadSteps(tmp_path, max_bad_steps=3)
    watch.micro_batches = [micro_batch(["a:1"], diffusion=1.0)]
    assert "the gradient of head.weight is not; rows: a:1" in watch.skip(0, parameters(float("inf")))


def test_bad_steps_in_a_row_stop_the_run_but_good_ones_between_do_not(tmp_path):
    watch = BadSteps(tmp_path, max_bad_steps=2)
    watch.micro_batches = [micro_batch(["a:1"], text=float("inf"))]
    watch.skip(0, parameters())
    watch.accept(1, 1.0)
    watch.skip(2, parameters())
    with pytest.raises(UserError, match=r"text loss of a:1 .* 2 steps in a row were not finite"):
        watch.skip(3, parameters())


def test_a_spike_is_written_with_its_rows_and_ordinary_noise_is_not(tmp_path):
    watch = BadSteps(tmp_path, max_bad_steps=3)
    watch.micro_batches = [micro_batch(["a:1"], text=1.0)]
    for step in range(100):
        watch.accept(step, 1.0 + 0.1 * (-1) ** step)
    assert not (tmp_path / "spikes.jsonl").exists()
    watch.accept(100, 5.0)
    (line,) = (tmp_path / "spikes.jsonl").read_text().splitlines()
    spike = json.loads(line)
    assert (spike["step"], spike["loss"], spike["rows"]) == (101, 5.0, ["a:1"])
    assert spike["average"] == pytest.approx(1.0, abs=0.05)


def test_state_goes_on(tmp_path):
    first, second = BadSteps(tmp_path, 3), BadSteps(tmp_path, 3)
    for step in range(10):
        first.accept(step, float(step))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    first.accept(10, 3.0)
    second.accept(10, 3.0)
    assert first.state_dict() == second.state_dict()


def test_the_way_out_is_a_checkpoint_whose_weights_gave_finite_numbers(tmp_path):
    """A checkpoint after n steps is known to be good once step n + 1, which used its weights, was."""
    watch = BadSteps(tmp_path, max_bad_steps=1)
    watch.micro_batches = [micro_batch(["a:1"], text=float("inf"))]
    for step in (1, 2, 3):
        with run_checkpoints.writing(tmp_path / f"checkpoint-{step}"):
            pass
    watch.accept(0, 1.0)
    assert watch.way_out().startswith("No run checkpoint has weights that gave finite numbers")
    watch.accept(1, 1.0)
    watch.accept(2, 1.0)
    with pytest.raises(
        UserError, match=r"finite numbers is checkpoint-2: lower --learning_rate.* --resume_from_\w+ \S+-2\."
    ):
        watch.skip(3, parameters())
