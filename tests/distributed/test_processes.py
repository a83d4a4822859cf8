"""Two real processes under torchrun, talking over gloo: the same run as one process, and one end for both."""

import json
import os
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import adapter, assert_same_run, finish, logs, python, start, train_words, write_rows
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints

EVERYTHING = ("--train_diffusion_head", "True", "--train_connectors", "True")
SCENARIOS = {
    # name: (flags, batch size of one process when there are two, flags of the one process if not twice the rows)
    "lora, ghosts, accumulation": (("--gradient_accumulation_steps", 2, "--num_train_epochs", 2), 1),
    "head and connectors": ((*EVERYTHING, "--max_steps", 3, "--max_grad_norm", 0.5, "--gradient_clipping"), 2),
    "head lora, no prompts, average": (
        (
            *("--lora_wrap_diffusion_head", "True", "--ema_decay", 0.9, "--voice_prompt_drop_rate", 0.5),
            *("--unconditional_rate", 0.3, "--ddpm_batch_mul", 2, "--num_train_epochs", 2),
        ),
        3,
    ),
    "connectors alone": (("--lora_target_modules", "none", "--train_connectors", "True", "--max_steps", 3), 2),
}
SPLIT = {
    # scenarios that two processes run once more, with whole and with split weights; flags added to both
    "head and connectors": (),
    "head lora, no prompts, average": ("--eval_strategy", "steps", "--eval_steps", 1, "--gradient_checkpointing"),
    "lora, ghosts, accumulation": ("--bf16", "True"),
}
TOKENS = ("--max_tokens_per_batch", 200, "--num_train_epochs", 2, "--lora_dropout", 0.1)
SAVING = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All scenarios in one process and in two; the folder of each run is `PROCESSES/SCENARIO`."""
    base = tmp_path_factory.mktemp("runs")
    jsonl = write_rows(base / "rows", num_rows=7)
    # With its usual epsilon, Adam turns a gradient of rounding errors into a step of full length.
    common = ("--lora_dropout", 0, "--adam_epsilon", 1e-3, "--do_eval", "--validation_jsonl", jsonl)
    lines = {1: [], 2: []}
    for processes, batch in [(1, 2), (2, 1)]:
        for name, (flags, rows) in SCENARIOS.items():
            sizes = ("--per_device_train_batch_size", rows * batch, "--per_device_eval_batch_size", batch)
            lines[processes].append(train_words(jsonl, base / str(processes) / name, *common, *sizes, *flags))
        accumulated = ("--gradient_accumulation_steps", batch)
        lines[processes].append(train_words(jsonl, base / str(processes) / "tokens", *common, *TOKENS, *accumulated))
        saving = (*SAVING, "--per_device_train_batch_size", batch, *common)
        lines[processes].append(train_words(jsonl, base / str(processes) / "saving", *saving))
        lines[processes].append(
            train_words(jsonl, base / str(processes) / "dropout", *saving, "--lora_dropout", 0.5, "--ema_decay", 0.9)
        )
    for processes, batch in [(2, 1), (1, 2)]:
        flags = (*SAVING, "--per_device_train_batch_size", batch, *common, "--resume_from_checkpoint")
        for began in (1, 2):
            point = base / str(began) / "saving" / "checkpoint-2"
            lines[processes].append(train_words(jsonl, base / f"from {began} to {processes}", *flags, point))
    point = base / "2" / "dropout" / "checkpoint-2"
    flags = (*SAVING, "--per_device_train_batch_size", 1, *common, "--lora_dropout", 0.5, "--ema_decay", 0.9)
    lines[2].append(train_words(jsonl, base / "dropout again", *flags, "--resume_from_checkpoint", point))
    for name, extra in SPLIT.items():
        flags, rows = SCENARIOS[name]
        for folder, fsdp in (("2 whole", ()), ("2 split", ("--fsdp",))):
            sizes = ("--per_device_train_batch_size", rows, "--per_device_eval_batch_size", 1)
            lines[2].append(train_words(jsonl, base / folder / name, *common, *sizes, *flags, *extra, *fsdp))
    for began, name in ((1, "from 1 to split"), (2, "from 2 to split")):
        point = base / str(began) / "saving" / "checkpoint-2"
        flags = (*SAVING, "--per_device_train_batch_size", 1, *common, "--fsdp", "--resume_from_checkpoint")
        lines[2].append(train_words(jsonl, base / name, *flags, point))
    point = base / "from 2 to split" / "checkpoint-4"
    longer = ("--max_steps", 6, "--allow_changed_run", "True", "--resume_from_checkpoint", point)
    for name, flags in (("split again", ("--fsdp",)), ("whole again", ())):
        words = (*SAVING, "--per_device_train_batch_size", 1, *common, *flags, *longer)
        lines[2].append(train_words(jsonl, base / name, *words))
    # The one process goes first but for what goes on from the two.
    later = [words for words in lines[1] if str(base / "2") in " ".join(words)]
    orders = [(1, [words for words in lines[1] if words not in later]), (2, lines[2]), (1, later)]
    for number, (processes, chosen) in enumerate(orders):
        path = base / f"lines{number}.json"
        path.write_text(json.dumps(chosen), encoding="utf-8")
        done = finish(python("tests.distributed.several", path, processes=None if processes == 1 else processes))
        assert done.returncode == 0, done.stderr
    return base


@pytest.mark.parametrize("name", [*SCENARIOS, "tokens"])
def test_two_processes_train_like_one(runs, name):
    found = logs(runs / "2" / name)
    assert sum("loss" in log for log in found) >= 3
    assert found[-1]["eval_loss"] > 0
    assert_same_run(runs / "1" / name, runs / "2" / name)


def test_only_the_first_process_writes(runs):
    assert json.loads((runs / "lines1.rank1").read_text()) == []


@pytest.mark.parametrize(("began", "ended"), [(1, 2), (2, 1)])
def test_resuming_with_another_number_of_processes(runs, began, ended):
    whole = [log for log in logs(runs / str(began) / "saving") if log["step"] > 2]
    resumed = [log for log in logs(runs / f"from {began} to {ended}") if log["step"] > 2]
    losses = [[log["loss"] for log in found if "loss" in log] for found in (whole, resumed)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    first, second = adapter(runs / str(began) / "saving"), adapter(runs / f"from {began} to {ended}")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


def test_two_processes_resume_bit_for_bit_with_dropout(runs):
    """Dropout draws from each process's own generator, so the checkpoint must hold those of all."""
    whole = {log["step"]: log for log in logs(runs / "2" / "dropout") if "loss" in log}
    resumed = {log["step"]: log for log in logs(runs / "dropout again") if "loss" in log}
    assert set(resumed) == {3, 4}
    assert all(resumed[step] == whole[step] for step in resumed)
    first, second = adapter(runs / "2" / "dropout"), adapter(runs / "dropout again")
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("name", SPLIT)
def test_split_weights_train_like_whole_ones(runs, name):
    found = logs(runs / "2 split" / name)
    assert sum("loss" in log for log in found) >= 3
    assert_same_run(runs / "2 whole" / name, runs / "2 split" / name)


