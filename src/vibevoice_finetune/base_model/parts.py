"""The one room that knows how transformers' VibeVoice classes are built inside.

Why: attribute paths such as `model.model.diffusion_head` are the library's business and may move with a release. Here
they stand once; everything else asks for "the diffusion head" by the functions below.

In: a configuration or a model of transformers. Out: its facts, its parts, or an empty model to be filled.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, Qwen2Model, VibeVoiceConfig, VibeVoiceForConditionalGeneration
from transformers.initialization import no_init_weights
from transformers.models.vibevoice.modeling_vibevoice import VibeVoiceDiffusionHead

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import generation_settings, part_configs
from vibevoice_finetune.base_model.original_config import NUM_TRAIN_TIMESTEPS
from vibevoice_finetune.errors import BaseModelError


@dataclass(frozen=True)
class ModelFacts:
    """What the rest of the program needs to know of a model, in the project's words.

    Attributes:
        hop_length: samples per frame (3,200 in the released models).
        sampling_rate_hz: samples per second of every waveform that enters or leaves.
        acoustic_dim: C, numbers in an acoustic latent.
        semantic_dim: S, numbers in a semantic feature.
        hidden_size: D, of the language model and the diffusion head.
        vocab_size: V, rows of the output matrix; more than the text tokenizer has tokens.
        max_positions: longest sequence of the language model, in tokens and frames together.
        num_layers: of the language model.
        num_head_layers: of the diffusion head.
        vae_std: standard deviation of the sigma-VAE's scale, whose product with noise is added to the mean.
        num_train_timesteps: steps of the diffusion process.
        tied: whether the output matrix is the embedding matrix.
    """

    hop_length: int
    sampling_rate_hz: int
    acoustic_dim: int
    semantic_dim: int
    hidden_size: int
    vocab_size: int
    max_positions: int
    num_layers: int
    num_head_layers: int
    vae_std: float
    num_train_timesteps: int
    tied: bool


def facts(config: VibeVoiceConfig) -> ModelFacts:
    """The facts of the model that has this configuration."""
    audio, semantic, text, head = part_configs(config)
    return ModelFacts(
        hop_length=audio.hop_length,
        sampling_rate_hz=SAMPLING_RATE_HZ,
        acoustic_dim=audio.hidden_size,
        semantic_dim=semantic.hidden_size,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        num_layers=text.num_hidden_layers,
        num_head_layers=head.num_hidden_layers,
        vae_std=audio.vae_std,
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        tied=bool(text.tie_word_embeddings),
    )


class VibeVoiceWithoutTokenizers(VibeVoiceForConditionalGeneration):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """Language model, connectors, diffusion head and output matrix; the speech tokenizers are left out.

    Training reads latents that were computed once, so the tokenizers (0.34 B parameters each way) have no work in it.
    Built on the meta device, as `from_pretrained` does, leaving them out costs nothing.
    """

    def __init__(self, config: VibeVoiceConfig) -> None:
        super().__init__(config)
        del self.model.audio_tower
        del self.model.semantic_tokenizer_encoder


@contextmanager
def whole_for_generation(model: nn.Module, acoustic: nn.Module, semantic: nn.Module) -> Iterator[None]:
    """Within the context, a model without speech tokenizers has them and can `generate()`.

    Args:
        model: a `VibeVoiceWithoutTokenizers`; afterwards it is as it was.
        acoustic: the acoustic tokenizer, encoder and decoder.
        semantic: the semantic tokenizer's encoder.
    """
    whole = _whole(model)
    settings = whole.generation_config
    whole.model.audio_tower, whole.model.semantic_tokenizer_encoder = acoustic, semantic
    whole.generation_config = GenerationConfig(**generation_settings(whole.config))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        del whole.model.audio_tower, whole.model.semantic_tokenizer_encoder
        whole.generation_config = settings


def tensor_shapes(config: VibeVoiceConfig) -> dict[str, tuple[int, ...]]:
    """Native name and shape of every tensor that a model with this configuration has.

    A tied model's output matrix is not among them: it is the embedding matrix. Costs no memory and a fraction of a
    second at full size.
    """
    return dict(_tensor_shapes(config.to_json_string(use_diff=False)))


@lru_cache(maxsize=4)  # building the empty model is what opening a small model costs, and each load asks for it
def _tensor_shapes(config_json: str) -> dict[str, tuple[int, ...]]:
    config = VibeVoiceConfig.from_dict(json.loads(config_json))
    with torch.device("meta"), no_init_weights():
        model = VibeVoiceForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if facts(config).tied:
        del shapes[tensor_names.LM_HEAD]
    return shapes


def check_can_be_built(config: VibeVoiceConfig, where: str) -> None:
    """Build the model without its memory: what `config_values` has no rule for shows here.

    Raises:
        BaseModelError: transformers cannot build it.
    """
    try:
        tensor_shapes(config)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        said = " ".join(str(error).split())[:300]
        raise BaseModelError(
            f"{where}: no model can be built from this configuration ({type(error).__name__}: {said}); "
            "download the file again"
        ) from error


def config(model: nn.Module) -> VibeVoiceConfig:
    """The model's configuration."""
    return _whole(model).config


