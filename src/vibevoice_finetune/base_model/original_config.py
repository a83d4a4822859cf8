"""Read an original `config.json`: every value is carried over, checked, or refused by its name.

Why: the original's configuration has words for variants that transformers' classes do not compute (reflected padding,
convolutions that are not causal, other schedules). Loading such a model anyway would give a wrong one without a word.

In: the parsed JSON and what to call its file in messages. Out: a dictionary in transformers' words.
"""

from collections.abc import Mapping
from typing import Any

from vibevoice_finetune.errors import BaseModelError, shown

Json = dict[str, Any]

NUM_TRAIN_TIMESTEPS = 1000
_LARGEST = 100_000_000  # of any number in a configuration; what is too large for its key is refused later
# The original draws the sigma-VAE's scale with `fix_std / 0.8`; the native configuration keeps the quotient.
STD_DIVISOR = 0.8

SECTIONS = (
    "acoustic_tokenizer_config",
    "semantic_tokenizer_config",
    "decoder_config",
    "diffusion_head_config",
)

# What transformers' classes compute, whatever an original configuration says: any other value is refused.
TOKENIZER_FIXED: Json = {
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
_ACOUSTIC_FIXED: Json = TOKENIZER_FIXED | {"std_dist_type": "gaussian"}
_SEMANTIC_FIXED: Json = TOKENIZER_FIXED | {"std_dist_type": "none"}
HEAD_FIXED: Json = {
    "ddpm_beta_schedule": "cosine",
    "ddpm_num_steps": NUM_TRAIN_TIMESTEPS,
    "diffusion_type": "ddpm",
    "prediction_type": "v_prediction",
}
# Fields of Qwen2's configuration that both layouts write under one name.
TEXT_FIELDS = (
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


def native_values(raw: Mapping[str, Any], where: str) -> Json:
    """Say an original configuration in transformers' words.

    Args:
        raw: the parsed JSON.
        where: what to call it in messages.

    Raises:
        BaseModelError: a key is missing, or has a value that transformers' classes cannot express.
    """
    sections = {name: _Section(raw, name, where) for name in SECTIONS}
    head = sections["diffusion_head_config"]
    text = sections["decoder_config"]
    acoustic = sections["acoustic_tokenizer_config"]
    semantic = sections["semantic_tokenizer_config"]
    acoustic.expect(_ACOUSTIC_FIXED)
    semantic.expect(_SEMANTIC_FIXED)
    head.expect(HEAD_FIXED)
    text.expect({"model_type": "qwen2"})
    acoustic.expect({"decoder_n_filters": acoustic.whole("encoder_n_filters"), "decoder_ratios": acoustic.ratios()})
    if acoustic.values.get("decoder_depths") is not None:
        acoustic.expect({"decoder_depths": "-".join(str(depth) for depth in reversed(acoustic.depths()))})
    acoustic_dim, hidden_size = acoustic.whole("vae_dim"), text.whole("hidden_size")
    head.expect({"hidden_size": hidden_size, "latent_size": acoustic_dim, "speech_vae_dim": acoustic_dim})

    native: Json = {
        "model_type": "vibevoice",
        "architectures": ["VibeVoiceForConditionalGeneration"],
        "audio_config": _tokenizer_to_native(acoustic, "vibevoice_acoustic_tokenizer")
        | {"vae_std": acoustic.number("fix_std") / STD_DIVISOR},
        "semantic_model_config": _tokenizer_to_native(semantic, "vibevoice_acoustic_tokenizer_encoder"),
        "text_config": _text_to_native(text),
        "diffusion_head_config": {
            "model_type": "vibevoice_diffusion",
            "hidden_size": hidden_size,
            "latent_size": acoustic_dim,
            "num_hidden_layers": head.whole("head_layers"),
            "intermediate_size": int(hidden_size * head.number("head_ffn_ratio")),
            "rms_norm_eps": head.number("rms_norm_eps"),
        },
    }
    if raw.get("torch_dtype") is not None:
        native["dtype"] = raw["torch_dtype"]
    return native


class _Section:
    """One section of an original configuration; knows how to name itself in a message."""

    def __init__(self, raw: Mapping[str, Any], name: str, where: str) -> None:
        values = raw.get(name)
        if not isinstance(values, dict):
            raise BaseModelError(f"{where}: {name} is {shown(repr(values))[:120]}; expected an object")
        self.name, self.where, self.values = name, where, values

    def need(self, key: str) -> Any:
        if self.values.get(key) is None:
            raise BaseModelError(f"{self.where}: {self.name}.{key} is missing; a VibeVoice configuration has it")
        return self.values[key]

    def wrong(self, key: str, expected: str) -> BaseModelError:
        found = shown(repr(self.values[key]))[:120]
        return BaseModelError(f"{self.where}: {self.name}.{key} is {found}; expected {expected}")

    def whole(self, key: str) -> int:
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST:
            raise self.wrong(key, f"a whole number from 1 to {_LARGEST:,}")
        return value

    def number(self, key: str) -> float:
        value = self.need(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST <= value <= _LARGEST:
            raise self.wrong(key, "a finite number")
        return value

    def ratios(self) -> list[int]:
        value = self.need("encoder_ratios")
        if not isinstance(value, list) or not value or not all(type(ratio) is int and ratio > 0 for ratio in value):
            raise self.wrong("encoder_ratios", "a list of whole numbers above 0, such as [8, 5, 5, 4, 2, 2]")
        return value

    def depths(self) -> list[int]:
        value = self.need("encoder_depths")
        depths = value.split("-") if isinstance(value, str) else []
        if not depths or not all(depth.isascii() and depth.isdecimal() and len(depth) <= 6 for depth in depths):
            raise self.wrong("encoder_depths", "numbers joined by '-', such as '3-3-3-3-3-3-8'")
        if len(depths) != len(self.ratios()) + 1:
            raise BaseModelError(
                f"{self.where}: {self.name} has {len(depths)} encoder_depths and {len(self.ratios())} encoder_ratios; "
                "expected one depth more than ratios"
            )
        return [int(depth) for depth in depths]

    def expect(self, fixed: Mapping[str, Any]) -> None:
        """Refuse what is there and differs; what is absent has the value by default."""
        for key, expected in fixed.items():
            if key in self.values and self.values[key] != expected:
                raise BaseModelError(
                    f"{self.where}: {self.name}.{key} is {shown(repr(self.values[key]))[:120]}; "
                    f"transformers' VibeVoice classes can only express {expected!r}, so this model cannot be loaded"
                )


def _tokenizer_to_native(section: _Section, model_type: str) -> Json:
    return {
        "model_type": model_type,
        "channels": 1,
        "kernel_size": 7,
        "hidden_size": section.whole("vae_dim"),
        "num_filters": section.whole("encoder_n_filters"),
        "depths": section.depths(),
        "downsampling_ratios": list(reversed(section.ratios())),
        "rms_norm_eps": section.number("layernorm_eps"),
        "layer_scale_init_value": section.number("layer_scale_init_value"),
        "initializer_range": section.number("weight_init_value"),
    }


def _text_to_native(section: _Section) -> Json:
    for key in _TEXT_REQUIRED:
        section.need(key)
    values = {key: section.values[key] for key in TEXT_FIELDS if key in section.values}
    # Written out, because the native default (10,000) is not what the released models have (1,000,000).
    rope = {"rope_type": "default", "rope_theta": section.values["rope_theta"]}
    scaling = section.values.get("rope_scaling")
    if scaling is not None:
        if not isinstance(scaling, dict):
            raise section.wrong("rope_scaling", "an object, or null")
        rope |= {("rope_type" if key == "type" else key): value for key, value in scaling.items()}
    return values | {"model_type": "qwen2", "rope_parameters": rope}
