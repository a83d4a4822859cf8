"""`--config`: a YAML file means what the same words on the command line mean, and cannot hurt."""

import time

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.config import words_of

SHORT = "--model_name_or_path M --train_jsonl F --output_dir O --do_train --report_to none"


def test_config_file_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model_name_or_path: M\ntrain_jsonl: F\noutput_dir: O\nlora_r: 4\nlearning_rate: 1e-3\n"
        "lora_target_modules: [q_proj, v_proj]\nbf16: true\nmax_length: null\n"
    )
    arguments = parse(["--config", str(config), "--lora_r", "16"])
    assert arguments.model.lora_r == 16
    assert arguments.model.target_modules == ("q_proj", "v_proj")
    assert arguments.loop.learning_rate == 1e-3
    assert arguments.loop.bf16
    assert arguments.data.max_length is None
    assert parse([f"--config={config}"]).model.lora_r == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_rr: 3", "did you mean"),
        ("- a\n- b", "expected `name: value` lines"),
        ("a: [", "is not valid YAML"),
        ("lora_r: [1, 2]", "--lora_r 1,2: must be a whole number"),
        ("config: other.yaml", "a file cannot name another one"),
        ("lora_r: &a {b: *a}", "more than 10,000 values once its aliases are written out"),
        ("[" * 50_000, "is not valid YAML"),
        ("lora_r: 3\x00", "is not valid YAML"),
        ("#" * 100_001, "a YAML file of at most 100,000 bytes"),
    ],
)
def test_bad_config_files(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        parse([*SHORT.split(), "--config", str(config)])
    with pytest.raises(ArgumentError, match=r"nowhere.yaml: not there"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])


def test_a_config_file_that_unfolds_to_gigabytes_is_refused_at_once(tmp_path):
    """Nine lines, each naming the one before nine times: 9^9 strings."""
    config = tmp_path / "run.yaml"
    lines = ['a0: &a0 ["ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    config.write_text("\n".join(lines))
    began = time.perf_counter()
    with pytest.raises(ArgumentError, match="more than 10,000 values"):
        parse([*SHORT.split(), "--config", str(config)])
    assert time.perf_counter() - began < 1


def test_a_config_file_that_never_ends_is_refused():
    with pytest.raises(ArgumentError, match="/dev/zero: not a file"):
        parse([*SHORT.split(), "--config", "/dev/zero"])


def test_mappings_lists_and_aliases(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "lr-scheduler-type: &kind cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 0.000001}\n"
        "gradient_checkpointing: yes\ngradient_checkpointing_kwargs:\n  use_reentrant: false\n"
        "report_to: [tensorboard, trackio]\nlayers_to_freeze: [0, 1]\ntrain_diffusion_head: true\nrun_name: *kind\n"
    )
    arguments = parse([*SHORT.split()[:-2], "--config", str(config)])
    assert arguments.loop.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert arguments.loop.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert arguments.loop.report_to == ["tensorboard", "trackio"]
    assert arguments.loop.run_name == "cosine_with_min_lr"
    assert arguments.model.frozen_head_layers == (0, 1)


def test_a_value_that_begins_with_a_dash(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("run_name: --lora_r\nlearning_rate: -1\n")
    assert words_of(config) == ["--run_name=--lora_r", "--learning_rate=-1"]
    with pytest.raises(ArgumentError, match="--learning_rate -1: must be at least 0"):
        parse([*SHORT.split(), "--config", str(config)])


def test_merge_keys_that_unfold_to_gigabytes_are_refused_at_once(tmp_path):
    """YAML's `<<` copies while it is read: nine lines of nine make 9^9 entries."""
    config = tmp_path / "run.yaml"
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 9)]
    config.write_text("\n".join(lines))
    began = time.perf_counter()
    with pytest.raises(ArgumentError, match="more than 10,000 values"):
        words_of(config)
    assert time.perf_counter() - began < 1
