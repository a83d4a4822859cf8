"""A base model's `config.json` in its two layouts, and the way from one to the other.

Why: both layouts say ``model_type: vibevoice``, and transformers, given an original `config.json`, raises nothing and
builds a model of default sizes. So the layout is told by the keys, and every value of an original configuration is
either carried over, known to be the one that transformers' classes compute with, or refused with its name.

In: the parsed JSON and what to call its file in messages. Out: a `VibeVoiceConfig`, or the original's dictionary.
"""

import copy
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    Qwen2Config,
    VibeVoiceAcousticTokenizerConfig,
    VibeVoiceAcousticTokenizerEncoderConfig,
    VibeVoiceConfig,
    VibeVoiceDiffusionHeadConfig,
)

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.base_model.config_values import Words, check_fit, check_values
from vibevoice_finetune.base_model.original_config import (
    HEAD_FIXED,
    NUM_TRAIN_TIMESTEPS,
    SECTIONS,
    STD_DIVISOR,
    TEXT_FIELDS,
    TOKENIZER_FIXED,
    Json,
    native_values,
)
from vibevoice_finetune.base_model.stored_types import check_quantization_config
from vibevoice_finetune.errors import BaseModelError, shown
from vibevoice_finetune.files.json_objects import read_json_object

# What transformers raises for values that it cannot use, where `config_values` has no rule for them.
_REFUSALS = (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError)

GUIDANCE_SCALE = 1.3
NUM_DIFFUSION_STEPS = 10
NOISE_SCHEDULE = {
    "num_train_timesteps": NUM_TRAIN_TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


class Layout(StrEnum):
    """How a base model names its tensors and writes its configuration."""

    ORIGINAL = "original"
    NATIVE = "native"


_NATIVE_SECTIONS = ("audio_config", "semantic_model_config", "text_config", "diffusion_head_config")

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


class PartConfigs(NamedTuple):
    """The four configurations within a `VibeVoiceConfig`, which types them only as "a dictionary, or something"."""

    audio: VibeVoiceAcousticTokenizerConfig
    semantic: VibeVoiceAcousticTokenizerEncoderConfig
    text: Qwen2Config
    head: VibeVoiceDiffusionHeadConfig


def part_configs(config: VibeVoiceConfig) -> PartConfigs:
    """The configurations of the acoustic tokenizer, semantic encoder, language model and diffusion head."""
    return PartConfigs(
        audio=cast(VibeVoiceAcousticTokenizerConfig, config.audio_config),
        semantic=cast(VibeVoiceAcousticTokenizerEncoderConfig, config.semantic_model_config),
        text=cast(Qwen2Config, config.text_config),
        head=cast(VibeVoiceDiffusionHeadConfig, config.diffusion_head_config),
    )


def layout_of(raw: Mapping[str, Any], where: str) -> Layout:
    """Tell the layout of a parsed `config.json` by its keys.

    Raises:
        BaseModelError: it is the configuration of another model, or of a VibeVoice that cannot be tuned here.
    """
    other = _other_variant(raw)
    if other is not None:
        raise BaseModelError(
            f"{where}: this is {other}, another model than the VibeVoice that is tuned here; "
            "give a VibeVoice 1.5B or 7B model, for example microsoft/VibeVoice-1.5B"
        )
    model_type = raw.get("model_type")
    if model_type != "vibevoice":
        found = "no model_type" if model_type is None else f"model_type {shown(repr(model_type))[:120]}"
        raise BaseModelError(
            f"{where}: not VibeVoice: found {found}, expected 'vibevoice'; "
            "give a VibeVoice model, for example microsoft/VibeVoice-1.5B"
        )
    check_quantization_config(raw, where)
    missing = {
        Layout.ORIGINAL: [section for section in SECTIONS if section not in raw],
        Layout.NATIVE: [section for section in _NATIVE_SECTIONS if section not in raw],
    }
    layout = min(missing, key=lambda layout: len(missing[layout]))
    if not missing[layout]:
        return layout
    if len(missing[layout]) <= len(SECTIONS) // 2:
        raise BaseModelError(f"{where}: lacks {' and '.join(missing[layout])}; download the file again")
    raise BaseModelError(
        f"{where}: the configuration is in neither layout: expected either {', '.join(SECTIONS)} (original) "
        f"or {', '.join(_NATIVE_SECTIONS)} (transformers); found {shown(', '.join(sorted(raw)))}"
    )


def _other_variant(raw: Mapping[str, Any]) -> str | None:
    """The name of a model of the VibeVoice family that is not a 1.5B or 7B text-to-speech model."""
    named = f"{raw.get('model_type')} {raw.get('architectures')}".casefold()
    if "vibevoice" not in named:
        return None
    if "streaming" in named:
        return "VibeVoice-Realtime (its speech tokenizer streams, and it has no semantic tokenizer)"
    if "asr" in named:
        return "VibeVoice-ASR (it turns speech into text)"
    if raw.get("model_type") in ("vibevoice_acoustic_tokenizer", "vibevoice_acoustic_tokenizer_encoder"):
        return "a speech tokenizer of VibeVoice alone"
    return None


def read_config(raw: Mapping[str, Any], where: str) -> VibeVoiceConfig:
    """The configuration of a base model of either layout.

    Raises:
        BaseModelError: it is not a VibeVoice configuration, or one that transformers' classes cannot express.
    """
    if layout_of(raw, where) is Layout.ORIGINAL:
        return config_to_native(raw, where)
    return _build(copy.deepcopy(dict(raw)), Words(where, original=False))


def config_to_native(raw: Mapping[str, Any], where: str) -> VibeVoiceConfig:
    """The configuration that an original `config.json` describes; `where` is what to call it in messages.

    Raises:
        BaseModelError: a key is missing, or has a value that transformers' classes cannot express.
    """
    return _build(native_values(raw, where), Words(where, original=True))


def config_to_original(config: VibeVoiceConfig) -> Json:
    """Write a configuration as the original's `config.json`.

    `tie_word_embeddings` stands at the top level too: the original's readers look there, and tie by default.

    Raises:
        BaseModelError: the configuration has a value for which the original layout has no word.
    """
    for section, fixed in _NATIVE_ONLY.items():
        values = getattr(config, section).to_dict()
        for key, expected in fixed.items():
            if values[key] != expected:
                raise BaseModelError(
                    f"{section}.{key} is {values[key]!r}; the original layout can only express {expected!r}; "
                    "keep the native layout for this model"
                )
    audio, semantic, text_config, head = part_configs(config)
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
            "fix_std": round(audio.vae_std * STD_DIVISOR, 12),
            "decoder_depths": None,
            "decoder_n_filters": audio.num_filters,
            "decoder_ratios": ratios,
        },
        "semantic_tokenizer_config": _tokenizer_to_original(semantic, "vibevoice_semantic_tokenizer")
        | {"std_dist_type": "none", "fix_std": 0},
        "decoder_config": text,
        "diffusion_head_config": HEAD_FIXED
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
        "max_length": part_configs(config).text.max_position_embeddings,
        "guidance_scale": GUIDANCE_SCALE,
        "num_diffusion_steps": NUM_DIFFUSION_STEPS,
        "noise_scheduler_class": "DPMSolverMultistepScheduler",
        "noise_scheduler_config": dict(NOISE_SCHEDULE),
    }


