"""Every form of LoRA: it changes nothing at first, and is the same where it is loaded, merged or read by PEFT."""

import json
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

from tests.unit.small_model import INFO, outputs, plan, small_model, train_at_random
from vibevoice_finetune.adapters.apply import adapter_deltas, load_adapter
from vibevoice_finetune.adapters.attach import attach, merge, trainable_parameters
from vibevoice_finetune.adapters.compatibility import lines_for_adapter
from vibevoice_finetune.adapters.lora import fold, lora_layers, lora_start, starts
from vibevoice_finetune.adapters.read import open_adapter
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.errors import AdapterError, ArgumentError

FORMS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, approximated": {"init_lora_weights": "pissa_niter_16", "use_rslora": True},
    "olora": {"init_lora_weights": "olora"},
    "ranks": {"lora_rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 1}},
}


def apart(found: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of any output, as a share of its largest number."""
    return max(float((one - others[name]).abs().max() / one.abs().max()) for name, one in found.items())


@pytest.mark.parametrize("form", FORMS)
def test_saved_loaded_merged_and_read_by_peft(form: str, tmp_path: Path) -> None:
    chosen = plan(head="lora", **FORMS[form])
    model = small_model()
    before = outputs(model)
    torch.manual_seed(1)
    attach(model, chosen)
    assert apart(before, outputs(model)) < 5e-5, "it changes nothing at first"
    train_at_random(model)
    trained = outputs(model)
    assert all(apart({name: trained[name]}, before) > 0.01 for name in ("language model", "diffusion head"))
    save_adapter(model, chosen, tmp_path / "lora", INFO)

    loaded = small_model()
    summary = load_adapter(loaded, tmp_path / "lora")
    assert all(block.changes_base for block in summary.blocks)
    assert apart(trained, outputs(loaded)) < 5e-5
    merge(model)
    assert apart(trained, outputs(model)) < 5e-5

    plain = small_model()
    shapes = {name: tuple(value.shape) for name, value in plain.named_parameters()}
    deltas = adapter_deltas(tmp_path / "lora", shapes)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(deltas[name](parameter) if name in deltas else parameter)
    assert apart(trained, outputs(plain)) < 5e-5

    other = small_model()  # as the community's script does it: PEFT on the Qwen2 model, the head merged
    other.model.language_model = PeftModel.from_pretrained(parts.language_model(other), str(tmp_path / "lora"))
    name = "language model"
    assert apart({name: trained[name]}, outputs(other)) < 5e-5
    head = load_file(tmp_path / "lora" / "diffusion_head" / "model.safetensors")
    expected = parts.diffusion_head(model).layers[0].ffn.gate_proj.weight
    torch.testing.assert_close(head["layers.0.ffn.gate_proj.weight"], expected, rtol=1e-5, atol=1e-5)


def test_the_factor_of_rslora_is_said_as_an_alpha_that_every_program_knows(tmp_path: Path) -> None:
    """r 2, alpha 6: the factor is 6 / sqrt(2) = 4.243; alpha / r gives it with alpha = 6 · sqrt(2) = 8.485."""
    model = small_model()
    attach(model, plan(use_rslora=True))
    assert {layer.scaling["default"] for layer in lora_layers(model).values()} == {6 / math.sqrt(2)}
    save_adapter(model, plan(use_rslora=True), tmp_path / "lora", INFO)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert not config["use_rslora"]
    assert config["lora_alpha"] / config["r"] == pytest.approx(4.2426407, abs=1e-6)


def test_pissa_is_converted_as_peft_converts_it(tmp_path: Path) -> None:
    """PEFT's own conversion: twice the rank, the beginning with its sign turned beside what was learned."""
    chosen = plan(lora_target_modules=("q_proj",), init_lora_weights="pissa")
    model = small_model()
    attach(model, chosen)
    theirs = get_peft_model(
        parts.language_model(small_model()),
        LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], init_lora_weights="pissa"),
    )
    theirs.peft_config["default"].init_lora_weights = True
    theirs.save_pretrained(str(tmp_path / "begun"))
    theirs.peft_config["default"].init_lora_weights = "pissa"
    generator = torch.Generator().manual_seed(3)
    for ours, their in zip(lora_layers(model).values(), lora_layers(theirs).values(), strict=True):
        for side in ("lora_A", "lora_B"):
            mine, other = getattr(ours, side)["default"].weight, getattr(their, side)["default"].weight
            torch.testing.assert_close(mine.data, other.data)
            mine.data += torch.randn(mine.shape, generator=generator)
            other.data.copy_(mine.data)
    save_adapter(model, chosen, tmp_path / "ours", INFO)
    theirs.save_pretrained(str(tmp_path / "theirs"), path_initial_model_for_weight_conversion=str(tmp_path / "begun"))
    found = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    expected = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 4
        torch.testing.assert_close(found[name], tensor)


