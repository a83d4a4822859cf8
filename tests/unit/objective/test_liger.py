"""`--use_liger_kernel`: which kernels are put in and where it is refused; the kernels themselves need a GPU."""

import shlex
import sys
from types import ModuleType

import pytest
import torch

from tests.unit.small_model import small_model
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags import machine
from vibevoice_finetune.objective.liger import use_liger

LINE = "--model_name_or_path M --train_jsonl F --output_dir O --do_train --report_to none --use_liger_kernel True"


def test_norms_mlp_and_rotary_become_ligers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    package, kernels = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    kernels.apply_liger_kernel_to_qwen2 = lambda **words: asked.update(words)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", kernels)
    language_model = parts.language_model(small_model())
    use_liger(language_model)
    assert asked.pop("model") is language_model
    losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert asked == {"rope": True, "rms_norm": True, "swiglu": True} | losses


def test_without_a_gpu_or_the_package_it_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(ArgumentError, match=r"^--use_liger_kernel: runs on NVIDIA GPUs only; leave"):
            parse(shlex.split(LINE))
    monkeypatch.setattr(machine, "is_installed", lambda module: module != "liger_kernel")
    with pytest.raises(ArgumentError, match=r'pip install "vibevoice-finetune\[liger\]"$'):
        machine.check_liger(on_gpu=True)
