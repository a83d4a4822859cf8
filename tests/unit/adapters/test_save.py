import hashlib
import itertools
import json
import resource
import shlex
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.unit.small_model import INFO, largest_difference, outputs, plan, small_model, train_at_random
from vibevoice_finetune.adapters.apply import load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge
from vibevoice_finetune.adapters.info import public_name
from vibevoice_finetune.adapters.lora import lora_layers
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.errors import AdapterError
from vibevoice_finetune.files.atomic import WriteError

COMBINATIONS = [
    plan(lora_target_modules=targets, head=head, train_connectors=connectors)
    for targets, head, connectors in itertools.product(
        ((), ("q_proj", "down_proj")), ("frozen", "full", "lora"), (False, True)
    )
    if targets or head != "frozen" or connectors
]


def trained(case: AdapterPlan, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = small_model(dtype=dtype)
    attach(model, case)
    train_at_random(model)
    return model


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_laid_out_as_other_tools_expect(tmp_path: Path) -> None:
    save_adapter(
        trained(plan(head="full", train_connectors=True)),
        plan(head="full", train_connectors=True),
        tmp_path / "lora",
        INFO,
    )
    assert files_of(tmp_path) == {
        "lora/README.md",
        "lora/vibevoice_finetune.json",
        "lora/adapter_config.json",
        "lora/adapter_model.safetensors",
        "lora/diffusion_head/config.json",
        "lora/diffusion_head/model.safetensors",
        "lora/diffusion_head/diffusion_head_full.bin",
        "lora/acoustic_connector/model.safetensors",
        "lora/acoustic_connector/pytorch_model.bin",
        "lora/semantic_connector/model.safetensors",
        "lora/semantic_connector/pytorch_model.bin",
    }


def test_names_and_values_of_the_tensors(tmp_path: Path) -> None:
    case = plan(head="full", train_connectors=True)
    model = trained(case)
    save_adapter(model, case, tmp_path, INFO)
    lora = load_file(tmp_path / "adapter_model.safetensors")
    assert set(lora) == {
        f"base_model.model.layers.{layer}.{module}.lora_{side}.weight"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }
    layer = lora_layers(parts.language_model(model))["layers.1.mlp.down_proj"]
    assert torch.equal(lora["base_model.model.layers.1.mlp.down_proj.lora_B.weight"], layer.lora_B["default"].weight)

    head = parts.diffusion_head(model)
    tensors = load_file(tmp_path / "diffusion_head/model.safetensors")
    assert torch.equal(tensors["t_embedder.mlp.2.weight"], head.timestep_proj.fc2.weight)
    assert torch.equal(tensors["layers.1.adaLN_modulation.1.weight"], head.layers[1].linear.weight)
    assert torch.equal(tensors["final_layer.linear.weight"], head.final_layer.linear_2.weight)
    assert len(tensors) == 16

    connector = load_file(tmp_path / "acoustic_connector/model.safetensors")
    assert set(connector) == {"fc1.weight", "fc1.bias", "norm.weight", "fc2.weight", "fc2.bias"}
    assert torch.equal(connector["fc2.weight"], parts.acoustic_connector(model).get_parameter("linear_2.weight"))

    for binary, twin in (
        ("diffusion_head/diffusion_head_full.bin", tensors),
        ("acoustic_connector/pytorch_model.bin", connector),
    ):
        state = torch.load(tmp_path / binary, weights_only=True)
        assert type(state) is dict
        assert {name: tensor.tolist() for name, tensor in state.items()} == {
            name: tensor.tolist() for name, tensor in twin.items()
        }


def test_configurations_for_other_tools(tmp_path: Path) -> None:
    case = plan(head="lora")
    save_adapter(trained(case), case, tmp_path, INFO)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] == "FEATURE_EXTRACTION"  # CAUSAL_LM fails to load on a Qwen2Model
    assert config["target_modules"] == ["down_proj", "q_proj"]
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 6, "some/VibeVoice")
    head = json.loads((tmp_path / "diffusion_head/config.json").read_text())
    assert head["model_type"] == "vibevoice_diffusion_head"
    assert (head["head_layers"], head["head_ffn_ratio"], head["latent_size"]) == (2, 3.0, 3)