def test_what_pissa_takes_out_of_bf16_weights_is_exact_up_to_their_rounding() -> None:
    """PEFT rounds the matrices to bf16 after it has taken them out of the weights; here they stay float32."""
    model = small_model(torch.bfloat16)
    published = {name: value.clone() for name, value in model.named_parameters()}
    attach(model, plan(init_lora_weights="pissa"))
    for name, layer in lora_layers(parts.language_model(model)).items():
        start = lora_start(layer)
        assert start is not None
        assert {part.dtype for part in start} == {torch.float32}
        base = layer.get_base_layer().weight.float()
        whole = fold(base, *start, layer.scaling["default"])
        before = published[f"model.language_model.{name}.weight"].float()
        assert (whole - before).abs().max() <= base.abs().max() * 2**-8


def test_dora_begins_at_the_lengths_of_the_rows_in_float32() -> None:
    model = small_model(torch.bfloat16)
    attach(model, plan(use_dora=True))
    trained = trainable_parameters(model)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    layer = parts.language_model(model).layers[0].self_attn.q_proj
    found = layer.lora_magnitude_vector["default"].weight
    expected = layer.base_layer.weight.float().square().sum(dim=1).sqrt()
    torch.testing.assert_close(found.data, expected)


def test_half_of_dora_is_half_of_its_change(tmp_path: Path) -> None:
    chosen = plan(use_dora=True)
    model = small_model()
    attach(model, chosen)
    train_at_random(model)
    save_adapter(model, chosen, tmp_path / "lora", INFO)
    whole, half, none, base = (small_model() for _ in range(4))
    for one, scale in ((whole, 1.0), (half, 0.5), (none, 0.0)):
        load_adapter(one, tmp_path / "lora", scale=scale)
    changed = 0
    for (name, full), part, zero, before in zip(
        whole.named_parameters(), half.parameters(), none.parameters(), base.parameters(), strict=True
    ):
        torch.testing.assert_close(part, (full + before) / 2, msg=name)
        assert torch.equal(zero, before)
        changed += not torch.equal(full, before)
    assert changed == 4  # q_proj and down_proj of both layers
    lines = list(lines_for_adapter(open_adapter(tmp_path / "lora"), "FEATURE_EXTRACTION"))
    assert any("DoRA" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("no flag", "belongs to DoRA, and .* does not say use_dora"),
        ("no tensor", r"lora_magnitude_vector.* is missing"),
    ],
)
def test_half_a_dora_is_refused(change: str, said: str, tmp_path: Path) -> None:
    chosen = plan(use_dora=change == "no flag")
    model = small_model()
    attach(model, chosen)
    save_adapter(model, chosen, tmp_path / "lora", INFO)
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": change == "no tensor"}))
    with pytest.raises(AdapterError, match=said):
        open_adapter(tmp_path / "lora")


def test_a_run_that_goes_on_begins_where_it_began_not_where_this_machine_would() -> None:
    chosen = plan(head="lora", init_lora_weights="olora")
    first = small_model()
    attach(first, chosen)
    begun = {name: value + 0.01 for name, value in starts(first).items()}  # another machine's directions
    second = small_model()
    attach(second, chosen, begun)
    assert starts(second).keys() == begun.keys()
    assert all(torch.equal(value, begun[name]) for name, value in starts(second).items())
    assert apart(outputs(first), outputs(second)) < 5e-5
    again = small_model()
    attach(again, chosen, starts(first))
    for (name, value), other in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init_lora_weights": "pissa", "lora_r": 9}, r"begins with directions of the weights, of which .* has 8"),
        ({"lora_rank_pattern": {"k_proj": 4}}, r"--lora_rank_pattern k_proj: no layer of this name has LoRA"),
    ],
)
def test_what_cannot_be_attached_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        attach(small_model(), plan(lora_target_modules=("q_proj", "v_proj"), **changes))