@pytest.mark.parametrize("began", [1, 2])
def test_split_weights_go_on_from_whole_ones(runs, began):
    first, second = adapter(runs / str(began) / "saving"), adapter(runs / f"from {began} to split")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-5)


def test_what_split_weights_leave_behind_is_whole(runs):
    """The same files bit for bit as without splitting, and either kind goes on from them alike."""
    for file in ("trainable.safetensors", "lora/adapter_model.safetensors"):
        kept = [load_file(runs / name / "checkpoint-4" / file) for name in ("2/saving", "from 2 to split")]
        assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    states = [
        torch.load(runs / name / "checkpoint-4" / "optimizer.pt", weights_only=True)
        for name in ("2/saving", "from 2 to split")
    ]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    first, second = adapter(runs / "split again"), adapter(runs / "whole again")
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = adapter(runs / "from 2 to split")
    assert any(not torch.equal(value, moved[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_fault_of_one_process_ends_all_with_its_message(tmp_path):
    jsonl = write_rows(tmp_path / "rows")
    words = train_words(jsonl, tmp_path / "out", "--max_steps", 1000, "--per_device_train_batch_size", 1)
    began = time.monotonic()
    done = finish(python("tests.distributed.failing", "step", *words, processes=2))
    assert done.returncode != 0
    assert "RuntimeError: a fault of the second process" in done.stderr
    assert not (tmp_path / "out" / "lora").exists()
    assert time.monotonic() - began < 120, "it hung"


@pytest.mark.slow
def test_a_full_disk_of_the_first_process_ends_all(tmp_path):
    jsonl = write_rows(tmp_path / "rows")
    saving = ("--save_strategy", "steps", "--save_steps", 1)
    words = train_words(jsonl, tmp_path / "out", "--max_steps", 1000, *saving)
    done = finish(python("tests.distributed.failing", "save", *words, processes=2))
    assert done.returncode != 0
    assert (
        "checkpoint-2: cannot be written (No space left on device); earlier run checkpoints are intact" in done.stderr
    )
    assert [folder.name for folder in complete_checkpoints(tmp_path / "out")] == ["checkpoint-1"]


def test_a_bad_row_ends_all_and_is_named(tmp_path):
    jsonl = write_rows(tmp_path / "rows")
    (tmp_path / "rows" / "6.wav").write_bytes(b"RIFF, but no sound")
    done = finish(python("vibevoice_finetune", *train_words(jsonl, tmp_path / "out", "--max_steps", 3), processes=2))
    assert done.returncode != 0
    assert "train.jsonl:7" in done.stderr
    assert done.stderr.count("Traceback") == 1, "torchrun's own, and no other"
    assert not (tmp_path / "out" / "lora").exists()


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--dataloader_num_workers", 1), ("--fsdp", "--ema_decay", 0.9)])
def test_sigterm_to_torchrun_saves_and_the_run_goes_on(tmp_path, flags):
    jsonl = write_rows(tmp_path / "rows")
    constant = ("--lr_scheduler_type", "constant", "--per_device_train_batch_size", 2)
    words = train_words(jsonl, tmp_path / "out", "--max_steps", 100_000, *constant, *flags)
    errors = stopped(python("vibevoice_finetune", *words, processes=2), tmp_path / "out", os.kill)
    assert "stopped by" in errors
    (saved,) = complete_checkpoints(tmp_path / "out")
    step = json.loads((saved / "trainer_state.json").read_text())["global_step"]
    assert saved.name == f"checkpoint-{step}"
    assert step >= 3
    again = ("--max_steps", step + 2, "--allow_changed_run", "True", "--resume_from_checkpoint", "True")
    done = finish(python("vibevoice_finetune", *words, *again, processes=2))
    assert done.returncode == 0, done.stderr
    assert [log["step"] for log in logs(tmp_path / "out") if "loss" in log] == list(range(1, step + 3))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_every_process_of_a_group_saves_too(tmp_path, number):
    """As a service manager sends it: data-loader workers get it as well."""
    jsonl = write_rows(tmp_path / "rows")
    workers = ("--dataloader_num_workers", 2, "--per_device_train_batch_size", 1, "--dataloader_persistent_workers")
    words = train_words(jsonl, tmp_path / "out", "--max_steps", 100_000, *workers)
    errors = stopped(python("vibevoice_finetune", *words), tmp_path / "out", os.killpg, number)
    assert f"stopped by {number.name}" in errors
    assert "Traceback" not in errors
    assert len(complete_checkpoints(tmp_path / "out")) == 1


ACCELERATE_CONFIG = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: SHARDED_STATE_DICT
num_processes: 2
num_machines: 1
machine_rank: 0
mixed_precision: 'no'
rdzv_backend: static
use_cpu: true
"""


@pytest.mark.slow
def test_accelerate_launch_with_its_fsdp_configuration_splits_weights(tmp_path):
    jsonl = write_rows(tmp_path / "rows")
    config = tmp_path / "fsdp.yaml"
    config.write_text(ACCELERATE_CONFIG)
    saving = ("--max_steps", 2, "--save_strategy", "steps", "--save_steps", 2)
    words = train_words(jsonl, tmp_path / "out", *saving)
    launch = python("accelerate.commands.launch", "--config_file", config, "-m", "vibevoice_finetune", *words)
    done = finish(launch)
    assert done.returncode == 0, done.stderr
    assert "split over 2 processes" in " ".join(done.stderr.split())
    (saved,) = complete_checkpoints(tmp_path / "out")
    assert not list(saved.rglob("*pytorch_model_fsdp*")), "accelerate's own kind of checkpoint"


def stopped(command, output_dir, send, number=signal.SIGTERM):
    """Start a run, send a signal after some steps, and return what it wrote to stderr; it must not end with 0."""
    run = start(command)
    metrics = output_dir / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.05)
    send(run.pid, number)
    _, errors = run.communicate(timeout=120)
    assert run.returncode != 0
    return errors


@pytest.mark.slow
def test_split_weights_give_the_gradients_of_whole_ones(tmp_path):
    """Each process holds half of every weight, and gradients are those of one process to rounding."""
    done = finish(python("tests.distributed.sharded", tmp_path / "found.json", processes=2))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["same names"]
    assert found["tensors"] > 20
    assert found["worst"] < 1e-5
    assert found["share"] < 0.55
