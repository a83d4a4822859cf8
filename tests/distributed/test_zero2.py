"""DeepSpeed's ZeRO-2 in two real processes: the runs of plain ones, and checkpoints that either goes on from.

Needs the extra `deepspeed`, which `make long` installs. On a CPU, DeepSpeed first compiles its exchange, for a minute.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import (
    adapter,
    assert_same_run,
    assert_same_tensors,
    finish,
    logs,
    python,
    train_words,
    write_rows,
)

pytestmark = pytest.mark.slow

EVERYTHING = ("--train_diffusion_head", "True", "--train_connectors", "True")
SCENARIOS = {
    "lora, ghosts, accumulation": ("--gradient_accumulation_steps", 2, "--num_train_epochs", 2),
    "everything, clipped, averaged": (
        *EVERYTHING,
        *("--max_steps", 4, "--max_grad_norm", 0.5, "--gradient_clipping", "--ema_decay", 0.9),
        *("--eval_strategy", "steps", "--eval_steps", 1, "--gradient_checkpointing"),
    ),
    "tokens": ("--max_tokens_per_batch", 200, "--num_train_epochs", 2, "--lora_wrap_diffusion_head", "True"),
}
PRECISIONS = {
    "bf16": ("--bf16", "True", *EVERYTHING, "--max_steps", 3, "--do_eval"),
    "8 bit": ("--bf16", "True", "--load_in_8bit", "True", "--max_steps", 3),
    "4 bit": ("--bf16", "True", "--load_in_4bit", "True", "--max_steps", 3),
}
SAVING = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2)
DROPOUT = ("--lora_dropout", 0.5, "--ema_decay", 0.9, *EVERYTHING)
TEMPLATE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto", "loss_scale": 0},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 5000,
        "offload_optimizer": {"device": "none"},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of each run is `KIND/SCENARIO`; kinds are one, two (processes, plain) and zero (two, with ZeRO-2)."""
    base = tmp_path_factory.mktemp("runs")
    jsonl = write_rows(base / "rows", num_rows=7)
    (base / "zero2.json").write_text(json.dumps(TEMPLATE))
    # With its usual epsilon, Adam turns a gradient of rounding errors into a step of full length.
    common = ("--lora_dropout", 0, "--adam_epsilon", 1e-3, "--validation_jsonl", jsonl)

    def words(kind, name, *flags):
        rows = ("--per_device_train_batch_size", 2 if kind == "one" else 1, "--per_device_eval_batch_size", 2)
        split = ("--deepspeed", base / "zero2.json") if kind == "zero" else ()
        return train_words(jsonl, base / kind / name, *common, *rows, *split, *flags)

    def going_on(kind, name, point, *flags):
        return words(kind, name, *SAVING, "--resume_from_checkpoint", base / point / "checkpoint-2", *flags)

    def several(number, processes, lines):
        path = base / f"lines{number}.json"
        path.write_text(json.dumps(lines))
        done = finish(python("tests.distributed.several", path, processes=processes))
        assert done.returncode == 0, done.stderr

    lines = [words("one", "saving", *SAVING)]
    for name, flags in SCENARIOS.items():
        accumulated = ("--gradient_accumulation_steps", 2) if name == "tokens" else ()
        lines.append(words("one", name, *flags, "--do_eval", *accumulated))
    several(1, None, lines)
    lines = [words("zero", name, *flags, "--do_eval") for name, flags in SCENARIOS.items()]
    for name, flags in PRECISIONS.items():
        lines += [words(kind, name, *flags) for kind in ("two", "zero")]
    lines += [words(kind, "saving", *SAVING) for kind in ("two", "zero")]
    lines.append(words("zero", "dropout", *SAVING, *DROPOUT))
    lines.append(going_on("zero", "dropout again", "zero/dropout", *DROPOUT))
    lines += [going_on("zero", f"from {kind}", f"{kind}/saving") for kind in ("one", "two")]
    lines.append(going_on("two", "from zero", "zero/saving"))
    several(2, 2, lines)
    several(3, None, [going_on("one", "from zero", "zero/saving")])
    return base


@pytest.mark.parametrize("name", SCENARIOS)
def test_it_trains_like_one_process(runs, name):
    found = logs(runs / "zero" / name)
    assert sum("loss" in log for log in found) >= 3
    assert any("eval_loss" in log for log in found)
    assert_same_run(runs / "one" / name, runs / "zero" / name)


