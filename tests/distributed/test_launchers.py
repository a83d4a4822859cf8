"""Ways to start several processes: what is taken, and what is refused because it would not do what it promises."""

import json
import os
import sys
from types import SimpleNamespace

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.deepspeed_config import make_ready
from vibevoice_finetune.errors import ArgumentError, UserError

WORDS = ["--train_jsonl", "x.jsonl", "--model_name_or_path", "m", "--output_dir", "out", "--use_cpu", "True"]
ZERO2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fsdp", "offload"), "--fsdp offload: only full_shard"),
        (("--fsdp", "--fsdp_config", '{"version": 2}'), "--fsdp_config: there is nothing to set"),
        (("--fsdp", "--optim", "adamw_bnb_8bit"), "--optim adamw_bnb_8bit: cannot work on split tensors"),
    ],
)
def test_what_cannot_be_split_is_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        parse([*WORDS, *flags])


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ((), {}, r"--deepspeed: expected {.zero_optimization.: "),
        ((), {"zero_optimization": {}}, "stage 0 splits nothing, as torchrun without DeepSpeed"),
        ((), {"zero_optimization": {"stage": 1}}, "stage 1 leaves gradients whole; write stage 2"),
        ((), {"zero_optimization": {"stage": 3}}, "stage 3 .* use --fsdp full_shard instead"),
        ((), {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer: nothing"),
        ((), {"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "round_robin_gradients: is not off"),
        ((), {**ZERO2, "optimizer": {"type": "AdamW"}}, "optimizer: the optimizer is set with --optim"),
        ((), {**ZERO2, "scheduler": {"type": "WarmupLR"}}, "scheduler: .* is set with --lr_scheduler_type"),
        ((), {**ZERO2, "torch_autocast": {"enabled": True}}, "torch_autocast: --bf16 True computes in bf16"),
        ((), {**ZERO2, "compression_training": {"weight_quantization": {}}}, "compression_training: is not offered"),
        ((), {**ZERO2, "fp16": {"enabled": True}}, "fp16.enabled is true, but the flags say false"),
        (("--bf16",), {**ZERO2, "bf16": {"enabled": False}}, "bf16.enabled is false, but the flags say true"),
        ((), {**ZERO2, "gradient_clipping": 1.0}, 'gradient_clipping is 1.0, but the flags say 0.0; write "auto"'),
        ((), {**ZERO2, "gradient_accumulation_steps": 2}, "gradient_accumulation_steps is 2, but the flags say 1"),
        ((), {**ZERO2, "train_batch_size": 9}, "train_batch_size is 9, but the flags say 8"),
        (("--fsdp",), ZERO2, "--fsdp, which splits more, does not go together with DeepSpeed"),
        (("--torch_compile",), ZERO2, "--torch_compile does not go together with DeepSpeed"),
        (("--optim", "adafactor"), ZERO2, "--optim adafactor: cannot work on split tensors; with DeepSpeed use adamw"),
    ],
)
def test_what_deepspeed_would_do_otherwise_is_refused(tmp_path, flags, config, message):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ArgumentError, match=message):
        parse([*WORDS, "--do_train", "--deepspeed", str(path), *flags])


def test_so_is_a_configuration_that_cannot_be_read(tmp_path):
    with pytest.raises(ArgumentError, match=r"none.json: cannot be read \(No such file or directory\)"):
        parse([*WORDS, "--do_train", "--deepspeed", str(tmp_path / "none.json")])
    (tmp_path / "zero.json").write_text("{,}")
    with pytest.raises(ArgumentError, match=r"zero\.json: is not JSON"):
        parse([*WORDS, "--do_train", "--deepspeed", str(tmp_path / "zero.json")])


def test_a_launcher_that_asks_for_deepspeed_is_heard(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    with pytest.raises(ArgumentError, match="DeepSpeed's stage 3 splits the weights too"):
        parse([*WORDS, "--do_train"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ArgumentError, match="accelerate's mixed_precision bf16 without --bf16 True"):
        parse([*WORDS, "--do_train"])


def test_deepspeed_is_asked_for_by_its_extra(tmp_path, monkeypatch):
    (tmp_path / "zero.json").write_text(json.dumps(ZERO2))
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r'deepspeed is not installed; run: pip install "vibevoice-finetune\[deepspeed'):
        parse([*WORDS, "--do_train", "--deepspeed", str(tmp_path / "zero.json")])
    assert not parse([*WORDS, "--deepspeed", str(tmp_path / "zero.json")]).loop.splits_optimizer, "nothing is trained"


@pytest.mark.parametrize(("version", "message"), [("0.20.1", "deepspeed 0.20.1 was never tried"), ("0.19.8", "ninja")])
def test_what_deepspeed_needs_is_missed_early(tmp_path, monkeypatch, version, message):
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(__version__=version))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    with pytest.raises(UserError, match=message):
        make_ready(on_cpu=True)
    if version == "0.19.8":
        make_ready(on_cpu=False)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ninja").touch(mode=0o755)
        make_ready(on_cpu=True)  # that of an environment which was not activated
        assert os.environ["PATH"] == f"{tmp_path}{os.pathsep}{tmp_path / 'bin'}"


def test_a_launcher_that_asks_for_fsdp_is_heard(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert parse(WORDS).loop.splits_weights
    assert os.environ["ACCELERATE_USE_FSDP"] == "false", "accelerate would wrap the model a second time"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ArgumentError, match="fsdp_offload_params"):
        parse(WORDS)


@pytest.mark.parametrize("flags", [(), ("--fsdp", "False")])
def test_without_them_nothing_is_refused(flags):
    loop = parse([*WORDS, *flags]).loop
    assert loop.world_size == 1
    assert not loop.splits_weights


def test_one_process_has_nobody_to_split_the_optimizer_with():
    loop = parse(WORDS).loop
    loop._splits_optimizer = True
    loop.check_processes(2)
    with pytest.raises(ArgumentError, match="DeepSpeed splits the optimizer over processes, but there is one"):
        loop.check_processes(1)


def test_one_process_has_nobody_to_split_weights_with(capsys):
    assert main(["train", *WORDS, "--do_train", "--fsdp", "full_shard"]) == 2
    assert capsys.readouterr().err == (
        "error: --fsdp splits weights over processes, but there is one; start several with torchrun.\n"
    )
