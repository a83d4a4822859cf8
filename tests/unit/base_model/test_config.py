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
from vibevoice_finetune.errors import BaseModelError

Json = dict[str, Any]


@pytest.fixture(params=["tied", "untied"])
def raw(request: pytest.FixtureRequest, golden_dir: Path) -> Json:
    found: Json = json.loads((golden_dir / request.param / "checkpoint" / "config.json").read_text())
    return found


def test_a_stage_without_blocks_is_allowed(golden_dir: Path) -> None:
    """A small codec saves its time at the full rate, where a block costs the most."""
    raw = json.loads((golden_dir / "tied" / "checkpoint" / "config.json").read_text())
    raw["acoustic_tokenizer_config"]["encoder_depths"] = "0-1-3-2"
    audio = part_configs(config_to_native(raw, "config.json")).audio
    assert list(audio.depths) == [0, 1, 3, 2]


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
    with pytest.raises(BaseModelError) as refused:
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
    with pytest.raises(BaseModelError, match=rf"{section}\.{key} is missing"):
        config_to_native(raw, "config.json")


def test_nonsense_is_refused(raw: Json) -> None:
    broken = copy.deepcopy(raw)
    broken["acoustic_tokenizer_config"]["encoder_depths"] = "3-x"
    with pytest.raises(BaseModelError, match="encoder_depths is '3-x'"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["semantic_tokenizer_config"]["encoder_depths"] = "1-1"
    with pytest.raises(BaseModelError, match="2 encoder_depths and 3 encoder_ratios"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["decoder_config"]["hidden_size"] = "wide"
    with pytest.raises(BaseModelError, match=r"decoder_config\.hidden_size is 'wide'"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["semantic_tokenizer_config"]["encoder_ratios"] = [5, 4, 4]
    with pytest.raises(BaseModelError, match="frame"):
        config_to_native(broken, "config.json")
    broken = copy.deepcopy(raw)
    broken["decoder_config"] = 3
    with pytest.raises(BaseModelError, match="decoder_config is 3"):
        config_to_native(broken, "config.json")


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"model_type": "qwen2"}, "not VibeVoice: found model_type 'qwen2'"),
        ({}, "not VibeVoice: found no model_type"),
        ({"model_type": ["vibevoice"]}, r"found model_type \['vibevoice'\]"),
        ({"model_type": "vibevoice_streaming"}, "this is VibeVoice-Realtime"),
        ({"model_type": "vibevoice", "architectures": ["VibeVoiceForASRTraining"]}, "this is VibeVoice-ASR"),
        ({"model_type": "vibevoice_asr"}, "this is VibeVoice-ASR"),
        ({"model_type": "vibevoice_acoustic_tokenizer"}, "this is a speech tokenizer of VibeVoice alone"),
        ({"model_type": "vibevoice", "decoder_config": {}}, "in neither layout"),
    ],
)
def test_other_models_are_refused(raw: Json, found: str) -> None:
    with pytest.raises(BaseModelError, match=found):
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
    with pytest.raises(BaseModelError, match=rf"{section}\.{key} is {value!r}"):
        config_to_original(read_config(native, "config.json"))


def test_another_language_model_is_refused(raw: Json) -> None:
    native = config_to_native(raw, "config.json").to_dict()
    native["text_config"] = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4}
    with pytest.raises(BaseModelError, match="text_config is of model_type 'llama'; expected 'qwen2'"):
        read_config(native, "config.json")


def test_generation_settings(raw: Json) -> None:
    settings = generation_settings(config_to_native(raw, "config.json"))
    assert settings["guidance_scale"] == 1.3
    assert settings["num_diffusion_steps"] == 10
    assert settings["noise_scheduler_class"] == "DPMSolverMultistepScheduler"
    assert settings["noise_scheduler_config"]["beta_schedule"] == "squaredcos_cap_v2"
    assert settings["noise_scheduler_config"]["prediction_type"] == "v_prediction"
    assert settings["eos_token_id"] == settings["pad_token_id"] == 151643


@pytest.mark.parametrize("section", ["acoustic_tokenizer_config", "decoder_config", "diffusion_head_config"])
def test_a_missing_section_is_named(raw: Json, section: str) -> None:
    del raw[section]
    with pytest.raises(BaseModelError, match=f"config.json: lacks {section}; download the file again"):
        read_config(raw, "config.json")


