"""The encoders' arithmetic: chosen by the device, in a scope that ends, and said in the latents' name."""

import subprocess
import sys

import pytest
import torch

from vibevoice_finetune.latents.arithmetic import Arithmetic, computing_in, fastest

READ = (
    "c, m = torch.backends.cudnn, torch.backends.cuda.matmul; print(c.conv.fp32_precision, c.rnn.fp32_precision, "
    "m.fp32_precision)"
)


def switches() -> tuple[str, ...]:
    cudnn = torch.backends.cudnn
    return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]


@pytest.mark.parametrize(("arithmetic", "wanted"), [(Arithmetic.FLOAT32, "ieee"), (Arithmetic.TF32, "tf32")])
def test_the_switches_hold_within_the_context_and_are_put_back(arithmetic: Arithmetic, wanted: str) -> None:
    before = switches()
    with computing_in(arithmetic):
        assert switches() == (wanted,) * 3
        with computing_in(Arithmetic.FLOAT32):
            assert switches() == ("ieee",) * 3
        assert switches() == (wanted,) * 3
    assert switches() == before
    assert torch.backends.cudnn.allow_tf32  # the older switches can be read again
    assert not torch.backends.cuda.matmul.allow_tf32


def test_the_switches_are_put_back_after_an_error() -> None:
    before = switches()
    with pytest.raises(torch.OutOfMemoryError), computing_in(Arithmetic.TF32):
        raise torch.OutOfMemoryError
    assert switches() == before


def test_what_pytorch_does_unasked_is_why_it_is_said() -> None:
    words = [sys.executable, "-c", f"import torch; {READ}"]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.split() == ["tf32", "tf32", "none"]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), Arithmetic.TF32),
        ((8, 0), Arithmetic.TF32),
        ((7, 5), Arithmetic.FLOAT32),  # Turing has no tf32
    ],
)
def test_tf32_where_there_is_hardware_for_it(
    capability: tuple[int, int], expected: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert fastest("cuda:0") is expected
    assert fastest("cpu") is Arithmetic.FLOAT32