def test_what_the_folder_says_of_itself(tmp_path: Path) -> None:
    save_adapter(trained(plan()), plan(), tmp_path, INFO)
    said = json.loads((tmp_path / "vibevoice_finetune.json").read_text())
    assert said["format_version"] == 1
    assert (said["base_model"], said["base_fingerprint"], said["expects_voice_prompt"]) == (
        "some/VibeVoice",
        "abc",
        True,
    )
    assert said["trained"]["lora_target_modules"] == ["q_proj", "down_proj"]
    for name, record in said["contents"].items():
        data = (tmp_path / name).read_bytes()
        assert record == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert set(said["contents"]) == files_of(tmp_path) - {"README.md", "vibevoice_finetune.json"}
    assert "base_model: some/VibeVoice" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
@pytest.mark.parametrize("case", COMBINATIONS)
def test_saved_and_loaded_it_computes_the_same(case: AdapterPlan, dtype: torch.dtype, tmp_path: Path) -> None:
    model = trained(case, dtype)
    save_adapter(model, case, tmp_path, INFO)
    fresh = small_model(dtype=dtype)
    summary = load_adapter(fresh, tmp_path)
    assert summary.warnings == ()
    assert all(block.changes_base for block in summary.blocks)
    assert {block.title for block in summary.blocks} == {
        *(["language model"] if case.lora_target_modules else []),
        *(["diffusion head"] if case.head != "frozen" else []),
        *(["acoustic connector", "semantic connector"] if case.train_connectors else []),
    }
    if dtype is torch.float32:
        assert largest_difference(outputs(model), outputs(fresh)) == 0.0
        return
    # Trained in float32, applied in bf16: fully trained parts are rounded, LoRA is not.
    before, after = outputs(model), outputs(fresh)
    assert torch.equal(before["language model"], after["language model"])
    for name in before:
        assert (before[name].float() - after[name].float()).norm() <= 0.02 * before[name].float().norm()
    assert {p.dtype for name, p in fresh.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    assert {p.dtype for name, p in fresh.named_parameters() if "lora_" in name} <= {torch.float32}
    assert not any(parameter.requires_grad for name, parameter in fresh.named_parameters() if "lora_" in name)


def test_plain_peft_loads_the_language_models_lora(tmp_path: Path) -> None:
    torch.manual_seed(3)  # LoRA's A
    model = trained(plan(head="lora"))
    save_adapter(model, plan(head="lora"), tmp_path, INFO)
    qwen = parts.language_model(small_model())
    wrapped = peft.PeftModel.from_pretrained(qwen, str(tmp_path)).eval()
    embeds_BTD = torch.randn(1, 4, qwen.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = parts.language_model(model)(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
        base = parts.language_model(small_model())(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
        found = wrapped(inputs_embeds=embeds_BTD, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - base).abs().max() > 0.001


class OriginalLayer(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.ffn = nn.Module()
        self.ffn.gate_proj = nn.Linear(size, 3 * size, bias=False)
        self.ffn.up_proj = nn.Linear(size, 3 * size, bias=False)
        self.ffn.down_proj = nn.Linear(3 * size, size, bias=False)
        self.norm = nn.Module()
        self.norm.weight = nn.Parameter(torch.ones(size))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(size, 3 * size, bias=False))


class OriginalHead(nn.Module):
    """The tensors of the original's `prediction_head`, with its names."""

    def __init__(self, size: int, latent: int, layers: int) -> None:
        super().__init__()
        self.noisy_images_proj = nn.Linear(latent, size, bias=False)
        self.cond_proj = nn.Linear(size, size, bias=False)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, size, bias=False), nn.SiLU(), nn.Linear(size, size, bias=False)
        )
        self.layers = nn.ModuleList([OriginalLayer(size) for _ in range(layers)])
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(size, latent, bias=False)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(size, 2 * size, bias=False))


def test_the_originals_head_takes_either_form(tmp_path: Path) -> None:
    """What the community's tools do: load the full state dict strictly, or PEFT over the base's head."""
    case = plan(lora_target_modules=(), head="lora")
    base = plan(lora_target_modules=(), head="full")
    untrained = small_model()
    attach(untrained, base)
    save_adapter(untrained, base, tmp_path / "base", INFO)
    save_adapter(trained(case), case, tmp_path / "tuned", INFO)

    full = OriginalHead(16, 3, 2)
    full.load_state_dict(torch.load(tmp_path / "tuned/diffusion_head/diffusion_head_full.bin", weights_only=True))
    small = OriginalHead(16, 3, 2)
    small.load_state_dict(load_file(tmp_path / "base/diffusion_head/model.safetensors"))
    for name, renamed in (
        ("lora_config.json", "adapter_config.json"),
        ("lora.safetensors", "adapter_model.safetensors"),
    ):
        (tmp_path / "tuned/diffusion_head_lora" / name).rename(tmp_path / "tuned/diffusion_head_lora" / renamed)
    wrapped = peft.PeftModel.from_pretrained(small, str(tmp_path / "tuned/diffusion_head_lora"))
    merged = wrapped.merge_and_unload()
    for name, tensor in full.state_dict().items():
        torch.testing.assert_close(merged.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_merged_and_attached_agree(tmp_path: Path) -> None:
    case = plan(head="lora", train_connectors=True)
    save_adapter(trained(case), case, tmp_path, INFO)
    attached, merged, from_full = small_model(), small_model(), small_model()
    load_adapter(attached, tmp_path)
    load_adapter(merged, tmp_path)
    merge(merged)
    for path in (tmp_path / "diffusion_head_lora").iterdir():  # then the merged copy of the head is read
        path.unlink()
    load_adapter(from_full, tmp_path)
    expected = outputs(attached)
    for other in (merged, from_full):
        for name, value in outputs(other).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)
    assert torch.equal(outputs(merged)["diffusion head"], outputs(from_full)["diffusion head"])


def test_an_adapter_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    first, second = plan(train_connectors=True), plan(lora_target_modules=("v_proj",))
    save_adapter(trained(first), first, tmp_path / "lora", INFO)
    save_adapter(trained(second), second, tmp_path / "lora", INFO)
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
    assert files_of(tmp_path / "lora") == {
        "README.md",
        "vibevoice_finetune.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "lora").iterdir()}
    assert len(modes) == 1  # safetensors on its own would hide its file from others


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    case = plan(head="lora", train_connectors=True)
    for name in ("one", "two"):
        torch.manual_seed(3)  # LoRA's A
        save_adapter(trained(case), case, tmp_path / name / "lora", INFO)
    for file in files_of(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


@pytest.mark.parametrize("limit_bytes", [1_000, 5_000, 30_000, 50_500])
def test_a_full_disk_leaves_the_old_adapter(tmp_path: Path, limit_bytes: int) -> None:
    """No file may grow above the limit: each of them breaks some other file of the folder."""
    case = plan(lora_r=8, head="full", train_connectors=True)
    save_adapter(trained(case), case, tmp_path / "lora", INFO)
    before = {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)}
    other = trained(plan(lora_r=8, head="full", train_connectors=True))
    train_at_random(other, seed=8)
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, old_limits[1]))
    try:
        with pytest.raises(WriteError, match="lora: cannot be written"):
            save_adapter(other, case, tmp_path / "lora", INFO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
    assert {name: (tmp_path / name).read_bytes() for name in files_of(tmp_path)} == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_saved_that_is_not_finite(tmp_path: Path, value: float) -> None:
    case = plan(head="full")
    model = trained(case)
    weight: Tensor = parts.diffusion_head(model).layers[1].linear.weight
    with torch.no_grad():
        weight[0, 0] = value
    with pytest.raises(
        AdapterError, match=r"diffusion_head/model.safetensors: tensor layers.1.adaLN_modulation.1.weight"
    ):
        save_adapter(model, case, tmp_path / "lora", INFO)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", [case for case in COMBINATIONS if not case.lora_target_modules])
def test_without_lora_on_the_language_model_the_folder_is_listed_and_harmless(
    case: AdapterPlan, tmp_path: Path
) -> None:
    """ComfyUI's lists ask for both files of PEFT; what they hold must change nothing, in PEFT and here."""
    save_adapter(trained(case), case, tmp_path, INFO)
    qwen = parts.language_model(small_model())
    wrapped = peft.PeftModel.from_pretrained(qwen, str(tmp_path)).merge_and_unload()
    expected = parts.language_model(small_model()).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in wrapped.state_dict().items())
    model = small_model()
    summary = load_adapter(model, tmp_path)
    assert "language model" not in {block.title for block in summary.blocks}
    assert lora_layers(parts.language_model(model)) == {}
    assert "a single pair of zeros" in (tmp_path / "README.md").read_text()


