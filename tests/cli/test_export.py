"""`inspect`, `merge` and `convert` as they are typed."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model.load import load_for_training, model_fingerprint, open_base_model
from vibevoice_finetune.commands import table


@pytest.fixture(scope="module")
def model(golden_dir: Path) -> str:
    return str(golden_dir / "tied" / "checkpoint")


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    checkpoint = open_base_model(model)
    loaded = load_for_training(checkpoint, torch.float32, "cpu")
    plan = AdapterPlan(2, 4, 0.0, ("q_proj",), "lora", train_connectors=False)
    attach(loaded, plan)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded).values():
            parameter.add_(0.1)
    folder = tmp_path_factory.mktemp("run") / "lora"
    save_adapter(loaded, plan, folder, AdapterInfo(model, model_fingerprint(checkpoint), expects_voice_prompt=True))
    return str(folder.parent)  # the folder of a run holds it as lora/


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = table.main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_inspect_merge_inspect(
    model: str, adapter: str, golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "inspect", adapter, "--model_name_or_path", model)
    assert (code, err) == (0, "")
    assert "language model: LoRA of rank 2, scale 2, on q_proj ×3" in out
    assert "which matches" in out
    words = ["merge", "--model_name_or_path", model, "--adapter", adapter, "--layout", "native", "--dtype", "bf16"]
    words += ["--processor_name_or_path", str(golden_dir / "tokenizer"), "--output", str(tmp_path / "merged")]
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'merged'}: native layout, 336 tensors, ")
    assert "of them changed by the adapter" in out
    code, out, _ = run(capsys, "inspect", str(tmp_path / "merged"), "--model_name_or_path", model)
    assert code == 0
    assert "native layout" in out
    assert "acoustic decoder: all weights" in out
    assert ", BF16, " in out
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: --output ")
    assert err.count("\n") == 1


def test_convert_there_and_back(
    model: str, golden_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = ["--processor_name_or_path", str(golden_dir / "tokenizer")]
    there, back = str(tmp_path / "native"), str(tmp_path / "original")
    convert = ["convert", "--model_name_or_path"]
    assert run(capsys, *convert, model, "--output", there, "--layout", "native", *tokenizer)[0] == 0
    assert run(capsys, *convert, there, "--output", back, "--layout", "original")[0] == 0
    name = "model.safetensors"
    assert (tmp_path / "original" / name).read_bytes() == (Path(model) / name).read_bytes()


def test_inspect_fix(model: str, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = tmp_path / "fixed"
    code, out, _ = run(capsys, "inspect", adapter, "--model_name_or_path", model, "--fix", str(fixed))
    assert code == 0
    assert out.endswith(f"the portable adapter is {fixed}\n")
    assert (fixed / "adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspect"], "PATH: missing; all flags: vibevoice-finetune inspect --help"),
        (["inspect", "nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["inspect", "EMPTY"], "holds no adapter"),
        (["inspect", "ADAPTER", "--fix", "x"], "--fix needs --model_name_or_path"),
        (["inspect", "MODEL", "--fix", "x"], "--fix rewrites an adapter"),
        (
            ["merge", "--model_name_or_path", "MODEL", "--output", "x"],
            "--adapter: missing",
        ),
        (["merge", "--model_name_or_path", "MODEL", "--adapter", "EMPTY", "--output", "EMPTY/x"], "holds no adapter"),
        (["convert", "--model_name_or_path", "MODEL", "--output", "x"], "--layout: missing"),
        (
            ["convert", "--model_name_or_path", "MODEL", "--output", "EMPTY/x", "--layout", "native"],
            "names the text tokenizer Qwen/Qwen2.5-1.5B: no such folder",  # and it is not in the cache
        ),
        (["convert", "--model_name_or_path", "EMPTY", "--output", "EMPTY/x", "--layout", "native"], "no config.json"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], message: str, model: str, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"MODEL": model, "ADAPTER": adapter, "EMPTY": str(tmp_path)}
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_old_head_with_the_frozen_language_model_beside_it(
    model: str, adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The older trainers' folder of a head-only run has a model's `config.json` and weights; it is an adapter."""
    folder = tmp_path / "old"
    shutil.copytree(Path(adapter) / "lora" / "diffusion_head", folder / "diffusion_head")
    stored = load_file(Path(model) / "model.safetensors")
    prefix = "model.language_model."
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2Model"]}')
    code, out, err = run(capsys, "inspect", str(folder), "--model_name_or_path", model)
    assert code == 0
    assert out.startswith(f"adapter {folder}\n")
    assert "diffusion head: all weights" in out
    assert "model.safetensors is a copy of the base's language model" in err
    code, out, err = run(
        capsys, "merge", "--model_name_or_path", model, "--adapter", str(folder), "--output", str(tmp_path / "merged")
    )
    assert code == 0, err
    assert "of them changed by the adapter" in out
