"""Quantised and oddly typed models are named for what they are; float8 weights are not used in silence."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vibevoice_finetune.base_model.load import load_for_training, open_base_model
from vibevoice_finetune.base_model.stored_types import check_quantization_config
from vibevoice_finetune.errors import BaseModelError

LAYER = "model.language_model.layers.0.self_attn.q_proj.weight"


def altered(source: Path, folder: Path, **changes: Tensor) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors") | {
        name.replace("__", "."): value for name, value in changes.items()
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, r"\(bitsandbytes, 8 bit\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, r"\(bitsandbytes, 4 bit\)"),
        ({"quant_method": "gptq", "bits": 4}, r"\(gptq, 4 bit\)"),
        ({"quant_method": "awq", "bits": 4}, r"\(awq, 4 bit\)"),
        ({"quant_method": "fp8"}, r"\(fp8\)"),
        ({"load_in_8bit": True}, r"\(quantization_config, 8 bit\)"),
        ("int8", r"\('int8'\)"),
    ],
)
def test_the_configuration_says_how(found: object, said: str) -> None:
    advice = r"microsoft/VibeVoice-1\.5B or aoi-ot/VibeVoice-Large; .*--load_in_8bit True or --load_in_4bit True"
    for raw in ({"quantization_config": found}, {"decoder_config": {"quantization_config": found}}):
        with pytest.raises(BaseModelError, match=f"^config.json: the model is quantised {said}.*{advice}"):
            check_quantization_config(raw, "config.json")


def test_no_quantization_passes() -> None:
    check_quantization_config({"model_type": "vibevoice", "quantization_config": None, "decoder_config": {}}, "here")


def test_a_quantised_folder_is_named_when_it_is_opened(golden_dir: Path, tmp_path: Path) -> None:
    folder = altered(golden_dir / "tied" / "checkpoint", tmp_path / "model")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match=r"config\.json: the model is quantised \(bitsandbytes, 8 bit\)"):
        open_base_model(str(folder))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (LAYER.removesuffix("weight") + "SCB", "bitsandbytes, 8 bit"),
        (LAYER.removesuffix("weight") + "weight_format", "bitsandbytes, 8 bit"),
        (LAYER + ".absmax", "bitsandbytes, 4 bit"),
        (LAYER + ".quant_state.bitsandbytes__nf4", "bitsandbytes, 4 bit"),
        (LAYER.removesuffix("weight") + "g_idx", "GPTQ"),
        (LAYER.removesuffix("weight") + "qweight", "AWQ or GPTQ"),
        (LAYER.removesuffix("weight") + "weight_packed", "compressed-tensors"),
        (LAYER.removesuffix("weight") + "weight_scale_inv", "fp8"),
    ],
)
def test_the_names_of_tensors_say_how(golden_dir: Path, tmp_path: Path, name: str, said: str) -> None:
    folder = altered(golden_dir / "tied" / "checkpoint", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=rf"model\.safetensors: the model is quantised \({said}\); .*unquantised"):
        open_base_model(str(folder))


@pytest.mark.parametrize(
    ("dtype", "said"), [(torch.int8, "I8"), (torch.uint8, "U8"), (torch.bool, "BOOL"), (torch.complex64, "C64")]
)
def test_what_is_not_a_floating_point_number_is_refused(
    golden_dir: Path, tmp_path: Path, dtype: torch.dtype, said: str
) -> None:
    weight = load_file(golden_dir / "tied" / "checkpoint" / "model.safetensors")[LAYER]
    folder = altered(golden_dir / "tied" / "checkpoint", tmp_path / "model", **{LAYER: weight.to(dtype)})
    with pytest.raises(BaseModelError, match=rf"1 of \d+ tensors are not floating-point weights: .*q_proj.* is {said}"):
        open_base_model(str(folder))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_said_once(
    golden_dir: Path, tmp_path: Path, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    weight = load_file(golden_dir / "tied" / "checkpoint" / "model.safetensors")[LAYER]
    folder = altered(golden_dir / "tied" / "checkpoint", tmp_path / "model", **{LAYER: weight.to(dtype)})
    with caplog.at_level(logging.WARNING):
        model = load_for_training(open_base_model(str(folder)), torch.float32, "cpu")
    said = [record.getMessage() for record in caplog.records if "8 bits" in record.getMessage()]
    assert len(said) == 1
    assert f"{folder / 'model.safetensors'}: 1 of " in said[0]
    assert "The model in bf16 is the better start" in said[0]
    loaded = model.get_parameter(LAYER)
    assert torch.equal(loaded, weight.to(dtype).float())