def test_no_other_program_takes_a_part_for_an_adapter_of_its_own(tmp_path: Path) -> None:
    case = plan(head="lora")
    save_adapter(trained(case), case, tmp_path, INFO)
    assert [path.parent for path in tmp_path.rglob("adapter_*")] == [tmp_path, tmp_path]
    assert (tmp_path / "diffusion_head_lora/lora.safetensors").is_file()


SETTINGS = {
    "model_name_or_path": "/data/me/models/VibeVoice-1.5B",
    "train_jsonl": "rows.jsonl",
    "validation_jsonl": ["/data/me/a", "/data/me/b"],
    "processor_name_or_path": "Qwen/Qwen2.5-1.5B",
    "learning_rate": 1e-4,
    "lr_scheduler_kwargs": {"config_path": "x"},
    "run_name": "/data/me/runs/7",
    "hub_token": "hf_abc",
    "extra": "hf_" + "a" * 34,
    "report_to": ["tensorboard"],
}


def test_no_place_and_no_secret_is_given_away(tmp_path: Path) -> None:
    info = replace(INFO, base_model="/data/me/models/VibeVoice-1.5B/", settings=SETTINGS)
    save_adapter(trained(plan()), plan(), tmp_path / "lora", info)
    said = json.loads((tmp_path / "lora/vibevoice_finetune.json").read_text())
    assert said["base_model"] == "VibeVoice-1.5B"
    assert said["base_fingerprint"] == "abc"
    assert said["settings"] == {
        "model_name_or_path": "VibeVoice-1.5B",
        "processor_name_or_path": "Qwen/Qwen2.5-1.5B",
        "learning_rate": 1e-4,
        "report_to": ["tensorboard"],
    }
    for path in (tmp_path / "lora").rglob("*"):
        if path.is_file():
            assert b"/data/me" not in path.read_bytes()
            assert b"hf_a" not in path.read_bytes()


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("microsoft/VibeVoice-1.5B", "microsoft/VibeVoice-1.5B"),
        ("../models/mine", "mine"),
        ("/cache/hub/models--aoi-ot--VibeVoice-Large/snapshots/0123", "aoi-ot/VibeVoice-Large"),
        ("mine", "mine"),
    ],
)
def test_a_base_model_is_named_without_its_place(given: str, written: str) -> None:
    assert public_name(given) == written


