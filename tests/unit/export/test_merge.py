"""Merged and converted checkpoints: the same numbers under other names, whole folders or none."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoProcessor, GenerationConfig, VibeVoiceForConditionalGeneration

from vibevoice_finetune.adapters.apply import adapter_deltas, load_adapter
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import (
    load_for_generation,
    load_for_training,
    model_fingerprint,
    open_base_model,
)
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.tensor_names import to_native
from vibevoice_finetune.base_model.weights import index_weights
from vibevoice_finetune.errors import AdapterError, ArgumentError, BaseModelError, UserError
from vibevoice_finetune.export import merge as export_module
from vibevoice_finetune.export.merge import ExportRequest, export
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.files.locks import InUseError, locked

PLAN = AdapterPlan(
    lora_r=3,
    lora_alpha=6,
    lora_dropout=0.0,
    lora_target_modules=("q_proj", "down_proj"),
    head="lora",
    train_connectors=True,
)
MODELS = ("tied", "untied")


def request_for(golden_dir: Path, model: str, output: Path, **changes: object) -> ExportRequest:
    request = ExportRequest(
        name_or_path=str(golden_dir / model / "checkpoint"),
        output=output,
        processor_name_or_path=str(golden_dir / "tokenizer"),
    )
    return replace(request, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def adapter(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of part, far from the base; of the "tied" model."""
    checkpoint = open_base_model(str(golden_dir / "tied" / "checkpoint"))
    model = load_for_training(checkpoint, torch.float32, "cpu")
    torch.manual_seed(3)
    attach(model, PLAN)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    save_adapter(model, PLAN, folder, AdapterInfo(checkpoint.source, model_fingerprint(checkpoint), True))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("model", MODELS)
