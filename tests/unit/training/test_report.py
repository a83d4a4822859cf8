"""What the start-up report warns of."""

import pytest
import torch

from vibevoice_finetune.training.report import is_slow_bf16


@pytest.mark.parametrize(
    ("abilities", "device", "bf16", "slow"),
    [
        ({"avx2": True, "avx512_f": True}, "cpu", True, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "cpu", True, True),
        ({"avx2": True, "avx512_bf16": True}, "cpu", True, False),
        ({"amx_bf16": True}, "cpu", True, False),
        ({"neon": True, "bf16": True}, "cpu", True, False),
        ({"avx2": True}, "cpu", False, False),
        ({"avx2": True}, "cuda:0", True, False),
    ],
)
def test_bf16_is_slow_on_a_processor_without_instructions_for_it(
    abilities: dict[str, bool], device: str, bf16: bool, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert is_slow_bf16(torch.device(device), bf16=bf16) == slow
