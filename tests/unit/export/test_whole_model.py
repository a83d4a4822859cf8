"""A trained language model as a whole checkpoint: what was trained is in it, everything else is the base's."""

import json
from pathlib import Path

import pytest
import torch

from vibevoice_finetune.adapters.attach import AdapterPlan, attach, merge, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.inspect import inspect_base_model
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import load_for_training, open_base_model, weight_index
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.errors import AdapterError
from vibevoice_finetune.export.merge import ExportRequest, export
from vibevoice_finetune.export.whole_model import Origin, save_model

PLAN = AdapterPlan(2, 4, 0.0, (), "lora", True, train_language_model=True)
INFO = AdapterInfo("/data/me/base", "abc", expects_voice_prompt=True, settings={"output_dir": "/data/me/out"})


def trained(base, seed=5, plan=PLAN):
    model = load_for_training(base, torch.float32, "cpu")
    attach(model, plan)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", ["tied", "untied", "native"])
def test_it_is_a_model_in_the_original_layout(kind: str, golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / ("untied" if kind == "untied" else "tied") / "checkpoint"
    if kind == "native":
        tokenizer = str(golden_dir / "tokenizer")
        export(ExportRequest(str(source), tmp_path / "base", None, 1.0, Layout.NATIVE, None, tokenizer))
        source = tmp_path / "base"
    base = open_base_model(str(source))
    model = trained(base)
    save_model(model, PLAN, tmp_path / "model", Origin(base, torch.float32), INFO)
    found = open_base_model(str(tmp_path / "model"))
    assert found.layout is Layout.ORIGINAL
    stored = dict(read_tensors(weight_index(found).tensors))
    before = dict(read_tensors(weight_index(base).tensors))
    assert stored.keys() == before.keys()
    assert ("lm_head.weight" in stored) == (kind == "untied")
    merge(model)  # what the run computed with, LoRA of the head included
    now = dict(model.named_parameters())
    for name, tensor in stored.items():
        if name.startswith(("model.audio_tower", "model.semantic_tokenizer", "model.latent")):
            assert torch.equal(tensor, before[name]), name
        else:
            torch.testing.assert_close(tensor, now[name].data, msg=name)
    assert not torch.equal(stored["model.language_model.norm.weight"], before["model.language_model.norm.weight"])
    lines = "\n".join(inspect_base_model(found, base).lines())
    assert "language model: all weights" in lines
    assert "the ComfyUI nodes" in lines
    assert "/data/me" not in "".join(path.read_text() for path in (tmp_path / "model").glob("*.[jm][sd]*"))


def test_trained_tensors_are_written_as_the_forward_pass_used_them(golden_dir: Path, tmp_path: Path) -> None:
    base = open_base_model(str(golden_dir / "tied" / "checkpoint"))
    model = trained(base)
    save_model(model, PLAN, tmp_path / "model", Origin(base, torch.bfloat16), INFO)
    stored = dict(read_tensors(weight_index(open_base_model(str(tmp_path / "model"))).tensors))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert torch.equal(stored[name], dict(model.named_parameters())[name].to(torch.bfloat16))
    assert json.loads((tmp_path / "model" / "training.json").read_text())["trained"]["train_language_model"] is True


def test_the_old_model_stays_where_the_new_one_is_not_finite(golden_dir: Path, tmp_path: Path) -> None:
    base = open_base_model(str(golden_dir / "tied" / "checkpoint"))
    model = trained(base)
    save_model(model, PLAN, tmp_path / "model", Origin(base, torch.float32), INFO)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = float("nan")
    with pytest.raises(AdapterError, match=r"tensor model\.language_model\.norm\.weight has values that are not"):
        save_model(model, PLAN, tmp_path / "model", Origin(base, torch.float32), INFO)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == kept
