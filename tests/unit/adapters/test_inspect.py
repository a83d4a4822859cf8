"""What `inspect` says of adapters and models, and that a rewritten adapter is the same adapter."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from vibevoice_finetune.adapters.apply import load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.inspect import Inspection, PartReport, inspect_adapter, inspect_base_model
from vibevoice_finetune.adapters.rewrite import fix_adapter
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import BaseModel, load_for_training, model_fingerprint, open_base_model
from vibevoice_finetune.errors import AdapterError, ArgumentError, BaseModelError
from vibevoice_finetune.export.merge import ExportRequest, export
from vibevoice_finetune.files.locks import InUseError, locked

Shape = Callable[[Path], None]  # turns this package's folder into another shape


def make_plan(head: str, connectors: bool = True) -> AdapterPlan:
    return AdapterPlan(3, 6, 0.0, ("q_proj", "down_proj"), head, connectors)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(golden_dir: Path) -> BaseModel:
    return open_base_model(str(golden_dir / "tied" / "checkpoint"))


def save(base: BaseModel, plan: AdapterPlan, folder: Path, *, train: bool = True) -> Path:
    model = load_for_training(base, torch.float32, "cpu")
    torch.manual_seed(3)
    attach(model, plan)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            if train:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(
        model, plan, folder, AdapterInfo("some/VibeVoice", model_fingerprint(base), expects_voice_prompt=False)
    )
    return folder


@pytest.fixture(scope="module")
def made(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {head: save(base, make_plan(head), folder / head / "lora") for head in ("full", "lora")}


def part(found: Inspection, title: str) -> PartReport:
    return next(part for part in found.parts if part.title == title)


def merged_model(base: BaseModel, folder: Path) -> nn.Module:
    model = load_for_training(base, torch.float32, "cpu")
    load_adapter(model, folder)
    merge(model)
    return model


@pytest.mark.parametrize("head", ["full", "lora"])
def test_changes_are_those_of_the_merged_model(head: str, made: dict[str, Path], base: BaseModel) -> None:
    found = inspect_adapter(made[head], base)
    before = load_for_training(base, torch.float32, "cpu").state_dict()
    after = merged_model(base, made[head]).state_dict()
    blocks = {
        tensor_names.LANGUAGE_MODEL: "language model",
        tensor_names.DIFFUSION_HEAD: "diffusion head",
        tensor_names.ACOUSTIC_CONNECTOR: "acoustic connector",
        tensor_names.SEMANTIC_CONNECTOR: "semantic connector",
    }
    assert [report.title for report in found.parts] == list(blocks.values())
    for prefix, title in blocks.items():
        moved = [name for name in before if name.startswith(prefix) and not torch.equal(before[name], after[name])]
        expected = math.sqrt(sum(float((after[name] - before[name]).double().square().sum()) for name in moved))
        whole = math.sqrt(sum(float(before[name].double().square().sum()) for name in moved))
        change = part(found, title).change
        assert change is not None
        assert change.norm == pytest.approx(expected, rel=1e-4)
        assert change.base_norm == pytest.approx(whole, rel=1e-4)
        assert not change.untrained
    assert found.warnings == ()


def test_what_is_said_of_our_own_folder(made: dict[str, Path], base: BaseModel) -> None:
    lines = "\n".join(inspect_adapter(made["lora"], base).lines())
    assert "another form, not read here: acoustic_connector/pytorch_model.bin, diffusion_head/diff" in lines
    # 3 layers; q_proj (64, 64) and down_proj (64, 128), rank 3: 3 * 3 * (64 + 64 + 64 + 128)
    assert "language model: LoRA of rank 3, scale 2, on down_proj ×3, q_proj ×3, 12 tensors, 2,880 parameters" in lines
    assert "float32, 0.01 MB, in adapter_model.safetensors; change " in lines
    assert "base model some/VibeVoice, fingerprint " in lines
    assert ", which matches" in lines
    assert "trained without voice prompts" in lines
    assert "the community's inference script: language model, diffusion head, acoustic connector, sem" in lines
    assert "would ignore" in lines  # PEFT alone takes the language model's part only
    assert lines.count("would ignore") == 1


def test_lora_is_measured_without_a_base_and_full_weights_are_not(made: dict[str, Path], base: BaseModel) -> None:
    alone, compared = inspect_adapter(made["lora"], None), inspect_adapter(made["lora"], base)
    of_lora = part(alone, "language model").change
    with_base = part(compared, "language model").change
    assert of_lora is not None
    assert with_base is not None
    assert of_lora.norm == pytest.approx(with_base.norm)
    assert of_lora.base_norm is None
    assert part(alone, "acoustic connector").change is None


def test_untrained_parts_are_flagged(base: BaseModel, tmp_path: Path) -> None:
    folder = save(base, make_plan("full"), tmp_path / "lora", train=False)
    found = inspect_adapter(folder, base)
    assert all(report.change is not None and report.change.untrained for report in found.parts)
    assert len([warning for warning in found.warnings if "is untrained: it equals the base" in warning]) == 4
    assert "untrained: equal to the base" in part(found, "diffusion head").line()


def test_a_copy_that_was_rounded_to_bf16_is_untrained_too(base: BaseModel, tmp_path: Path) -> None:
    folder = save(base, make_plan("full"), tmp_path / "lora", train=False)
    (folder / "vibevoice_finetune.json").unlink()
    path = folder / "diffusion_head" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    change = part(inspect_adapter(folder, base), "diffusion head").change
    assert change is not None
    assert change.untrained
    assert change.norm > 0


# Folders of other programs, each from this package's folder with LoRA on the head ("lora") or a full one ("full").


def foreign(folder: Path) -> None:
    (folder / "vibevoice_finetune.json").unlink()
    (folder / "README.md").unlink()


def causal(folder: Path) -> None:
    foreign(folder)
    edit(folder / "adapter_config.json", task_type="CAUSAL_LM")


def whole_model_wrapped(folder: Path) -> None:
    foreign(folder)
    path = folder / "adapter_model.safetensors"
    prefix, longer = "base_model.model.", "base_model.model.model.language_model."
    save_file({name.replace(prefix, longer, 1): tensor for name, tensor in load_file(path).items()}, path)


def head_in_the_root(folder: Path) -> None:
    foreign(folder)
    shutil.move(folder / "diffusion_head" / "diffusion_head_full.bin", folder / "diffusion_head_full.bin")
    shutil.rmtree(folder / "diffusion_head")


def only_head_lora(folder: Path) -> None:
    foreign(folder)
    shutil.rmtree(folder / "diffusion_head")


def patterns(folder: Path) -> None:
    """One layer of rank 2 with an alpha of its own, the rest rank-stabilised."""
    foreign(folder)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    stem = "base_model.model.layers.1.self_attn.q_proj.lora_"
    tensors[f"{stem}A.weight"] = tensors[f"{stem}A.weight"][:2].clone()
    tensors[f"{stem}B.weight"] = tensors[f"{stem}B.weight"][:, :2].clone()
    save_file(tensors, path)
    key = "layers.1.self_attn.q_proj"
    edit(folder / "adapter_config.json", use_rslora=True, rank_pattern={key: 2}, alpha_pattern={key: 5})


def bf16(folder: Path) -> None:
    foreign(folder)
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SHAPES: dict[str, tuple[str, Shape, str]] = {  # start, shape, what the readers' lines must say of it
    "ours": ("lora", lambda folder: None, "PEFT, on the Qwen2 model inside: language model; would ignore: diffusion"),
    "task type CAUSAL_LM": (
        "full",
        causal,
        "language model (with transformers 4.51.3; 4.57.6 refuses task_type CAUSAL_LM)",
    ),
    "names of the whole model": (
        "full",
        whole_model_wrapped,
        "names begin with base_model.model.model.language_model.",
    ),
    "head in the root": ("full", head_in_the_root, "it looks for diffusion_head/diffusion_head_full.bin"),
    "LoRA of the head alone": (
        "lora",
        only_head_lora,
        "diffusion head (it looks for diffusion_head/model.safetensors or diffusion_head/diffusion_head_full.bin)",
    ),
    "rank and alpha patterns": ("full", patterns, "the ComfyUI nodes: language model, diffusion head"),
    "bf16": ("full", bf16, "vibevoice-finetune: every part"),
}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_a_rewritten_adapter_is_the_same_and_read_by_everybody(
    shape: str, made: dict[str, Path], base: BaseModel, tmp_path: Path
) -> None:
    start, change, said = SHAPES[shape]
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(made[start], old)
    change(old)
    assert said in "\n".join(inspect_adapter(old, base).lines())
    fix_adapter(old, base, new, expects_voice_prompt=False)
    found = inspect_adapter(new, base)
    readers = [line for line in found.lines() if "community" in line or "ComfyUI" in line]
    assert len(readers) == 2
    assert all("would ignore" not in line and "diffusion head" in line for line in readers)
    assert ", which matches" in "\n".join(found.lines())
    expected, merged = (dict(merged_model(base, folder).named_parameters()) for folder in (old, new))
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, atol=1e-6, rtol=1e-6, msg=name)
    assert (new / "README.md").is_file()


def test_peft_loads_a_rewritten_adapter(made: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(made["full"], old)
    patterns(old)
    edit(old / "adapter_config.json", task_type="CAUSAL_LM")
    fix_adapter(old, base, new)
    qwen = parts.language_model(load_for_training(base, torch.float32, "cpu"))
    tuned = PeftModel.from_pretrained(qwen, str(new)).merge_and_unload()
    expected = dict(parts.language_model(merged_model(base, old)).named_parameters())
    for name, parameter in tuned.named_parameters():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-6, msg=name)


def test_a_broken_adapter_is_refused_with_and_without_a_base(
    made: dict[str, Path], base: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(made["full"], folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    for model in (None, base):
        with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: is cut off within tensor"):
            inspect_adapter(folder, model)
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: is cut off within tensor"):
        fix_adapter(folder, base, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_fix_writes_over_nothing(made: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="already exists"):
        fix_adapter(made["full"], base, tmp_path)
    with pytest.raises(ArgumentError, match="is not a writable folder"):
        fix_adapter(made["full"], base, tmp_path / "nowhere" / "new")


def test_one_connector_alone_is_refused(made: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    shutil.copytree(made["full"], tmp_path / "old")
    foreign(tmp_path / "old")
    shutil.rmtree(tmp_path / "old" / "semantic_connector")
    with pytest.raises(AdapterError, match="holds one connector and not the semantic connector"):
        fix_adapter(tmp_path / "old", base, tmp_path / "new")


def test_a_model_and_its_merged_self(made: dict[str, Path], base: BaseModel, golden_dir: Path, tmp_path: Path) -> None:
    alone = inspect_base_model(base, None)
    assert "original layout, weights in 1 file(s)" in alone.heading[0]
    assert "the community's scripts and the ComfyUI nodes" in "\n".join(alone.readers)
    assert all(report.change is None for report in alone.parts)
    stored = load_file(base.folder / "model.safetensors")
    assert sum(report.num_parameters for report in alone.parts) == sum(tensor.numel() for tensor in stored.values())
    export(
        ExportRequest(
            base.source,
            tmp_path / "merged",
            adapter=made["full"],
            layout=Layout.NATIVE,
            processor_name_or_path=str(golden_dir / "tokenizer"),
        )
    )
    merged = inspect_base_model(open_base_model(str(tmp_path / "merged")), base)
    assert "native layout" in merged.heading[0]
    untrained = {report.title for report in merged.parts if report.change is not None and report.change.untrained}
    assert untrained == {"acoustic encoder", "acoustic decoder", "semantic encoder", "latent scale and bias"}
    found = part(merged, "diffusion head").change
    expected = part(inspect_adapter(made["full"], base), "diffusion head").change
    assert found is not None
    assert expected is not None
    assert found.norm == pytest.approx(expected.norm)


def test_models_of_other_sizes_are_not_compared(base: BaseModel, golden_dir: Path) -> None:
    with pytest.raises(BaseModelError, match="has other tensors than"):
        inspect_base_model(open_base_model(str(golden_dir / "untied" / "checkpoint")), base)


def test_what_comfyui_lists_and_what_it_opens_are_two_things(
    base: BaseModel, made: dict[str, Path], tmp_path: Path
) -> None:
    case = AdapterPlan(3, 6, 0.0, (), "full", train_connectors=False)
    ours = save(base, case, tmp_path / "ours")
    lines = inspect_adapter(ours, base).lines()
    assert "  the ComfyUI nodes: diffusion head" in lines
    assert (
        "  PEFT, on the Qwen2 model inside: nothing; the pair of zeros there only makes ComfyUI list the folder"
        in lines
    )
    assert not any("language model:" in line for line in lines)
    shutil.copytree(made["full"], tmp_path / "theirs")
    foreign(tmp_path / "theirs")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "theirs" / name).unlink()
    lines = inspect_adapter(tmp_path / "theirs", base).lines()
    assert any(line.startswith("  the ComfyUI nodes: not in their lists") for line in lines)
    fix_adapter(tmp_path / "theirs", base, tmp_path / "fixed")
    lines = inspect_adapter(tmp_path / "fixed", base).lines()
    assert "  the ComfyUI nodes: diffusion head, acoustic connector, semantic connector" in lines


def test_a_whole_language_model_beside_a_head_is_reported(
    base: BaseModel, made: dict[str, Path], tmp_path: Path
) -> None:
    """The older trainers' folder of a head-only run: with the frozen language model and its `config.json`."""
    folder = tmp_path / "old"
    shutil.copytree(made["full"] / "diffusion_head", folder / "diffusion_head")
    stored = load_file(base.folder / "model.safetensors")
    prefix = "model.language_model."
    copied = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    save_file(copied, folder / "model.safetensors")
    assert any("give --model_name_or_path to compare" in warning for warning in inspect_adapter(folder, None).warnings)
    (warning,) = inspect_adapter(folder, base).warnings
    assert "is a copy of the base's language model" in warning
    fix_adapter(folder, base, tmp_path / "fixed")
    assert not (tmp_path / "fixed" / "model.safetensors").exists()
    save_file(copied | {"norm.weight": copied["norm.weight"] + 1}, folder / "model.safetensors")
    (warning,) = inspect_adapter(folder, base).warnings
    assert "holds a whole language model, of which 1 of " in warning
    with pytest.raises(AdapterError, match="trained whole"):
        fix_adapter(folder, base, tmp_path / "again")


def test_fix_and_another_process(made: dict[str, Path], base: BaseModel, tmp_path: Path) -> None:
    with locked(tmp_path / "new", "inspect --fix"), pytest.raises(InUseError, match="is writing there"):
        fix_adapter(made["full"], base, tmp_path / "new")
