"""Original and native configurations: carried over, or refused by name."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from vibevoice_finetune.base_model.config import (
    Layout,
    config_to_native,
    config_to_original,
    generation_settings,
    layout_of,
    part_configs,
    read_config,
)
from vibevoice_finetune.base_model.random_model import original_config
from vibevoice_finetune.errors import CheckpointError

Json = dict[str, Any]


@pytest.fixture(params=["tied", "untied"])
def raw(request: pytest.FixtureRequest, golden_dir: Path) -> Json:
    found: Json = json.loads((golden_dir / request.param / "checkpoint" / "config.json").read_text())
    return found


def test_values_by_hand(golden_dir: Path) -> None:
    raw = json.loads((golden_dir / "tied" / "checkpoint" / "config.json").read_text())
    audio, semantic, text, head = part_configs(config_to_native(raw, "config.json"))
    assert list(audio.downsampling_ratios) == [2, 4, 5]  # reversed
    assert list(audio.depths) == [2, 1, 3, 2]
    assert (audio.num_filters, audio.hidden_size, audio.kernel_size) == (6, 6, 7)
    assert audio.vae_std == 0.625  # 0.5 / 0.8
    assert audio.rms_norm_eps == 1e-5
    assert (semantic.num_filters, semantic.hidden_size) == (4, 10)
    assert text.rope_parameters == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert (head.hidden_size, head.intermediate_size, head.num_hidden_layers) == (64, 192, 2)
    assert head.latent_size == 6


def test_there_and_back(raw: Json) -> None:
    back = config_to_original(config_to_native(raw, "config.json"))
    # The one addition: readers of the original layout look for it at the top level, and tie by default.
    assert back == raw | {"tie_word_embeddings": raw["decoder_config"]["tie_word_embeddings"]}


def test_native_there_and_back(raw: Json) -> None:
    config = config_to_native(raw, "config.json")
    again = read_config(json.loads(json.dumps(config.to_dict())), "config.json")
    assert again.to_dict() == config.to_dict()
    assert config_to_original(again) == config_to_original(config)


def test_layouts_are_told_apart(raw: Json) -> None:
    assert layout_of(raw, "config.json") is Layout.ORIGINAL
    assert layout_of(config_to_native(raw, "config.json").to_dict(), "config.json") is Layout.NATIVE


def test_published_values() -> None:
    config = config_to_native(original_config("7b"), "config.json")
    audio, semantic, text, head = part_configs(config)
    assert audio.hop_length == semantic.hop_length == 3200
    assert (text.hidden_size, text.intermediate_size, text.vocab_size) == (3584, 18944, 152064)
    assert text.rope_parameters["rope_theta"] == 1_000_000.0
    assert not text.tie_word_embeddings
    assert not config.tie_word_embeddings
    assert head.intermediate_size == 3 * 3584
    assert (config.audio_bos_token_id, config.audio_eos_token_id, config.audio_token_id) == (151652, 151653, 151654)


def test_rope_scaling_is_carried_over(raw: Json) -> None:
    raw["decoder_config"]["rope_scaling"] = {"type": "linear", "factor": 2.0}
    config = config_to_native(raw, "config.json")
    theta = raw["decoder_config"]["rope_theta"]
    assert part_configs(config).text.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": theta}
    assert config_to_original(config)["decoder_config"]["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("acoustic_tokenizer_config", "causal", False),
        ("semantic_tokenizer_config", "causal", False),
        ("acoustic_tokenizer_config", "channels", 2),
        ("acoustic_tokenizer_config", "conv_bias", False),
        ("acoustic_tokenizer_config", "conv_norm", "weight_norm"),
        ("acoustic_tokenizer_config", "disable_last_norm", False),
        ("semantic_tokenizer_config", "layernorm", "LN"),
        ("acoustic_tokenizer_config", "layernorm_elementwise_affine", False),
        ("semantic_tokenizer_config", "mixer_layer", "conv"),
        ("acoustic_tokenizer_config", "pad_mode", "reflect"),
        ("acoustic_tokenizer_config", "corpus_normalize", 0.5),
        ("acoustic_tokenizer_config", "std_dist_type", "fix"),
        ("semantic_tokenizer_config", "std_dist_type", "gaussian"),
        ("acoustic_tokenizer_config", "decoder_n_filters", 99),
        ("acoustic_tokenizer_config", "decoder_ratios", [2, 2]),
        ("acoustic_tokenizer_config", "decoder_depths", "9-9-9-9"),
        ("diffusion_head_config", "ddpm_beta_schedule", "linear"),
        ("diffusion_head_config", "ddpm_num_steps", 500),
        ("diffusion_head_config", "diffusion_type", "flow"),
        ("diffusion_head_config", "prediction_type", "epsilon"),
        ("diffusion_head_config", "latent_size", 99),
        ("diffusion_head_config", "hidden_size", 99),
        ("decoder_config", "model_type", "llama"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(raw: Json, section: str, key: str, value: object) -> None:
    raw[section][key] = value
    with pytest.raises(CheckpointError) as refused:
        config_to_native(raw, "here/config.json")
    assert f"{section}.{key} is {value!r}" in str(refused.value)
    assert "here/config.json" in str(refused.value)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("acoustic_tokenizer_config", "vae_dim"),
        ("acoustic_tokenizer_config", "fix_std"),
        ("semantic_tokenizer_config", "encoder_ratios"),
        ("decoder_config", "rope_theta"),
        ("decoder_config", "tie_word_embeddings"),
        ("diffusion_head_config", "head_layers"),
    ],
)
def test_missing_keys_are_named(raw: Json, section: str, key: str) -> None:
    del raw[section][key]
    with pytest.raises(CheckpointError, match=rf"{section}\.{key} is missing"):
        config_to_native(raw, "config.json")


def test_nonsense_is_refused(raw: Json) -> None:
    broken = copy.deepcopy(raw)
    broken["acoustic_tokenizer_config"]["encoder_depths"] = "3-x"
    with pytest.raises(CheckpointError, match="encoder_depths is '3-x'"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["semantic_tokenizer_config"]["encoder_depths"] = "1-1"
    with pytest.raises(CheckpointError, match="2 encoder_depths and 3 encoder_ratios"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["decoder_config"]["hidden_size"] = "wide"
    with pytest.raises(CheckpointError, match=r"decoder_config\.hidden_size is 'wide'"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["semantic_tokenizer_config"]["encoder_ratios"] = [5, 4, 4]
    with pytest.raises(CheckpointError, match="frame"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["decoder_config"] = 3
    with pytest.raises(CheckpointError, match="decoder_config is 3"):
        config_to_native(broken, "config.json")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"model_type": "qwen2"}, "not VibeVoice: found model_type 'qwen2'"),
        ({}, "not VibeVoice: found no model_type"),
        ({"model_type": "vibevoice_streaming"}, "VibeVoice-Realtime"),
        ({"model_type": "vibevoice", "decoder_config": {}}, "in neither layout"),
    ],
)
def test_other_models_are_refused(raw: Json, found: str) -> None:
    with pytest.raises(CheckpointError, match=found):
        layout_of(raw, "config.json")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("audio_config", "kernel_size", 5),
        ("semantic_model_config", "ffn_expansion", 2),
        ("diffusion_head_config", "mlp_bias", True),
        ("diffusion_head_config", "frequency_embedding_size", 128),
    ],
)
def test_what_the_original_cannot_say_is_refused(raw: Json, section: str, key: str, value: object) -> None:
    native = config_to_native(raw, "config.json").to_dict()
    native[section][key] = value
    with pytest.raises(CheckpointError, match=rf"{section}\.{key} is {value!r}"):
        config_to_original(read_config(native, "config.json"))


def test_another_language_model_is_refused(raw: Json) -> None:
    native = config_to_native(raw, "config.json").to_dict()
    native["text_config"] = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4}
    with pytest.raises(CheckpointError, match="text_config is of model_type 'llama'; expected 'qwen2'"):
        read_config(native, "config.json")


def test_generation_settings(raw: Json) -> None:
    settings = generation_settings(config_to_native(raw, "config.json"))
    assert settings["guidance_scale"] == 1.3
    assert settings["num_diffusion_steps"] == 10
    assert settings["noise_scheduler_class"] == "DPMSolverMultistepScheduler"
    assert settings["noise_scheduler_config"]["beta_schedule"] == "squaredcos_cap_v2"
    assert settings["noise_scheduler_config"]["prediction_type"] == "v_prediction"
    assert settings["eos_token_id"] == settings["pad_token_id"] == 151643
