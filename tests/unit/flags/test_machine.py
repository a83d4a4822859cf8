"""What is missing on this machine is said while parsing."""

import pytest

from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags import machine, model
from vibevoice_finetune.flags.model import ModelArguments

SHORT = ["--model_name_or_path", "M", "--train_jsonl", "F", "--output_dir", "O", "--do_train"]


@pytest.fixture
def installed(monkeypatch):
    """Pretends that just these modules are installed."""
    found: set[str] = set()
    monkeypatch.setattr(machine, "is_installed", found.__contains__)
    return found


@pytest.fixture(autouse=True)
def no_keys(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "NETRC", "WANDB_BASE_URL", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    "words", [["tensorboard,trackio"], ["tensorboard", "trackio"], ["tensorboard", "trackio,tensorboard"]]
)
def test_several_loggers(words):
    assert parse([*SHORT, "--report_to", *words]).loop.report_to == ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["foo"], "--report_to foo: is not a logger; there are azure_ml, "),
        (["none", "wandb"], "--report_to none stands alone"),
        (["mlflow"], "--report_to mlflow: mlflow is not installed; run: pip install mlflow"),
        (["tensorboard"], 'pip install "vibevoice-finetune.tensorboard."'),
        (["wandb"], "wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"),
        (["comet_ml"], "set the variable COMET_API_KEY"),
    ],
)
def test_loggers_that_cannot_log(installed, names, message):
    installed |= {"wandb", "comet_ml"}
    with pytest.raises(ArgumentError, match=message):
        machine.check_loggers(names)


def test_wandb_with_a_key(installed, monkeypatch, tmp_path):
    installed.add("wandb")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key")
    assert machine.check_loggers(["wandb"]) == ["wandb"]
    (tmp_path / ".netrc").write_text("machine example.org login user password key")
    for name, value in {"WANDB_API_KEY": "key", "WANDB_MODE": "offline"}.items():
        with pytest.raises(ArgumentError, match="no key"):
            machine.check_loggers(["wandb"])
        monkeypatch.setenv(name, value)
        assert machine.check_loggers(["wandb"]) == ["wandb"]
        monkeypatch.delenv(name)


def test_without_a_word_it_is_tensorboard_if_it_is_there(monkeypatch):
    assert parse(SHORT).loop.report_to == ["tensorboard"]
    monkeypatch.setattr("vibevoice_finetune.arguments.is_installed", lambda _: False)
    assert parse(SHORT).loop.report_to == []


@pytest.mark.parametrize(
    ("there", "on_gpu", "bf16", "message"),
    [
        (set(), True, True, "flash_attn is not installed; leave the flag out"),
        ({"flash_attn"}, False, True, "runs on NVIDIA GPUs only"),
        ({"flash_attn"}, True, False, "computes in bf16 only; add --bf16 True"),
    ],
)
def test_flash_attention_that_cannot_run(installed, there, on_gpu, bf16, message):
    installed |= there
    with pytest.raises(ArgumentError, match=message):
        machine.check_attention("flash_attention_2", on_gpu=on_gpu, bf16=bf16)
    machine.check_attention("sdpa", on_gpu=on_gpu, bf16=bf16)


@pytest.mark.parametrize(
    ("device", "bf16", "there", "chosen"),
    [
        ("cpu", True, {"flash_attn"}, "varlen"),
        ("cuda", True, {"flash_attn"}, "flash_attention_2"),
        ("cuda", False, {"flash_attn"}, "sdpa"),
        ("cuda", True, set(), "varlen"),
    ],
)
def test_attention_is_chosen_for_the_machine(monkeypatch, device, bf16, there, chosen):
    monkeypatch.setattr(model, "is_installed", there.__contains__)
    assert ModelArguments(model_name_or_path="M").attention(device, bf16=bf16) == chosen
    assert ModelArguments(model_name_or_path="M", attn_implementation="eager").attention(device, bf16=bf16) == "eager"


def test_flash_attention_that_can(installed):
    installed.add("flash_attn")
    machine.check_attention("flash_attention_2", on_gpu=True, bf16=True)


@pytest.mark.parametrize("words", [["--optim", "adamw_bnb_8bit"], ["--load_in_4bit"], ["--load_in_8bit", "True"]])
def test_bitsandbytes_that_is_missing(installed, words):
    with pytest.raises(
        ArgumentError, match=r"bitsandbytes is not installed; run: pip install .vibevoice-finetune\[4bit\]"
    ):
        parse([*SHORT, *words, "--report_to", "none"])


def test_a_compiler_that_is_missing(monkeypatch):
    words = [*SHORT, "--report_to", "none", "--torch_compile", "--use_cpu", "True"]
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    with pytest.raises(ArgumentError, match=r"inductor finds no C\+\+ compiler"):
        parse(words)
    assert parse([*words, "--torch_compile_backend", "aot_eager"]).loop.torch_compile_backend == "aot_eager"
    with pytest.raises(ArgumentError, match="--torch_compile_backend foo: is not one; there are "):
        parse([*words, "--torch_compile_backend", "foo"])
    with pytest.raises(ArgumentError, match="--torch_compile_mode fast: must be one of default, "):
        parse([*words, "--torch_compile_backend", "aot_eager", "--torch_compile_mode", "fast"])
