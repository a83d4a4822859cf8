"""A small random VibeVoice in memory, and what its tunable parts compute."""

import copy
from functools import cache

import torch
from torch import Tensor, nn
from transformers import Qwen2Config, VibeVoiceConfig, VibeVoiceForConditionalGeneration

from vibevoice_finetune.adapters.attach import AdapterPlan, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.base_model import parts

HIDDEN, ACOUSTIC, SEMANTIC, LAYERS, HEAD_LAYERS = 16, 3, 5, 2, 2
INFO = AdapterInfo(base_model="some/VibeVoice", base_fingerprint="abc", expects_voice_prompt=True)


def small_config(hidden: int = HIDDEN, layers: int = LAYERS) -> VibeVoiceConfig:
    tokenizer = {"num_filters": 2, "depths": [1, 1], "downsampling_ratios": [4]}
    return VibeVoiceConfig(
        audio_config={"model_type": "vibevoice_acoustic_tokenizer", "hidden_size": ACOUSTIC, **tokenizer},
        semantic_model_config={
            "model_type": "vibevoice_acoustic_tokenizer_encoder",
            "hidden_size": SEMANTIC,
            **tokenizer,
        },
        text_config=Qwen2Config(
            hidden_size=hidden,
            intermediate_size=24,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=32,
            tie_word_embeddings=False,
        ).to_dict(),
        diffusion_head_config={
            "model_type": "vibevoice_diffusion",
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "latent_size": ACOUSTIC,
            "num_hidden_layers": HEAD_LAYERS,
        },
    )


def small_model(dtype: torch.dtype = torch.float32, **sizes: int) -> VibeVoiceForConditionalGeneration:
    """A model without speech tokenizers; every weight is random and far from zero, so that a wrong one shows.

    Two calls give the same weights.
    """
    return copy.deepcopy(_small_model(dtype, **sizes))


@cache
def _small_model(dtype: torch.dtype, **sizes: int) -> VibeVoiceForConditionalGeneration:
    model = parts.VibeVoiceWithoutTokenizers(small_config(**sizes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def plan(**changes: object) -> AdapterPlan:
    values: dict[str, object] = {
        "lora_r": 2,
        "lora_alpha": 6,
        "lora_dropout": 0.0,
        "lora_target_modules": ("q_proj", "down_proj"),
        "head": "frozen",
        "train_connectors": False,
    }
    return AdapterPlan(**(values | changes))  # type: ignore[arg-type]


def train_at_random(model: nn.Module, seed: int = 7) -> None:
    """Move every trainable tensor, as a training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@torch.no_grad()
def outputs(model: nn.Module) -> dict[str, Tensor]:
    """What each tunable part makes of fixed inputs."""
    generator = torch.Generator().manual_seed(11)
    head = parts.diffusion_head(model)
    language_model = parts.language_model(model)
    dtype = parts.embed_tokens(model).weight.dtype
    size = parts.facts(parts.config(model)).hidden_size
    hidden_BTD = torch.randn(2, 5, size, generator=generator).to(dtype)
    acoustic_FC = torch.randn(4, ACOUSTIC, generator=generator)
    semantic_FS = torch.randn(4, SEMANTIC, generator=generator)
    condition_FD = torch.randn(4, size, generator=generator)
    acoustic, semantic = parts.acoustic_connector(model), parts.semantic_connector(model)
    return {
        "language model": language_model(inputs_embeds=hidden_BTD, use_cache=False).last_hidden_state,
        "diffusion head": parts.predict_velocity(
            head, acoustic_FC[:, None], torch.tensor([[3], [500], [999], [0]]), condition_FD
        ),
        "acoustic connector": acoustic(parts.as_input(acoustic, acoustic_FC)),
        "semantic connector": semantic(parts.as_input(semantic, semantic_FS)),
    }


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