WHOLE = ("64", 1.5, True, None, [64], {"a": 1}, 0, -1, 10**9, float("nan"))
NUMBER = ("1e-5", True, [1e-5], float("nan"), float("inf"), -1.0, 10**30)
WRONG = [
    *(("decoder_config", key, WHOLE) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")),
    *(("decoder_config", key, WHOLE) for key in ("intermediate_size", "max_position_embeddings", "vocab_size")),
    ("decoder_config", "rms_norm_eps", NUMBER),
    ("decoder_config", "rope_theta", NUMBER),
    ("decoder_config", "tie_word_embeddings", ("true", 1, 0, [])),
    ("decoder_config", "hidden_act", ("swoosh", 3, None, [])),
    ("decoder_config", "rope_scaling", ("linear", 2.0, ["a"], {"type": "swirl"}, {"type": "linear", "factor": "2"})),
    ("decoder_config", "attention_dropout", ("0", -0.1, 1.0)),
    ("acoustic_tokenizer_config", "vae_dim", WHOLE),
    ("acoustic_tokenizer_config", "fix_std", ("0.5", True, [0.5], float("nan"), float("inf"), -1.0)),
    ("acoustic_tokenizer_config", "layernorm_eps", NUMBER),
    ("semantic_tokenizer_config", "encoder_n_filters", WHOLE),
    ("semantic_tokenizer_config", "encoder_depths", ("", "1--1-1-1", "3-x", [1, 1, 1, 1], 3, "1-1", "9" * 50)),
    ("semantic_tokenizer_config", "encoder_ratios", ([], [0, 1, 2], ["2"], "2-4-5", [True, 2, 2], [10**6, 1, 1])),
    ("diffusion_head_config", "head_layers", WHOLE),
    ("diffusion_head_config", "head_ffn_ratio", ("3", True, float("nan"), 0, -3, 1e9)),
    ("diffusion_head_config", "rms_norm_eps", NUMBER),
]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(section, key, value) for section, key, values in WRONG for value in values],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_value_is_named_by_its_key(raw: Json, section: str, key: str, value: object) -> None:
    raw[section][key] = value
    with pytest.raises(BaseModelError) as refused:
        read_config(raw, "here/config.json")
    message = str(refused.value)
    assert message.startswith("here/config.json: ")
    assert f"{section}.{key}" in message or f"{section} has" in message
    assert len(message) < 500
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("decoder_config", "num_attention_heads", 5, r"num_attention_heads is 5; expected a divisor of .*hidden_size"),
        ("decoder_config", "num_key_value_heads", 3, r"num_key_value_heads is 3; expected a divisor of .*attention"),
        ("diffusion_head_config", "hidden_size", 99, r"diffusion_head_config\.hidden_size is 99"),
        ("diffusion_head_config", "latent_size", 99, r"diffusion_head_config\.latent_size is 99"),
        ("semantic_tokenizer_config", "encoder_ratios", [5, 4, 4], r"encoder_ratios makes a frame of .* samples"),
    ],
)
def test_sizes_that_do_not_fit_each_other(raw: Json, section: str, key: str, value: object, named: str) -> None:
    raw[section][key] = value
    with pytest.raises(BaseModelError, match=named):
        read_config(raw, "config.json")


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("text_config", "hidden_size", "64", r"text_config\.hidden_size is '64'; expected a whole number"),
        ("text_config", "hidden_act", "swoosh", r"text_config\.hidden_act is 'swoosh'; expected one of"),
        ("text_config", "num_attention_heads", 5, r"text_config\.num_attention_heads is 5; expected a divisor"),
        ("text_config", "rope_parameters", [1], r"text_config\.rope_parameters is \[1\]; expected an object"),
        ("text_config", "dtype", "float33", r"text_config\.dtype is 'float33'; expected one of float32"),
        ("audio_config", "downsampling_ratios", [2, "4"], r"audio_config\.downsampling_ratios is \[2, '4'\]"),
        ("audio_config", "depths", [1], r"audio_config\.depths is \[1\]; expected 4 numbers"),
        ("audio_config", "model_type", "dac", r"audio_config is of model_type 'dac'"),
        ("diffusion_head_config", "latent_size", 99, r"latent_size is 99; expected 6, as audio_config\.hidden_size"),
        ("diffusion_head_config", "hidden_size", 99, r"hidden_size is 99; expected \d+, as text_config\.hidden_size"),
        ("diffusion_head_config", "frequency_embedding_size", 255, "255; expected an even number"),
    ],
)
def test_native_values_are_named_too(golden_dir: Path, section: str, key: str, value: object, named: str) -> None:
    raw = json.loads((golden_dir / "tied" / "checkpoint" / "config.json").read_text())
    native = config_to_native(raw, "config.json").to_dict()
    native[section][key] = value
    with pytest.raises(BaseModelError, match=named):
        read_config(native, "config.json")


def test_a_section_of_another_kind_is_named(raw: Json) -> None:
    native = config_to_native(raw, "config.json").to_dict()
    native["audio_config"] = None
    with pytest.raises(BaseModelError, match=r"config\.json: audio_config is None; expected an object"):
        read_config(native, "config.json")