def language_model(model: nn.Module) -> Qwen2Model:
    """The Qwen2 transformer: embeddings in, last hidden states out."""
    return cast(Qwen2Model, _whole(model).model.language_model)


def embed_tokens(model: nn.Module) -> nn.Embedding:
    """The embedding of text and control tokens, (V, D)."""
    return language_model(model).embed_tokens


def lm_head(model: nn.Module) -> nn.Linear:
    """The output matrix, (V, D), without bias; in a tied model its weight is the embedding's."""
    return cast(nn.Linear, _whole(model).lm_head)


def diffusion_head(model: nn.Module) -> VibeVoiceDiffusionHead:
    """Noisy latents (N, C), timesteps (N,) and conditions (N, D) in, velocity (N, C) out."""
    return cast(VibeVoiceDiffusionHead, _whole(model).model.diffusion_head)


def acoustic_connector(model: nn.Module) -> nn.Module:
    """Scaled acoustic latents (…, C) to embeddings (…, D)."""
    return cast(nn.Module, _whole(model).model.multi_modal_projector)


def semantic_connector(model: nn.Module) -> nn.Module:
    """Semantic features (…, S) to embeddings (…, D)."""
    return cast(nn.Module, _whole(model).model.semantic_connector)


def latent_scale(model: nn.Module) -> Tensor:
    """The number that latents are multiplied with after `latent_bias` was added; a 0-d tensor."""
    return cast(Tensor, _whole(model).model.latent_scaling_factor)


def latent_bias(model: nn.Module) -> Tensor:
    """The number that is added to latents before they are scaled; a 0-d tensor."""
    return cast(Tensor, _whole(model).model.latent_bias_factor)


def as_input(module: nn.Module, values: Tensor) -> Tensor:
    """The values in the dtype of the module's weights; float32 latents enter bf16 modules this way."""
    return values.to(next(module.parameters()).dtype)


def predict_velocity(
    head: VibeVoiceDiffusionHead, noisy_FKC: Tensor, timestep_FK: Tensor, condition_FD: Tensor
) -> Tensor:
    """The diffusion head's velocity for K noise draws per frame, (F, K, C).

    Equal to calling the head with every condition repeated K times, but the condition is projected once per frame.
    Timesteps enter as float32, because bf16 would round 513 to 512.

    Args:
        head: what `diffusion_head` returns.
        noisy_FKC: (F, K, C) noisy latents.
        timestep_FK: (F, K) integers.
        condition_FD: (F, D) hidden states of the language model.
    """
    dtype = head.cond_proj.weight.dtype
    num_frames, num_draws = timestep_FK.shape
    waves = head.timestep_embedding(timestep_FK.flatten().float()).to(dtype)
    time_FKD = head.timestep_proj(waves).view(num_frames, num_draws, condition_FD.shape[-1])
    condition_FKD = head.cond_proj(condition_FD.to(dtype)).unsqueeze(1) + time_FKD
    hidden_FKD = head.noisy_images_proj(noisy_FKC.to(dtype))
    for layer in head.layers:
        hidden_FKD = layer(hidden_FKD, condition_FKD)
    return cast(Tensor, head.final_layer(hidden_FKD, condition_FKD))


def _whole(model: nn.Module) -> VibeVoiceForConditionalGeneration:
    """The same model; trainers and wrappers know it only as a module."""
    return cast(VibeVoiceForConditionalGeneration, model)
