"""A checkpoint's `config.json` in its two layouts, and the way from one to the other.

Why: both layouts say ``model_type: vibevoice``, and transformers, given an original `config.json`, raises nothing and
builds a model of default sizes. So the layout is told by the keys, and every value of an original configuration is
either carried over, known to be the one that transformers' classes compute with, or refused with its name.

In: the parsed JSON and what to call its file in messages. Out: a `VibeVoiceConfig`, or the original's dictionary.
"""

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Qwen2Config,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerEncoderConfig,
    VibeVoiceConfig,
    VibeVoiceDiffusionHeadConfig,
)

from vibevoice_finetune.errors import CheckpointError

Json = dict[str, Any]

NUM_TRAIN_TIMESTEPS = 1000
GUIDANCE_SCALE = 1.3
NUM_DIFFUSION_STEPS = 10
# The original draws the sigma-VAE's scale with `fix_std / 0.8`; the native configuration keeps the quotient.
_STD_DIVISOR = 0.8


class Layout(StrEnum):
    """How a checkpoint names its tensors and writes its configuration."""

    ORIGINAL = "original"
    NATIVE = "native"


_ORIGINAL_SECTIONS = (
    "acoustic_tokenizer_config",
    "semantic_tokenizer_config",
    "decoder_config",
    "diffusion_head_config",
)
_NATIVE_SECTIONS = ("audio_config", "semantic_model_config", "text_config", "diffusion_head_config")

# What transformers' classes compute, whatever an original configuration says: any other value is refused.
_TOKENIZER_FIXED: Json = {
    "causal": True,
    "channels": 1,
    "conv_bias": True,
    "conv_norm": "none",
    "corpus_normalize": 0.0,
    "disable_last_norm": True,
    "layernorm": "RMSNorm",
    "layernorm_elementwise_affine": True,
    "mixer_layer": "depthwise_conv",
    "pad_mode": "constant",
}
_ACOUSTIC_FIXED: Json = _TOKENIZER_FIXED | {"std_dist_type": "gaussian"}
_SEMANTIC_FIXED: Json = _TOKENIZER_FIXED | {"std_dist_type": "none"}
_HEAD_FIXED: Json = {
    "ddpm_beta_schedule": "cosine",
    "ddpm_num_steps": NUM_TRAIN_TIMESTEPS,
    "diffusion_type": "ddpm",
    "prediction_type": "v_prediction",
}
# What an original configuration has no word for: a native one with another value cannot be written as original.
_NATIVE_ONLY: dict[str, Json] = {
    "audio_config": {"channels": 1, "kernel_size": 7, "hidden_act": "gelu", "ffn_expansion": 4},
    "semantic_model_config": {"channels": 1, "kernel_size": 7, "hidden_act": "gelu", "ffn_expansion": 4},
    "diffusion_head_config": {
        "hidden_act": "silu",
        "frequency_embedding_size": 256,
        "diffusion_max_period": 10000,
        "mlp_bias": False,
    },
}
# Fields of Qwen2's configuration that both layouts write under one name.
_TEXT_FIELDS = (
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "max_window_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
)
_TEXT_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
)


class Parts(NamedTuple):
    """The four configurations within a `VibeVoiceConfig`, which types them only as "a dictionary, or something"."""

    audio: VibeVoiceAcousticTokenizerConfig
    semantic: VibeVoiceAcousticTokenizerEncoderConfig
    text: Qwen2Config
    head: VibeVoiceDiffusionHeadConfig


def parts(config: VibeVoiceConfig) -> Parts:
    """The configurations of the acoustic tokenizer, semantic encoder, language model and diffusion head."""
    return Parts(
        audio=cast(VibeVoiceAcousticTokenizerConfig, config.audio_config),
        semantic=cast(VibeVoiceAcousticTokenizerEncoderConfig, config.semantic_model_config),
        text=cast(Qwen2Config, config.text_config),
        head=cast(VibeVoiceDiffusionHeadConfig, config.diffusion_head_config),
    )


def layout_of(raw: Mapping[str, Any], where: str) -> Layout:
    """Tell the layout of a parsed `config.json` by its keys.

    Raises:
        CheckpointError: it is the configuration of another model, or of a VibeVoice that cannot be tuned here.
    """
    model_type = raw.get("model_type")
    if model_type == "vibevoice_streaming":
        raise CheckpointError(
            f"{where}: not VibeVoice as it is tuned here: found model_type 'vibevoice_streaming' (VibeVoice-Realtime), "
            "whose speech tokenizer streams and which has no semantic tokenizer; "
            "give a VibeVoice 1.5B or 7B checkpoint"
        )
    if model_type != "vibevoice":
        found = "no model_type" if model_type is None else f"model_type {model_type!r}"
        raise CheckpointError(
            f"{where}: not VibeVoice: found {found}, expected 'vibevoice'; "
            "give a VibeVoice checkpoint, for example microsoft/VibeVoice-1.5B"
        )
    if all(section in raw for section in _ORIGINAL_SECTIONS):
        return Layout.ORIGINAL
    if all(section in raw for section in _NATIVE_SECTIONS):
        return Layout.NATIVE
    raise CheckpointError(
        f"{where}: the configuration is in neither layout: expected either {', '.join(_ORIGINAL_SECTIONS)} (original) "
        f"or {', '.join(_NATIVE_SECTIONS)} (transformers); found {', '.join(sorted(raw))}"
    )


