"""Ways to start several processes: what is taken, and what is refused because it would not do what it promises."""

import os

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.errors import ArgumentError

WORDS = ["--train_jsonl", "x.jsonl", "--model_name_or_path", "m", "--output_dir", "out", "--use_cpu", "True"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fsdp", "offload"), "--fsdp offload: only full_shard"),
        (("--fsdp", "--fsdp_config", '{"version": 2}'), "--fsdp_config .*: there is nothing to set"),
        (("--fsdp", "--optim", "adamw_bnb_8bit"), "--optim adamw_bnb_8bit: cannot work on split tensors"),
    ],
)
def test_what_cannot_be_split_is_refused(flags, message):
    with pytest.raises(ArgumentError, match=message):
        parse([*WORDS, *flags])


def test_deepspeed_is_refused_in_one_line(monkeypatch):
    message = "DeepSpeed is not supported; to split a model over several GPUs, use --fsdp full_shard.$"
    with pytest.raises(ArgumentError, match=message):
        parse([*WORDS, "--deepspeed", "zero2.json"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ArgumentError, match=message):
        parse(WORDS)


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


def test_one_process_has_nobody_to_split_weights_with(capsys):
    assert main(["train", *WORDS, "--do_train", "--fsdp", "full_shard"]) == 2
    assert capsys.readouterr().err == (
        "error: --fsdp splits weights over processes, but there is one; start several with torchrun.\n"
    )
