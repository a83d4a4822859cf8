"""The names of a base model's tensors in its two layouts, and the way from one to the other.

Why: the released models are published in the *original* layout, transformers' classes speak the *native* one. Tensors
are never reshaped between them, only renamed, so one table of names, read in both directions, is the whole conversion.

In: one name of one layout. Out: the same tensor's name in the other; a name outside the table is a `BaseModelError`.

The table's templates hold two placeholders: ``{j}`` is a block's index within a stage and stays as it is; ``{n+1}`` on
the original side is ``{n}`` on the native side, because the original counts a tokenizer's first convolution as layer 0
and the native classes call it ``stem``. A template ending in a dot stands for every name that begins with it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from vibevoice_finetune.errors import BaseModelError

# The blocks of a model, by the native prefix of their tensors.
LANGUAGE_MODEL = "model.language_model."
LM_HEAD = "lm_head.weight"
EMBED_TOKENS = "model.language_model.embed_tokens.weight"
DIFFUSION_HEAD = "model.diffusion_head."
ACOUSTIC_CONNECTOR = "model.multi_modal_projector."
SEMANTIC_CONNECTOR = "model.semantic_connector."
LATENT_SCALE = "model.latent_scaling_factor"
LATENT_BIAS = "model.latent_bias_factor"
ACOUSTIC_TOKENIZER = "model.audio_tower."
ACOUSTIC_ENCODER = ACOUSTIC_TOKENIZER + "encoder."
ACOUSTIC_DECODER = ACOUSTIC_TOKENIZER + "decoder."
SEMANTIC_ENCODER = "model.semantic_tokenizer_encoder."

SPEECH_TOKENIZERS = (ACOUSTIC_ENCODER, ACOUSTIC_DECODER, SEMANTIC_ENCODER)
ENCODERS = (ACOUSTIC_ENCODER, SEMANTIC_ENCODER)

BLOCK_TITLES = {
    LANGUAGE_MODEL: "language model",
    LM_HEAD: "output matrix",
    DIFFUSION_HEAD: "diffusion head",
    ACOUSTIC_CONNECTOR: "acoustic connector",
    SEMANTIC_CONNECTOR: "semantic connector",
    LATENT_SCALE: "latent scale and bias",
    LATENT_BIAS: "latent scale and bias",
    ACOUSTIC_ENCODER: "acoustic encoder",
    ACOUSTIC_DECODER: "acoustic decoder",
    SEMANTIC_ENCODER: "semantic encoder",
}
"""What people call each block, by the native prefix of its tensors."""

_STAGES = (
    ("stages.0.{j}.mixer.conv.conv.conv.", "stem.stage.{j}.mixer.conv."),
    ("stages.0.{j}.", "stem.stage.{j}."),
    ("stages.{n+1}.{j}.mixer.conv.conv.conv.", "conv_layers.{n}.stage.{j}.mixer.conv."),
    ("stages.{n+1}.{j}.", "conv_layers.{n}.stage.{j}."),
    ("head.conv.conv.", "head.conv."),
)
_ENCODER = (
    ("downsample_layers.0.0.conv.conv.", "stem.conv.conv."),
    ("downsample_layers.{n+1}.0.conv.conv.", "conv_layers.{n}.conv.conv."),
    *_STAGES,
)
_DECODER = (
    ("upsample_layers.0.0.conv.conv.", "stem.conv.conv."),
    ("upsample_layers.{n+1}.0.convtr.convtr.", "conv_layers.{n}.convtr.convtr."),
    *_STAGES,
)
_CONNECTOR = (("fc1.", "linear_1."), ("norm.", "act."), ("fc2.", "linear_2."))
_HEAD = (
    ("t_embedder.mlp.0.", "timestep_proj.fc1."),
    ("t_embedder.mlp.2.", "timestep_proj.fc2."),
    ("layers.{j}.adaLN_modulation.1.", "layers.{j}.linear."),
    ("layers.{j}.", "layers.{j}."),
    ("final_layer.adaLN_modulation.1.", "final_layer.linear_1."),
    ("final_layer.linear.", "final_layer.linear_2."),
    ("noisy_images_proj.", "noisy_images_proj."),
    ("cond_proj.", "cond_proj."),
)
_SAME = (("", ""),)

# (original prefix, native prefix, what follows the prefix in each)
_BLOCKS = (
    ("model.acoustic_tokenizer.encoder.", ACOUSTIC_ENCODER, _ENCODER),
    ("model.acoustic_tokenizer.decoder.", ACOUSTIC_DECODER, _DECODER),
    ("model.semantic_tokenizer.encoder.", SEMANTIC_ENCODER, _ENCODER),
    ("model.acoustic_connector.", ACOUSTIC_CONNECTOR, _CONNECTOR),
    ("model.semantic_connector.", SEMANTIC_CONNECTOR, _CONNECTOR),
    ("model.prediction_head.", DIFFUSION_HEAD, _HEAD),
    ("model.language_model.", LANGUAGE_MODEL, _SAME),
    ("model.speech_scaling_factor", LATENT_SCALE, _SAME),
    ("model.speech_bias_factor", LATENT_BIAS, _SAME),
    ("lm_head.weight", LM_HEAD, _SAME),
)


def to_native(name: str) -> str:
    """Name in transformers' layout of the tensor that the original layout calls `name`.

    >>> to_native("model.acoustic_tokenizer.encoder.stages.3.0.mixer.conv.conv.conv.weight")
    'model.audio_tower.encoder.conv_layers.2.stage.0.mixer.conv.weight'

    Raises:
        BaseModelError: the original layout has no such name.
    """
    return _rename(name, _original_to_native(), "original")


def to_original(name: str) -> str:
    """Name in the original layout of the tensor that transformers' layout calls `name`.

    >>> to_original("model.diffusion_head.timestep_proj.fc2.weight")
    'model.prediction_head.t_embedder.mlp.2.weight'

    Raises:
        BaseModelError: the native layout has no such name.
    """
    return _rename(name, _native_to_original(), "native")


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    replacement: str
    shift: int

    def apply(self, name: str) -> str | None:
        match = self.pattern.match(name)
        if match is None:
            return None
        groups = match.groupdict()
        if "n" in groups:
            groups["n"] = str(int(groups["n"]) + self.shift)
        return self.replacement.format(**groups) + name[match.end() :]


def _rename(name: str, rules: tuple[_Rule, ...], layout: str) -> str:
    for rule in rules:
        renamed = rule.apply(name)
        if renamed is not None:
            return renamed
    raise BaseModelError(f"{name}: no tensor of a VibeVoice model has this name in the {layout} layout")


@lru_cache(maxsize=1)
def _original_to_native() -> tuple[_Rule, ...]:
    return tuple(
        _rule(original_prefix + original, native_prefix + native, shift=-1)
        for original_prefix, native_prefix, templates in _BLOCKS
        for original, native in templates
    )


@lru_cache(maxsize=1)
def _native_to_original() -> tuple[_Rule, ...]:
    return tuple(
        _rule(native_prefix + native, original_prefix + original, shift=+1)
        for original_prefix, native_prefix, templates in _BLOCKS
        for original, native in templates
    )


def _rule(source: str, target: str, shift: int) -> _Rule:
    pattern = re.escape(source)
    pattern = pattern.replace(
        re.escape("{n+1}"), r"(?P<n>[1-9]\d{0,5})"
    )  # 0 is the stem, which has a template of its own
    pattern = pattern.replace(re.escape("{n}"), r"(?P<n>\d{1,6})")
    pattern = pattern.replace(re.escape("{j}"), r"(?P<j>\d+)")
    if not source.endswith("."):
        pattern += "$"
    return _Rule(re.compile(pattern), target.replace("{n+1}", "{n}"), shift)
