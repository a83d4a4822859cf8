"""The values of a configuration: their types, their ranges, and whether they fit each other.

Why: transformers' classes take almost anything and fail somewhere inside, with a message that names neither the file
nor the key. So every value that the model is built from is looked at before it is built, in transformers' words, and
named in the words of the file that it stands in.

In: a configuration in transformers' words. Out: nothing, or the error that names the key.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from vibevoice_finetune.errors import BaseModelError, shown

Json = dict[str, Any]

DTYPES = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
MAX_FRAME_SAMPLES = 240_000
"""Ten seconds; a frame of the released models has 3,200 samples."""


class Size(NamedTuple):
    """A whole number from `least` to `most`."""

    most: int
    least: int = 1

    def holds(self, value: object) -> bool:
        """Whether a value is one."""
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least:,} to {self.most:,}"


class Number(NamedTuple):
    """A finite number from `least` to `most`."""

    least: float
    most: float

    def holds(self, value: object) -> bool:
        """Whether a value is one."""
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class OneOf(NamedTuple):
    """One of a few values."""

    values: tuple[object, ...]

    def holds(self, value: object) -> bool:
        """Whether a value is one."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def __str__(self) -> str:
        named = [repr(value) for value in self.values[:8]]
        return f"one of {', '.join(named)}{' …' if len(self.values) > 8 else ''}"


class Sizes(NamedTuple):
    """A list of whole numbers, at least one."""

    size: Size
    most: int

    def holds(self, value: object) -> bool:
        """Whether a value is one."""
        return isinstance(value, list | tuple) and 1 <= len(value) <= self.most and all(map(self.size.holds, value))

    def __str__(self) -> str:
        return f"a list of at most {self.most} numbers, each {self.size}"


_WIDTH, _LAYERS = Size(1_000_000), Size(1_000)
_EPSILON, _ACTIVATION, _FLAG = Number(1e-30, 1.0), OneOf(tuple(sorted(ACT2FN))), OneOf((True, False))
_Rules = Mapping[str, Size | Number | OneOf | Sizes]
_TOKENIZER: dict[str, Size | Number | OneOf | Sizes] = {
    "channels": OneOf((1,)),
    "hidden_size": _WIDTH,
    "kernel_size": Size(101),
    "rms_norm_eps": _EPSILON,
    "layer_scale_init_value": Number(-1e6, 1e6),
    "initializer_range": Number(0.0, 1e6),
    "num_filters": Size(65_536),
    "downsampling_ratios": Sizes(Size(10_000), 16),
    "depths": Sizes(Size(1_000, least=0), 17),  # a stage may hold no block
    "hidden_act": _ACTIVATION,
    "ffn_expansion": Size(64),
}
RULES: dict[str, _Rules] = {
    "audio_config": _TOKENIZER | {"vae_std": Number(0.0, 1e6)},
    "semantic_model_config": _TOKENIZER,
    "text_config": {
        "attention_dropout": Number(0.0, 0.999),
        "hidden_act": _ACTIVATION,
        "hidden_size": _WIDTH,
        "initializer_range": Number(0.0, 1e6),
        "intermediate_size": _WIDTH,
        "max_position_embeddings": Size(100_000_000),
        "max_window_layers": Size(1_000_000, least=0),
        "num_attention_heads": Size(10_000),
        "num_hidden_layers": _LAYERS,
        "num_key_value_heads": Size(10_000),
        "rms_norm_eps": _EPSILON,
        "tie_word_embeddings": _FLAG,
        "use_cache": _FLAG,
        "use_sliding_window": _FLAG,
        "vocab_size": Size(10_000_000),
    },
    "diffusion_head_config": {
        "hidden_size": _WIDTH,
        "latent_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "intermediate_size": Size(10_000_000),
        "rms_norm_eps": _EPSILON,
        "hidden_act": _ACTIVATION,
        "frequency_embedding_size": Size(100_000, least=2),
        "diffusion_max_period": Number(1.0, 1e12),
        "mlp_bias": _FLAG,
    },
}
_NULLABLE = {"text_config": {"sliding_window": Size(100_000_000)}}

# What the original layout calls these sections and their keys; keys that are not here have one name in both.
_TOKENIZER_WORDS = {
    "hidden_size": "vae_dim",
    "num_filters": "encoder_n_filters",
    "depths": "encoder_depths",
    "downsampling_ratios": "encoder_ratios",
    "rms_norm_eps": "layernorm_eps",
    "initializer_range": "weight_init_value",
    "vae_std": "fix_std",
}
_ORIGINAL_WORDS: dict[str, tuple[str, Mapping[str, str]]] = {
    "audio_config": ("acoustic_tokenizer_config", _TOKENIZER_WORDS),
    "semantic_model_config": ("semantic_tokenizer_config", _TOKENIZER_WORDS),
    "text_config": ("decoder_config", {"rope_parameters": "rope_scaling"}),
    "diffusion_head_config": (
        "diffusion_head_config",
        {"num_hidden_layers": "head_layers", "intermediate_size": "head_ffn_ratio"},
    ),
}


