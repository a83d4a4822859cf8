"""Ways to start several processes that do not do what they promise are refused."""

import pytest

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.parsing import parse

WORDS = ["--train_jsonl", "x.jsonl", "--model_name_or_path", "m", "--output_dir", "out", "--use_cpu", "True"]


@pytest.mark.parametrize("flags", [["--fsdp", "full_shard"], ["--deepspeed", "zero2.json"]])
def test_flags_that_split_weights_are_refused(flags):
    with pytest.raises(ArgumentError, match=f"{flags[0]} .*: weights are not split over processes"):
        parse([*WORDS, *flags])


@pytest.mark.parametrize("name", ["fsdp", "deepspeed"])
def test_so_are_launchers_that_ask_for_it(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ArgumentError, match=f"--{name} .*accelerate's.*: weights are not split"):
        parse(WORDS)


def test_without_them_nothing_is_refused():
    assert parse(WORDS).loop.world_size == 1