@pytest.mark.parametrize("name", PRECISIONS)
def test_in_bf16_it_trains_like_plain_processes(runs, name):
    assert_same_run(runs / "two" / name, runs / "zero" / name)


def test_the_template_changes_nothing_but_what_is_split(runs):
    """Files as without, with tensors that are whole and float32."""
    folders = [runs / kind / "saving" / "checkpoint-4" for kind in ("two", "zero")]
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in folders]
    assert names[0] == names[1]
    assert_same_tensors(*(load_file(folder / "trainable.safetensors") for folder in folders))
    states = [torch.load(folder / "optimizer.pt", weights_only=True) for folder in folders]
    torch.testing.assert_close(*states, rtol=0, atol=1e-5)
    rates = [torch.load(folder / "scheduler.pt", weights_only=True) for folder in folders]
    assert rates[0] == rates[1]


def test_only_the_first_process_writes(runs):
    assert json.loads((runs / "lines2.rank1").read_text()) == []


def test_it_goes_on_bit_for_bit(runs):
    whole = {log["step"]: log for log in logs(runs / "zero" / "dropout") if "loss" in log}
    resumed = {log["step"]: log for log in logs(runs / "zero" / "dropout again") if "loss" in log}
    assert set(resumed) == {3, 4}
    assert all(resumed[step] == whole[step] for step in resumed)
    for file in ("trainable.safetensors", "ema.safetensors"):
        kept = [load_file(runs / "zero" / name / "checkpoint-4" / file) for name in ("dropout", "dropout again")]
        assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    states = [
        torch.load(runs / "zero" / name / "checkpoint-4" / "optimizer.pt", weights_only=True)
        for name in ("dropout", "dropout again")
    ]
    assert [len(group["params"]) > 0 for group in states[0]["param_groups"]] == [True, True]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("ended", "began"), [("zero", "one"), ("zero", "two"), ("one", "zero"), ("two", "zero")])
def test_either_goes_on_from_the_other(runs, ended, began):
    whole, resumed = runs / began / "saving", runs / ended / f"from {began}"
    losses = [[log["loss"] for log in logs(run) if "loss" in log and log["step"] > 2] for run in (whole, resumed)]
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_tensors(adapter(whole), adapter(resumed))


def test_a_bad_step_is_skipped_by_all(tmp_path):
    jsonl = write_rows(tmp_path / "rows")
    (tmp_path / "zero2.json").write_text(json.dumps(TEMPLATE))
    common = ("--max_steps", 4, "--lora_dropout", 0, "--adam_epsilon", 1e-3, "--per_device_train_batch_size", 2)
    for name, flags in (("plain", ()), ("zero", ("--deepspeed", tmp_path / "zero2.json"))):
        words = train_words(jsonl, tmp_path / name, *common, *flags)
        done = finish(python("tests.distributed.failing", "gradient", *words, processes=2))
        assert done.returncode == 0, done.stderr
        assert "step 2 is skipped: the losses are finite but the gradient of " in done.stderr
        assert "layers.0.self_attn.q_proj.lora_A.default.weight" in done.stderr
    assert logs(tmp_path / "zero")[1]["skipped_steps"] == 1
    assert_same_run(tmp_path / "plain", tmp_path / "zero")


def test_accelerate_launches_it(tmp_path):
    """With two steps accumulated, which its configuration must say too, and an environment that is not activated."""
    jsonl = write_rows(tmp_path / "rows")
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\n"
        "distributed_type: DEEPSPEED\n"
        "deepspeed_config: {zero_stage: 2, gradient_accumulation_steps: 2, zero3_init_flag: false}\n"
        "mixed_precision: 'no'\nnum_machines: 1\nnum_processes: 2\nuse_cpu: false\n"
    )
    common = ("--max_steps", 3, "--lora_dropout", 0, "--adam_epsilon", 1e-3, "--gradient_accumulation_steps", 2)
    words = train_words(jsonl, tmp_path / "accelerate", *common, "--per_device_train_batch_size", 1)
    launcher = ("accelerate.commands.accelerate_cli", "launch", "--config_file", config, "-m", "vibevoice_finetune")
    done = finish(python(*launcher, *words))
    assert done.returncode == 0, done.stderr
    assert "DeepSpeed ZeRO-2" in done.stderr
    words = train_words(jsonl, tmp_path / "plain", *common, "--per_device_train_batch_size", 1)
    assert finish(python("vibevoice_finetune", *words, processes=2)).returncode == 0
    assert_same_run(tmp_path / "plain", tmp_path / "accelerate")