class Words:
    """Names values as the file does that they stand in."""

    def __init__(self, where: str, original: bool) -> None:
        self.where = where
        self.original = original

    def key(self, section: str, key: str) -> str:
        """Such as ``decoder_config.hidden_size``."""
        if self.original:
            section, keys = _ORIGINAL_WORDS[section]
            key = keys.get(key, key)
        return f"{section}.{key}"

    def wrong(self, section: str, key: str, value: object, expected: object) -> BaseModelError:
        """The error that says what a key holds and what it should."""
        found = shown(repr(value))
        return BaseModelError(
            f"{self.where}: {self.key(section, key)} is {found[:120]}; expected {expected}; download the file again"
        )


def check_values(native: Mapping[str, Any], words: Words) -> None:
    """Look at each value by itself; keys that are absent have the classes' defaults.

    Raises:
        BaseModelError: a value has another type than it must have, or is out of range.
    """
    for section, rules in RULES.items():
        values = native[section]
        if not isinstance(values, Mapping):
            raise BaseModelError(f"{words.where}: {section} is {shown(repr(values))[:120]}; expected an object")
        for key, rule in rules.items():
            if key in values and not rule.holds(values[key]):
                raise words.wrong(section, key, values[key], rule)
        for key, rule in _NULLABLE.get(section, {}).items():
            if values.get(key) is not None and not rule.holds(values[key]):
                raise words.wrong(section, key, values[key], f"{rule}, or null")
    _check_rope(native["text_config"], words)
    for where, values in (("", native), *((f"{section}.", native[section]) for section in RULES)):
        for key in ("dtype", "torch_dtype"):
            if values.get(key) is not None and values[key] not in DTYPES:
                raise BaseModelError(
                    f"{words.where}: {where}{key} is {shown(repr(values[key]))[:120]}; expected one of "
                    f"{', '.join(DTYPES)}; download the file again"
                )


def check_fit(values: Mapping[str, Mapping[str, Any]], words: Words) -> None:
    """Look at values that depend on each other.

    Args:
        values: the four sections, complete and each value by itself checked.
        words: names them.

    Raises:
        BaseModelError: two of them do not fit each other.
    """
    text, head, audio = values["text_config"], values["diffusion_head_config"], values["audio_config"]
    for size, heads in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_key_value_heads")):
        if text[size] % text[heads]:
            raise words.wrong(
                "text_config", heads, text[heads], f"a divisor of {words.key('text_config', size)} ({text[size]:,})"
            )
    if text["hidden_size"] // text["num_attention_heads"] % 2:
        expected = f"such that {text['hidden_size']:,} / num_attention_heads is even"
        raise words.wrong("text_config", "num_attention_heads", text["num_attention_heads"], expected)
    for key, other, section in (("hidden_size", text, "text_config"), ("latent_size", audio, "audio_config")):
        if head[key] != other["hidden_size"]:
            expected = f"{other['hidden_size']:,}, as {words.key(section, 'hidden_size')}"
            raise words.wrong("diffusion_head_config", key, head[key], expected)
    if head["frequency_embedding_size"] % 2:
        raise words.wrong(
            "diffusion_head_config", "frequency_embedding_size", head["frequency_embedding_size"], "an even number"
        )
    for section in ("audio_config", "semantic_model_config"):
        depths, ratios = values[section]["depths"], values[section]["downsampling_ratios"]
        if len(depths) != len(ratios) + 1:
            expected = f"{len(ratios) + 1} numbers, one more than {words.key(section, 'downsampling_ratios')} has"
            raise words.wrong(section, "depths", depths, expected)
        if math.prod(ratios) > MAX_FRAME_SAMPLES:
            expected = f"numbers whose product, the samples of a frame, is at most {MAX_FRAME_SAMPLES:,}"
            raise words.wrong(section, "downsampling_ratios", ratios, expected)


def _check_rope(text: Mapping[str, Any], words: Words) -> None:
    rope = text.get("rope_parameters")
    if rope is None:
        return
    kinds = OneOf(("default", *sorted(ROPE_INIT_FUNCTIONS)))
    if not isinstance(rope, Mapping):
        raise words.wrong("text_config", "rope_parameters", rope, "an object")
    if not kinds.holds(rope.get("rope_type", "default")):
        raise words.wrong("text_config", "rope_parameters", rope.get("rope_type"), kinds)
    for key, value in rope.items():
        if key == "rope_theta" and not Number(1e-3, 1e15).holds(value):
            name = "rope_theta" if words.original else "rope_parameters"
            raise words.wrong("text_config", name, value, Number(1e-3, 1e15))
        if key.endswith("factor") and value is not None and not Number(1e-6, 1e6).holds(value):
            raise words.wrong("text_config", "rope_parameters", {key: value}, f"{key}: {Number(1e-6, 1e6)}")