def check_sampling_rate(folder: Path) -> None:
    """Refuse a `preprocessor_config.json` that asks for another sampling rate.

    Raises:
        BaseModelError: it does, or it is damaged.
    """
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return
    raw = read_json_object(path, BaseModelError, "download it again")
    section = raw.get("audio_processor", raw)
    if not isinstance(section, dict):
        raise BaseModelError(
            f"{path}: audio_processor is {shown(repr(section))[:120]}; expected an object; download the file again"
        )
    rate_hz = section.get("sampling_rate", SAMPLING_RATE_HZ)
    if rate_hz != SAMPLING_RATE_HZ:
        raise BaseModelError(
            f"{path}: sampling_rate is {shown(repr(rate_hz))[:120]}; VibeVoice and this program work at "
            f"{SAMPLING_RATE_HZ}"
        )


def check_schedule(folder: Path) -> None:
    """Refuse a `generation_config.json` with another noise schedule than the published one, which training uses.

    Raises:
        BaseModelError: it has another, or it is damaged.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return
    found = read_json_object(path, BaseModelError, "download it again").get("noise_scheduler_config", {})
    if not isinstance(found, dict):
        raise BaseModelError(
            f"{path}: noise_scheduler_config is {shown(repr(found))[:120]}; expected an object; download the file again"
        )
    for key, expected in NOISE_SCHEDULE.items():
        if found.get(key, expected) != expected:
            raise BaseModelError(
                f"{path}: noise_scheduler_config.{key} is {shown(repr(found[key]))[:120]}; this program can only train "
                f"with {expected!r}"
            )


def _build(native: Json, words: Words) -> VibeVoiceConfig:
    where = words.where
    check_values(native, words)
    kinds = dict(zip(_NATIVE_SECTIONS, PartConfigs.__annotations__.values(), strict=True))
    for section, kind in kinds.items():
        found = native[section].get("model_type", kind.model_type)
        if found != kind.model_type:
            raise BaseModelError(
                f"{where}: {section} is of model_type {shown(repr(found))[:120]}; expected {kind.model_type!r}"
            )
    try:
        config: VibeVoiceConfig = VibeVoiceConfig.from_dict(native)
    except _REFUSALS as error:
        raise BaseModelError(f"{where}: the configuration is not valid: {' '.join(str(error).split())}") from error
    parts = dict(zip(_NATIVE_SECTIONS, part_configs(config), strict=True))
    check_fit({section: part.to_dict() | native[section] for section, part in parts.items()}, words)
    audio, semantic, _, _ = part_configs(config)
    if audio.hop_length != semantic.hop_length:
        raise BaseModelError(
            f"{where}: {words.key('audio_config', 'downsampling_ratios')} makes a frame of {audio.hop_length} samples, "
            f"{words.key('semantic_model_config', 'downsampling_ratios')} one of {semantic.hop_length}; "
            "expected the same"
        )
    return config


def _tokenizer_to_original(config: VibeVoiceAcousticTokenizerConfig, model_type: str) -> Json:
    return TOKENIZER_FIXED | {
        "model_type": model_type,
        "vae_dim": config.hidden_size,
        "encoder_n_filters": config.num_filters,
        "encoder_depths": "-".join(str(depth) for depth in config.depths),
        "encoder_ratios": list(reversed(config.downsampling_ratios)),
        "layernorm_eps": config.rms_norm_eps,
        "layer_scale_init_value": config.layer_scale_init_value,
        "weight_init_value": config.initializer_range,
    }


def _text_to_original(config: Qwen2Config, dtype: str | None) -> Json:
    values = {key: getattr(config, key) for key in TEXT_FIELDS}
    rope = dict(cast(Json, config.rope_parameters))
    theta = rope.pop("rope_theta")
    scaling = None if rope["rope_type"] == "default" else rope
    text = values | {"model_type": "qwen2", "rope_theta": theta, "rope_scaling": scaling}
    return text if dtype is None else text | {"torch_dtype": dtype}