def read_config(raw: Mapping[str, Any], where: str) -> VibeVoiceConfig:
    """The configuration of a checkpoint of either layout.

    Raises:
        CheckpointError: it is no VibeVoice configuration, or one that transformers' classes cannot express.
    """
    if layout_of(raw, where) is Layout.ORIGINAL:
        return config_to_native(raw, where)
    return _build(copy.deepcopy(dict(raw)), where)


def config_to_native(raw: Mapping[str, Any], where: str) -> VibeVoiceConfig:
    """Translate an original `config.json`.

    Args:
        raw: the parsed JSON.
        where: what to call it in messages.

    Raises:
        CheckpointError: a key is missing, or has a value that transformers' classes cannot express.
    """
    sections = {name: _Section(raw, name, where) for name in _ORIGINAL_SECTIONS}
    head = sections["diffusion_head_config"]
    text = sections["decoder_config"]
    acoustic = sections["acoustic_tokenizer_config"]
    semantic = sections["semantic_tokenizer_config"]
    acoustic.expect(_ACOUSTIC_FIXED)
    semantic.expect(_SEMANTIC_FIXED)
    head.expect(_HEAD_FIXED)
    text.expect({"model_type": "qwen2"})
    acoustic.expect(
        {
            "decoder_n_filters": acoustic.need("encoder_n_filters"),
            "decoder_ratios": acoustic.need("encoder_ratios"),
        }
    )
    if acoustic.values.get("decoder_depths") is not None:
        acoustic.expect({"decoder_depths": "-".join(reversed(str(acoustic.need("encoder_depths")).split("-")))})
    acoustic_dim = acoustic.need("vae_dim")
    head.expect({"hidden_size": text.need("hidden_size"), "latent_size": acoustic_dim, "speech_vae_dim": acoustic_dim})

    native: Json = {
        "model_type": "vibevoice",
        "architectures": ["VibeVoiceForConditionalGeneration"],
        "audio_config": _tokenizer_to_native(acoustic, "vibevoice_acoustic_tokenizer")
        | {"vae_std": acoustic.need("fix_std") / _STD_DIVISOR},
        "semantic_model_config": _tokenizer_to_native(semantic, "vibevoice_acoustic_tokenizer_encoder"),
        "text_config": _text_to_native(text),
        "diffusion_head_config": {
            "model_type": "vibevoice_diffusion",
            "hidden_size": head.need("hidden_size"),
            "latent_size": acoustic_dim,
            "num_hidden_layers": head.need("head_layers"),
            "intermediate_size": int(head.need("hidden_size") * head.need("head_ffn_ratio")),
            "rms_norm_eps": head.need("rms_norm_eps"),
        },
    }
    if raw.get("torch_dtype") is not None:
        native["dtype"] = raw["torch_dtype"]
    return _build(native, where)


def config_to_original(config: VibeVoiceConfig) -> Json:
    """Write a configuration as the original's `config.json`.

    `tie_word_embeddings` stands at the top level too: the original's readers look there, and tie by default.

    Raises:
        CheckpointError: the configuration has a value for which the original layout has no word.
    """
    for section, fixed in _NATIVE_ONLY.items():
        values = getattr(config, section).to_dict()
        for key, expected in fixed.items():
            if values[key] != expected:
                raise CheckpointError(
                    f"{section}.{key} is {values[key]!r}; the original layout can only express {expected!r}; "
                    "keep the native layout for this model"
                )
    audio, semantic, text_config, head = parts(config)
    dtype = None if config.dtype is None else str(config.dtype).removeprefix("torch.")
    text = _text_to_original(text_config, dtype)
    ratios = list(reversed(audio.downsampling_ratios))
    original: Json = {
        "architectures": ["VibeVoiceForConditionalGeneration"],
        "model_type": "vibevoice",
        "tie_word_embeddings": text["tie_word_embeddings"],
        "acoustic_vae_dim": audio.hidden_size,
        "semantic_vae_dim": semantic.hidden_size,
        "acoustic_tokenizer_config": _tokenizer_to_original(audio, "vibevoice_acoustic_tokenizer")
        | {
            "std_dist_type": "gaussian",
            "fix_std": round(audio.vae_std * _STD_DIVISOR, 12),
            "decoder_depths": None,
            "decoder_n_filters": audio.num_filters,
            "decoder_ratios": ratios,
        },
        "semantic_tokenizer_config": _tokenizer_to_original(semantic, "vibevoice_semantic_tokenizer")
        | {"std_dist_type": "none", "fix_std": 0},
        "decoder_config": text,
        "diffusion_head_config": _HEAD_FIXED
        | {
            "ddpm_batch_mul": 4,
            "ddpm_num_inference_steps": 20,
            "head_ffn_ratio": head.intermediate_size / head.hidden_size,
            "head_layers": head.num_hidden_layers,
            "hidden_size": head.hidden_size,
            "latent_size": head.latent_size,
            "model_type": "vibevoice_diffusion_head",
            "rms_norm_eps": head.rms_norm_eps,
            "speech_vae_dim": head.latent_size,
        },
    }
    if dtype is not None:
        original["torch_dtype"] = dtype
    return original


