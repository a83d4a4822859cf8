"""Full-size models with random weights, built where they are used: no file, no copy on the host.

In come a size and a device, out comes what `load_for_training` or `load_encoders` would load from a checkpoint of that
size. The same way in: transformers is handed tensors one by one, and casts, moves or quantises each.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    VibeVoiceAcousticTokenizerEncoderModel,
    VibeVoiceConfig,
    VibeVoiceForConditionalGeneration,
)

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import Layout, config_to_native, part_configs
from vibevoice_finetune.base_model.load import BaseModel, SpeechEncoders
from vibevoice_finetune.base_model.parts import VibeVoiceWithoutTokenizers, tensor_shapes
from vibevoice_finetune.base_model.random_model import Size, original_config
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.latents.arithmetic import Arithmetic
from vibevoice_finetune.latents.shards import Part

QWEN_SPECIAL = SpecialTokens(speech_start=151652, speech_end=151653, frame=151654, end_of_text=151643)
TINY_SPECIAL = SpecialTokens(speech_start=265, speech_end=266, frame=267, end_of_text=256)

# A prime: a matrix filled with a block of so many numbers repeats at another column in every row.
_BLOCK_LENGTH = 1_048_573

# Beginning, or ending, of the names of what is no matrix: mean and standard deviation. As in the released models, so
# that latents and hidden states have sizes near 1.
_VECTORS = (
    ("gamma", 0.3, 0.05),
    ("bias", 0.0, 0.05),
    ("latent_scaling_factor", 0.8, 0.0),
    ("latent_bias_factor", -0.05, 0.0),
    ("weight", 1.0, 0.1),
)
_SPEECH_RMS = 0.056  # the encoders' first layer lifts speech to about 1


def config_of(size: Size) -> VibeVoiceConfig:
    """Transformers' configuration of a size."""
    return config_to_native(original_config(size), f"the {size} model")


def special_of(size: Size) -> SpecialTokens:
    """Ids of the control tokens: Qwen2.5's, and for the small model those after its 256 bytes."""
    return TINY_SPECIAL if size == "tiny" else QWEN_SPECIAL


def model_for_training(
    config: VibeVoiceConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
) -> VibeVoiceForConditionalGeneration:
    """A model without speech tokenizers, as `load_for_training` gives it."""
    shapes = {
        name: shape
        for name, shape in tensor_shapes(config).items()
        if not name.startswith(tensor_names.SPEECH_TOKENIZERS)
    }
    model = _load(VibeVoiceWithoutTokenizers, config, shapes, dtype, device, quantization)
    return cast(VibeVoiceForConditionalGeneration, model)


class RandomEncoders(SpeechEncoders):
    """Both speech encoders with random weights, drawn when they are asked for; no checkpoint is read."""

    def __init__(
        self, config: VibeVoiceConfig, dtype: torch.dtype, device: torch.device, arithmetic: Arithmetic
    ) -> None:
        nowhere = Path()
        super().__init__(BaseModel("random", nowhere, Layout.NATIVE, config, {}, None), dtype, device, arithmetic)
        self._config = config
        self.fingerprint = "random"

    def _load(self, part: Part) -> VibeVoiceAcousticTokenizerEncoderModel:
        audio, semantic, _, _ = part_configs(self._config)
        prefix, config = {
            Part.ACOUSTIC: (tensor_names.ACOUSTIC_ENCODER, audio.encoder_config),
            Part.SEMANTIC: (tensor_names.SEMANTIC_ENCODER, semantic),
        }[part]
        shapes = {
            name.removeprefix(prefix): shape
            for name, shape in tensor_shapes(self._config).items()
            if name.startswith(prefix)
        }
        model = _load(VibeVoiceAcousticTokenizerEncoderModel, config, shapes, self._dtype, self._device)
        return cast(VibeVoiceAcousticTokenizerEncoderModel, model)


def encoders(
    config: VibeVoiceConfig,
    dtype: torch.dtype,
    device: torch.device,
    arithmetic: Arithmetic = Arithmetic.FLOAT32,
) -> RandomEncoders:
    """Both speech encoders, as `load_encoders` gives them; the same numbers in every dtype but for rounding."""
    return RandomEncoders(config, dtype, device, arithmetic)


@dataclass(frozen=True)
class _Drawn:
    """A tensor that is drawn when transformers indexes it, as it indexes safetensors' slices."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __getitem__(self, _: object) -> Tensor:
        mean, std = _distribution(self.name, self.shape)
        length = math.prod(self.shape)
        generator = torch.Generator(self.device).manual_seed(hash(self.shape) % 2**31 + len(self.name))
        block = torch.randn(min(length, _BLOCK_LENGTH), generator=generator, device=self.device)
        block = (block * std + mean).to(self.dtype)
        repeats = -(-length // block.numel())
        return block.repeat(repeats)[:length].view(self.shape)


def _load(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None = None,
) -> PreTrainedModel:
    loaded: Any = model_class.from_pretrained(
        None,
        config=config,
        state_dict={name: _Drawn(name, shape, dtype, device) for name, shape in shapes.items()},
        dtype=dtype,
        device_map={"": device},
        quantization_config=quantization,
        output_loading_info=True,
    )
    model, report = loaded
    faults = {kind: found for kind, found in report.items() if found}
    assert not faults, f"transformers reports {faults}"
    return cast(PreTrainedModel, model)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation, so that every layer's output has about its input's variance."""
    if len(shape) < 2:
        return next((mean, std) for ending, mean, std in _VECTORS if name.endswith(ending))
    if name in {tensor_names.EMBED_TOKENS, tensor_names.LM_HEAD}:
        return 0.0, 1 / math.sqrt(shape[1])
    gain = 1 / _SPEECH_RMS if name == "stem.conv.conv.weight" else 1.0
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))