def test_the_cards_command_is_safe_to_paste(tmp_path: Path) -> None:
    info = replace(INFO, base_model="/models/x; rm -rf `~`\n# gone")
    save_adapter(trained(plan()), plan(), tmp_path, info)
    card = (tmp_path / "README.md").read_text()
    (command,) = [line for line in card.splitlines() if line.startswith("vibevoice-finetune generate")]
    words = shlex.split(command.removesuffix("\\"))
    assert words[:4] == ["vibevoice-finetune", "generate", "--model_name_or_path", "x; rm -rf `~`\\n# gone"]
    assert not any(line.startswith("# gone") for line in card.splitlines())


def test_the_cards_python_applies_the_language_models_part(tmp_path: Path) -> None:
    torch.manual_seed(3)
    case = plan(head="full")
    tuned = trained(case)
    save_adapter(tuned, case, tmp_path, INFO)
    card = (tmp_path / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path))
    model = small_model()
    exec(code, {"model": model})
    found, expected = outputs(model)["language model"], outputs(tuned)["language model"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert "It leaves out the diffusion head." in card


def test_the_cards_header_is_read_by_the_hubs_library(tmp_path: Path) -> None:
    save_adapter(trained(plan()), plan(), tmp_path, INFO)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("some/VibeVoice", "peft")
    save_adapter(trained(plan()), plan(), tmp_path, replace(INFO, base_model="/a/local/folder"))
    assert ModelCard.load(tmp_path / "README.md").data.base_model is None