def test_native_and_back_is_the_same_model_byte_for_byte(model: str, golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / model / "checkpoint"
    export(request_for(golden_dir, model, tmp_path / "native", layout=Layout.NATIVE))
    export(ExportRequest(str(tmp_path / "native"), tmp_path / "back", layout=Layout.ORIGINAL))
    for name in ("model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name
    raw = json.loads((source / "config.json").read_text())
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    # The original's readers look for it at the top, and tie the two matrices if they do not find it.
    assert written.pop("tie_word_embeddings") is raw["decoder_config"]["tie_word_embeddings"]
    assert written == {key: value for key, value in raw.items() if key != "tie_word_embeddings"}


@pytest.mark.parametrize("model", MODELS)
def test_the_native_folder_loads_with_transformers_alone(model: str, golden_dir: Path, tmp_path: Path) -> None:
    export(request_for(golden_dir, model, tmp_path / "native", layout=Layout.NATIVE))
    loaded, report = VibeVoiceForConditionalGeneration.from_pretrained(tmp_path / "native", output_loading_info=True)
    assert not any(report.values()), report
    original = load_file(golden_dir / model / "checkpoint" / "model.safetensors")
    expected = {to_native(name): tensor for name, tensor in original.items()}
    state = {name: tensor for name, tensor in loaded.state_dict().items() if name in expected}
    assert_equal(state, expected)
    tied = loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert tied == (model == "tied")
    processor = AutoProcessor.from_pretrained(tmp_path / "native")
    assert processor.audio_token_id == loaded.config.audio_token_id == 411  # `<|vision_pad|>` of the golden tokenizer
    assert loaded.config.audio_bos_token_id == 409
    settings = GenerationConfig.from_pretrained(tmp_path / "native")
    assert (settings.eos_token_id, settings.guidance_scale, settings.num_diffusion_steps) == (400, 1.3, 10)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_merged_is_what_loading_and_merging_gives(
    layout: Layout, dtype: torch.dtype | None, golden_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    request = request_for(golden_dir, "tied", tmp_path / "merged", adapter=adapter, layout=layout, dtype=dtype)
    exported = export(request)
    model = load_for_generation(open_base_model(request.name_or_path), torch.float32, "cpu")
    load_adapter(model, adapter)
    merge(model)
    found = tensors_of(tmp_path / "merged")
    if layout is Layout.ORIGINAL:
        found = {to_native(name): tensor for name, tensor in found.items()}
    state = model.state_dict()
    assert_equal(found, {name: state[name].to(dtype or torch.float32) for name in found})
    base = load_file(golden_dir / "tied" / "checkpoint" / "model.safetensors")
    changed = sum(not torch.equal(found[to_native(name)], base[name].to(dtype or torch.float32)) for name in base)
    assert changed == exported.num_merged > 0
    again = open_base_model(str(tmp_path / "merged"))
    assert again.layout is layout
    assert again.config.dtype == (dtype or torch.float32)
    assert exported.warnings == ()


def test_at_scale_0_the_merged_model_is_the_base(golden_dir: Path, adapter: Path, tmp_path: Path) -> None:
    request = request_for(golden_dir, "tied", tmp_path / "merged", adapter=adapter, adapter_scale=0.0)
    assert export(request).num_merged == 0
    base = golden_dir / "tied" / "checkpoint" / "model.safetensors"
    assert (tmp_path / "merged" / "model.safetensors").read_bytes() == base.read_bytes()


def test_shards_hold_the_same_tensors(golden_dir: Path, tmp_path: Path) -> None:
    request = request_for(golden_dir, "tied", tmp_path / "native", layout=Layout.NATIVE)
    export(request)
    export(replace(request, output=tmp_path / "sharded", max_shard_bytes=300_000))
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 5
    assert_equal(tensors_of(tmp_path / "sharded"), tensors_of(tmp_path / "native"))
    back = ExportRequest(str(tmp_path / "sharded"), tmp_path / "back", layout=Layout.ORIGINAL)
    export(back)
    base = golden_dir / "tied" / "checkpoint" / "model.safetensors"
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == base.read_bytes()


def test_only_one_shard_is_in_memory(golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors are asked for one by one, each after the shards before it were written."""
    asked: list[tuple[str, int]] = []
    original = export_module.read_tensors

    def counting(tensors: object) -> object:
        for name, tensor in original(tensors):  # type: ignore[arg-type]
            asked.append((name, len(list(tmp_path.glob(".native.*.partial/model-*.safetensors")))))
            yield name, tensor

    monkeypatch.setattr(export_module, "read_tensors", counting)
    export(request_for(golden_dir, "tied", tmp_path / "native", layout=Layout.NATIVE, max_shard_bytes=300_000))
    written = [shards for _, shards in asked]
    assert written == sorted(written)
    assert written[0] == 0
    assert written[-1] >= 5


def test_the_same_layout_keeps_the_files_beside_the_weights(golden_dir: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(golden_dir / "tied" / "checkpoint", source)
    (source / "merges.txt").write_text("kept")
    (source / "notes.txt").write_text("none of the model's files")
    raw = json.loads((source / "config.json").read_text()) | {"a_key_of_their_own": 7}
    (source / "config.json").write_text(json.dumps(raw))
    export(ExportRequest(str(source), tmp_path / "copy"))
    assert (tmp_path / "copy" / "merges.txt").read_text() == "kept"
    assert not (tmp_path / "copy" / "notes.txt").exists()
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["a_key_of_their_own"] == 7


def test_files_are_readable_as_the_umask_says(golden_dir: Path, tmp_path: Path) -> None:
    export(request_for(golden_dir, "tied", tmp_path / "native", layout=Layout.NATIVE))
    probe = tmp_path / "probe"
    probe.touch()
    modes = {path.stat().st_mode for path in (tmp_path / "native").iterdir()}
    assert modes == {probe.stat().st_mode}


def test_an_output_that_is_there_is_refused(golden_dir: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ArgumentError, match=r"--output .*taken: already exists"):
        export(request_for(golden_dir, "tied", taken))
    with pytest.raises(ArgumentError, match=r"there is no folder .*nowhere"):
        export(request_for(golden_dir, "tied", tmp_path / "nowhere" / "out"))


def test_a_full_disk_is_a_line_and_leaves_nothing(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vibevoice_finetune.base_model.weights.save_file", full)
    with pytest.raises(WriteError, match=r"out: cannot be written .*No space left"):
        export(request_for(golden_dir, "tied", tmp_path / "out", layout=Layout.NATIVE))
    assert list(tmp_path.iterdir()) == []


def test_broken_inputs_leave_nothing(golden_dir: Path, adapter: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    shutil.copytree(golden_dir / "tied" / "checkpoint", torn)
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BaseModelError, match=r"model\.safetensors: not a complete safetensors file"):
        export(request_for(golden_dir, "tied", tmp_path / "out", name_or_path=str(torn), layout=Layout.NATIVE))
    spoilt = tmp_path / "spoilt"
    shutil.copytree(adapter, spoilt)
    tensors = load_file(spoilt / "adapter_model.safetensors")
    name = min(tensors)
    tensors.pop(name)
    save_file(tensors, spoilt / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=rf"adapter_model\.safetensors: tensor {name} is missing"):
        export(request_for(golden_dir, "tied", tmp_path / "out", adapter=spoilt))
    with pytest.raises(AdapterError, match="the adapter was made for another model"):
        export(request_for(golden_dir, "untied", tmp_path / "out", adapter=adapter))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoilt", "torn"]


def test_another_base_of_the_same_size_is_said(golden_dir: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(golden_dir / "tied" / "checkpoint", other)
    tensors = load_file(other / "model.safetensors")
    tensors["model.acoustic_connector.fc1.bias"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    exported = export(request_for(golden_dir, "tied", tmp_path / "out", name_or_path=str(other), adapter=adapter))
    assert len(exported.warnings) == 1
    assert "was made on another base model" in exported.warnings[0]


def test_what_the_original_cannot_say_is_refused_before_writing(golden_dir: Path, tmp_path: Path) -> None:
    export(request_for(golden_dir, "tied", tmp_path / "native", layout=Layout.NATIVE))
    path = tmp_path / "native" / "config.json"
    raw = json.loads(path.read_text())
    raw["diffusion_head_config"]["diffusion_max_period"] = 5000
    path.write_text(json.dumps(raw))
    with pytest.raises(BaseModelError, match=r"diffusion_head_config\.diffusion_max_period is 5000"):
        export(ExportRequest(str(tmp_path / "native"), tmp_path / "back", layout=Layout.ORIGINAL))
    assert not (tmp_path / "back").exists()


def test_weights_are_indexed_under_the_layouts_names(golden_dir: Path, tmp_path: Path) -> None:
    export(request_for(golden_dir, "untied", tmp_path / "native", layout=Layout.NATIVE))
    names = index_weights(tmp_path / "native", Layout.NATIVE).tensors
    assert names.keys() == index_weights(golden_dir / "untied" / "checkpoint", Layout.ORIGINAL).tensors.keys()


def changed_base(golden_dir: Path, folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    shutil.copytree(golden_dir / "tied" / "checkpoint", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


QUERY = "model.language_model.layers.0.self_attn.q_proj.weight"


def test_a_base_of_8_bits_is_merged_into_bf16(golden_dir: Path, adapter: Path, tmp_path: Path) -> None:
    kept = ("speech_scaling_factor", "speech_bias_factor", "norm", "bias")
    base = changed_base(
        golden_dir,
        tmp_path / "fp8",
        lambda tensors: {n: t if any(k in n for k in kept) else t.to(torch.float8_e4m3fn) for n, t in tensors.items()},
    )
    request = request_for(golden_dir, "tied", tmp_path / "merged", name_or_path=str(base), adapter=adapter)
    exported = export(request)
    before, after = load_file(base / "model.safetensors"), tensors_of(tmp_path / "merged")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16, torch.float32}
    scaled = adapter_deltas(adapter, tensor_shapes(open_base_model(str(base)).config))[QUERY](before[QUERY].float())
    assert torch.equal(after[QUERY], scaled.bfloat16())
    assert any("stored in 8 bits" in warning and "written in bf16" in warning for warning in exported.warnings)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(("size", "said"), [(1.0, False), (1e-4, True)])
def test_a_change_that_rounding_takes_away_is_said(
    size: float, said: bool, golden_dir: Path, adapter: Path, tmp_path: Path
) -> None:
    """A ten-thousandth of the change is far below the last digit of bf16, so most weights stay where they were."""
    base = changed_base(
        golden_dir, tmp_path / "base", lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()}
    )
    request = request_for(golden_dir, "tied", tmp_path / "out", name_or_path=str(base), adapter=adapter)
    exported = export(replace(request, adapter_scale=size))
    assert any("rounding to the model's number format takes" in warning for warning in exported.warnings) is said


def test_merging_that_overflows_is_refused(golden_dir: Path, adapter: Path, tmp_path: Path) -> None:
    base = changed_base(
        golden_dir, tmp_path / "base", lambda tensors: {name: tensor.half() for name, tensor in tensors.items()}
    )
    request = request_for(
        golden_dir, "tied", tmp_path / "out", name_or_path=str(base), adapter=adapter, adapter_scale=1e7
    )
    with pytest.raises(BaseModelError, match="not finite numbers in float16 after merging; nothing was written"):
        export(request)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_base_that_is_not_finite_is_refused(golden_dir: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[QUERY][0, 0] = float("nan")
        return tensors

    base = changed_base(golden_dir, tmp_path / "base", spoil)
    with pytest.raises(BaseModelError, match=r"q_proj\.weight has values that are not finite numbers; download"):
        export(ExportRequest(str(base), tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_files_behind_links_are_not_copied(golden_dir: Path, tmp_path: Path) -> None:
    base = changed_base(golden_dir, tmp_path / "base", lambda tensors: tensors)
    (tmp_path / "secret").write_text('{"of": "the person at the keyboard"}')
    (base / "notes.json").symlink_to(tmp_path / "secret")
    export(ExportRequest(str(base), tmp_path / "one"))
    assert not (tmp_path / "one" / "notes.json").exists()
    (base / "generation_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"generation_config\.json: is a link that leads out of its folder"):
        export(ExportRequest(str(base), tmp_path / "two"))
    assert not (tmp_path / "two").exists()


def test_two_at_once_are_told_apart(golden_dir: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out", "convert"), pytest.raises(InUseError, match="is writing there"):
        export(request_for(golden_dir, "tied", tmp_path / "out", layout=Layout.NATIVE))
    assert not (tmp_path / "out").exists()
