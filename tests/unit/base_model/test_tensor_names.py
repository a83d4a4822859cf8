"""The two layouts' names, by hand, and every tensor there and back."""

import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vibevoice_finetune.base_model.config import Layout, config_to_native
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.random_model import Size, original_config
from vibevoice_finetune.base_model.tensor_names import to_native, to_original
from vibevoice_finetune.base_model.weights import index_weights, read_tensors, write_weights
from vibevoice_finetune.errors import BaseModelError

# Written by hand from the published checkpoints' names; `{n+1}` on the left is `{n}` on the right.
SPOTS = {
    "model.acoustic_tokenizer.encoder.downsample_layers.0.0.conv.conv.weight": (
        "model.audio_tower.encoder.stem.conv.conv.weight"
    ),
    "model.acoustic_tokenizer.encoder.downsample_layers.1.0.conv.conv.bias": (
        "model.audio_tower.encoder.conv_layers.0.conv.conv.bias"
    ),
    "model.semantic_tokenizer.encoder.downsample_layers.6.0.conv.conv.weight": (
        "model.semantic_tokenizer_encoder.conv_layers.5.conv.conv.weight"
    ),
    "model.acoustic_tokenizer.encoder.stages.0.2.mixer.conv.conv.conv.weight": (
        "model.audio_tower.encoder.stem.stage.2.mixer.conv.weight"
    ),
    "model.semantic_tokenizer.encoder.stages.6.7.mixer.conv.conv.conv.bias": (
        "model.semantic_tokenizer_encoder.conv_layers.5.stage.7.mixer.conv.bias"
    ),
    "model.acoustic_tokenizer.encoder.stages.10.11.ffn.linear1.weight": (
        "model.audio_tower.encoder.conv_layers.9.stage.11.ffn.linear1.weight"
    ),
    "model.acoustic_tokenizer.decoder.stages.0.7.ffn_gamma": "model.audio_tower.decoder.stem.stage.7.ffn_gamma",
    "model.acoustic_tokenizer.decoder.stages.1.0.gamma": "model.audio_tower.decoder.conv_layers.0.stage.0.gamma",
    "model.acoustic_tokenizer.decoder.stages.2.1.ffn_norm.weight": (
        "model.audio_tower.decoder.conv_layers.1.stage.1.ffn_norm.weight"
    ),
    "model.acoustic_tokenizer.decoder.upsample_layers.0.0.conv.conv.weight": (
        "model.audio_tower.decoder.stem.conv.conv.weight"
    ),
    "model.acoustic_tokenizer.decoder.upsample_layers.6.0.convtr.convtr.bias": (
        "model.audio_tower.decoder.conv_layers.5.convtr.convtr.bias"
    ),
    "model.acoustic_tokenizer.decoder.head.conv.conv.weight": "model.audio_tower.decoder.head.conv.weight",
    "model.semantic_tokenizer.encoder.head.conv.conv.bias": "model.semantic_tokenizer_encoder.head.conv.bias",
    "model.acoustic_connector.fc1.weight": "model.multi_modal_projector.linear_1.weight",
    "model.acoustic_connector.norm.weight": "model.multi_modal_projector.act.weight",
    "model.acoustic_connector.fc2.bias": "model.multi_modal_projector.linear_2.bias",
    "model.semantic_connector.fc1.bias": "model.semantic_connector.linear_1.bias",
    "model.semantic_connector.norm.weight": "model.semantic_connector.act.weight",
    "model.prediction_head.noisy_images_proj.weight": "model.diffusion_head.noisy_images_proj.weight",
    "model.prediction_head.cond_proj.weight": "model.diffusion_head.cond_proj.weight",
    "model.prediction_head.t_embedder.mlp.0.weight": "model.diffusion_head.timestep_proj.fc1.weight",
    "model.prediction_head.t_embedder.mlp.2.weight": "model.diffusion_head.timestep_proj.fc2.weight",
    "model.prediction_head.layers.3.adaLN_modulation.1.weight": "model.diffusion_head.layers.3.linear.weight",
    "model.prediction_head.layers.3.ffn.gate_proj.weight": "model.diffusion_head.layers.3.ffn.gate_proj.weight",
    "model.prediction_head.layers.0.norm.weight": "model.diffusion_head.layers.0.norm.weight",
    "model.prediction_head.final_layer.adaLN_modulation.1.weight": "model.diffusion_head.final_layer.linear_1.weight",
    "model.prediction_head.final_layer.linear.weight": "model.diffusion_head.final_layer.linear_2.weight",
    "model.speech_scaling_factor": "model.latent_scaling_factor",
    "model.speech_bias_factor": "model.latent_bias_factor",
    "model.language_model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
    "model.language_model.layers.27.self_attn.q_proj.bias": "model.language_model.layers.27.self_attn.q_proj.bias",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize("original", SPOTS)
def test_table_by_hand(original: str) -> None:
    assert to_native(original) == SPOTS[original]
    assert to_original(SPOTS[original]) == original


@pytest.mark.parametrize(
    "name",
    [
        "model.speech_scaling_factor_2",
        "model.acoustic_tokenizer.encoder.upsample_layers.0.0.conv.conv.weight",  # an encoder has no such layers
        "model.acoustic_tokenizer.encoder.stages.x.0.gamma",
        "model.tts_language_model.layers.0.mlp.up_proj.weight",  # VibeVoice-Realtime
        "transformer.wte.weight",
        "",
    ],
)
def test_names_outside_the_table_are_refused(name: str) -> None:
    with pytest.raises(BaseModelError, match="no tensor of a VibeVoice model"):
        to_native(name)
    with pytest.raises(BaseModelError, match="no tensor of a VibeVoice model"):
        to_original(name)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_golden_weights_there_and_back_are_the_same_bytes(kind: str, golden_dir: Path, tmp_path: Path) -> None:
    source = golden_dir / kind / "checkpoint"
    original = index_weights(source, Layout.ORIGINAL)
    assert original.unnamed == ()
    write_weights(tmp_path / "native", read_tensors(original.tensors))
    native = index_weights(tmp_path / "native", Layout.NATIVE)
    write_weights(tmp_path / "back", ((to_original(name), tensor) for name, tensor in read_tensors(native.tensors)))

    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert after[name].shape == tensor.shape  # 0-d stays 0-d
        assert after[name].numpy().tobytes() == tensor.numpy().tobytes(), name


@pytest.mark.parametrize(
    ("size", "num_tensors", "num_parameters_b"),
    [("1.5b", 1204, 2.70), ("7b", 1205, 9.34)],  # 1,205 with the output matrix, which a tied model has not
)
def test_every_name_at_full_size(size: Size, num_tensors: int, num_parameters_b: float) -> None:
    shapes = tensor_shapes(config_to_native(original_config(size), "test"))
    assert len(shapes) == num_tensors
    assert sum(map(math.prod, shapes.values())) / 1e9 == pytest.approx(num_parameters_b, abs=0.01)
    originals = {to_original(name) for name in shapes}
    assert len(originals) == num_tensors
    assert {to_native(name) for name in originals} == set(shapes)
    assert not any("audio_tower" in name or "diffusion_head" in name for name in originals)