def generation_settings(config: VibeVoiceConfig) -> Json:
    """What generation needs beside the configuration, as in transformers' own conversion of the released models."""
    return {
        "do_sample": False,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "max_length": parts(config).text.max_position_embeddings,
        "guidance_scale": GUIDANCE_SCALE,
        "num_diffusion_steps": NUM_DIFFUSION_STEPS,
        "noise_scheduler_class": "DPMSolverMultistepScheduler",
        "noise_scheduler_config": {
            "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "v_prediction",
        },
    }


class _Section:
    """One section of an original configuration; knows how to name itself in a message."""

    def __init__(self, raw: Mapping[str, Any], name: str, where: str) -> None:
        values = raw.get(name)
        if not isinstance(values, dict):
            raise CheckpointError(f"{where}: {name} is {values!r}; expected an object")
        self.name, self.where, self.values = name, where, values

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise CheckpointError(f"{self.where}: {self.name}.{key} is missing; a VibeVoice configuration has it")
        return self.values[key]

    def expect(self, fixed: Mapping[str, Any]) -> None:
        """Refuse what is there and differs; what is absent has the value by default."""
        for key, expected in fixed.items():
            if key in self.values and self.values[key] != expected:
                raise CheckpointError(
                    f"{self.where}: {self.name}.{key} is {self.values[key]!r}; "
                    f"transformers' VibeVoice classes can only express {expected!r}, so this model cannot be loaded"
                )


def _build(native: Json, where: str) -> VibeVoiceConfig:
    try:
        config: VibeVoiceConfig = VibeVoiceConfig.from_dict(native)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{where}: the configuration is not valid: {' '.join(str(error).split())}") from error
    audio, semantic, _, _ = parts(config)
    if audio.hop_length != semantic.hop_length:
        raise CheckpointError(
            f"{where}: the acoustic tokenizer makes a frame of {audio.hop_length} samples, the semantic one of "
            f"{semantic.hop_length}; expected the same"
        )
    return config


def _tokenizer_to_native(section: _Section, model_type: str) -> Json:
    try:
        depths = [int(depth) for depth in str(section.need("encoder_depths")).split("-")]
    except ValueError as error:
        raise CheckpointError(
            f"{section.where}: {section.name}.encoder_depths is {section.values['encoder_depths']!r}; "
            "expected numbers joined by '-', such as '3-3-3-3-3-3-8'"
        ) from error
    ratios = section.need("encoder_ratios")
    if len(depths) != len(ratios) + 1:
        raise CheckpointError(
            f"{section.where}: {section.name} has {len(depths)} encoder_depths and {len(ratios)} encoder_ratios; "
            "expected one depth more than ratios"
        )
    return {
        "model_type": model_type,
        "channels": 1,
        "kernel_size": 7,
        "hidden_size": section.need("vae_dim"),
        "num_filters": section.need("encoder_n_filters"),
        "depths": depths,
        "downsampling_ratios": list(reversed(ratios)),
        "rms_norm_eps": section.need("layernorm_eps"),
        "layer_scale_init_value": section.need("layer_scale_init_value"),
        "initializer_range": section.need("weight_init_value"),
    }


def _tokenizer_to_original(config: VibeVoiceAcousticTokenizerConfig, model_type: str) -> Json:
    return _TOKENIZER_FIXED | {
        "model_type": model_type,
        "vae_dim": config.hidden_size,
        "encoder_n_filters": config.num_filters,
        "encoder_depths": "-".join(str(depth) for depth in config.depths),
        "encoder_ratios": list(reversed(config.downsampling_ratios)),
        "layernorm_eps": config.rms_norm_eps,
        "layer_scale_init_value": config.layer_scale_init_value,
        "weight_init_value": config.initializer_range,
    }


def _text_to_native(section: _Section) -> Json:
    for key in _TEXT_REQUIRED:
        section.need(key)
    values = {key: section.values[key] for key in _TEXT_FIELDS if key in section.values}
    # Written out, because the native default (10,000) is not what the released models have (1,000,000).
    rope = {"rope_type": "default", "rope_theta": section.values["rope_theta"]}
    scaling = section.values.get("rope_scaling")
    if scaling is not None:
        rope |= {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    return values | {"model_type": "qwen2", "rope_parameters": rope}


def _text_to_original(config: Qwen2Config, dtype: str | None) -> Json:
    values = {key: getattr(config, key) for key in _TEXT_FIELDS}
    rope = dict(cast(Json, config.rope_parameters))
    theta = rope.pop("rope_theta")
    scaling = None if rope["rope_type"] == "default" else rope
    text = values | {"model_type": "qwen2", "rope_theta": theta, "rope_scaling": scaling}
    return text if dtype is None else text | {"torch_dtype": dtype}
