"""Random VibeVoice models, laid out like the published ones: for the demo, the tests and the benchmarks.

Why: every part of this program can be tried without a download, and a benchmark at full size needs full-size weights,
not trained ones. A random model does not speak, but everything about it has the right form: its folder serves as model
and as text tokenizer, its latents depend on the audio, and nothing in it is zero by chance.

In: a folder and a size. Out: `config.json`, `preprocessor_config.json`, safetensors in the original layout, and a text
tokenizer with one token per byte and Qwen2.5's special tokens after them (so a text has about four times the tokens
that the real tokenizer gives it).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import Qwen2Tokenizer

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import config_to_native, config_to_original
from vibevoice_finetune.base_model.original_config import Json
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.processor import original_preprocessor
from vibevoice_finetune.base_model.weights import MAX_SHARD_BYTES, write_weights
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files.atomic import write_json, writing_folder

_TEXT_TOKENIZER_NAME = "Qwen/Qwen2.5-1.5B"
"""For the original's readers; this package finds the byte tokenizer in the folder itself."""

Size = Literal["tiny", "1.5b", "7b"]

# What differs between the sizes; 1.5b and 7b are the published configurations of VibeVoice-1.5B and VibeVoice-Large.
# tiny keeps what the data sees (hop of 3,200, C = 64, S = 128) and makes the rest as small as still learns.
_SIZES: dict[Size, Json] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "encoder_n_filters": 2,
        "encoder_depths": "1-1-1-1-1-1-1",
        "head_layers": 2,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 65536,
        "tie_word_embeddings": True,
        "encoder_n_filters": 32,
        "encoder_depths": "3-3-3-3-3-3-8",
        "head_layers": 4,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "encoder_n_filters": 32,
        "encoder_depths": "3-3-3-3-3-3-8",
        "head_layers": 4,
    },
}
_ACOUSTIC_DIM = 64
_SEMANTIC_DIM = 128
_RATIOS = [8, 5, 5, 4, 2, 2]

# Speech at -25 dBFS has an RMS of 0.056; the first layer lifts it to about 1, the last brings it down again.
_SPEECH_RMS = 0.056

# (ending of the name, mean, standard deviation) of tensors that are not matrices. The encoders' latents of speech have
# a standard deviation near 1, to which the sigma-VAE adds 0.6; the scale brings the sum to 1, as in the published one.
_VECTORS = (
    (tensor_names.LATENT_SCALE, 0.8, 0.0),
    (tensor_names.LATENT_BIAS, -0.05, 0.0),
    ("gamma", 0.3, 0.05),  # published models start at 1e-6 and have learned more
    ("bias", 0.0, 0.05),
    ("weight", 1.0, 0.1),  # of a norm
)

# A prime, so that a tiled matrix repeats at another column in every row.
_BLOCK_LENGTH = 1_048_573

_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


def write_random_model(
    folder: Path,
    size: Size = "tiny",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tied: bool | None = None,
    shards: int = 1,
) -> Path:
    """Write a random model in the original layout, with its text tokenizer, whole or not at all.

    Tensors are made and written one after the other, so the memory needed is that of one shard.

    Args:
        folder: where it goes; made if it does not exist, refused if it holds files.
        size: "tiny" (2 M parameters, 0.9 M of them outside the speech tokenizers), or "1.5b" or "7b" as published.
        dtype: of the weights.
        seed: of the random numbers. Tensors of more than a million elements repeat one random block of a million,
            each from another place of it: drawing billions takes minutes, and a benchmark sees no difference.
        tied: whether the output matrix is the embedding; None for what the size has.
        shards: into how many files, at least; a file never grows beyond 1 GB.

    Returns:
        The folder.

    Raises:
        BaseModelError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise BaseModelError(f"{folder}: is not empty; give a new folder for the random model")
    config = config_to_native(original_config(size, dtype, tied), "the random model")
    shapes = tensor_shapes(config)
    total_bytes = dtype.itemsize * sum(math.prod(shape) for shape in shapes.values())
    with writing_folder(folder) as staging:
        tensors = _random_tensors(shapes, dtype, seed)
        write_weights(staging, tensors, max_shard_bytes=min(MAX_SHARD_BYTES, -(-total_bytes // shards)))
        write_byte_tokenizer(staging)
        write_json(staging / "preprocessor_config.json", original_preprocessor(config, _TEXT_TOKENIZER_NAME))
        write_json(staging / "config.json", config_to_original(config))
    return folder


def write_byte_tokenizer(folder: Path) -> None:
    """Write a Qwen2 text tokenizer that knows the 256 bytes, no merges, and Qwen2.5's special tokens from id 256 on."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(_SPECIAL_TOKENS[1:]))
    tokenizer.save_pretrained(folder)


def original_config(size: Size, dtype: torch.dtype = torch.bfloat16, tied: bool | None = None) -> Json:
    """The `config.json` of a size in the original layout; arguments as in `write_random_model`."""
    values = _SIZES[size] if tied is None else _SIZES[size] | {"tie_word_embeddings": tied}
    dtype_name = str(dtype).removeprefix("torch.")
    tokenizer: Json = {
        "causal": True,
        "channels": 1,
        "encoder_depths": values["encoder_depths"],
        "encoder_n_filters": values["encoder_n_filters"],
        "encoder_ratios": _RATIOS,
        "layer_scale_init_value": 1e-6,
        "layernorm_eps": 1e-5,
        "weight_init_value": 0.01,
    }
    acoustic: Json = {
        "vae_dim": _ACOUSTIC_DIM,
        "fix_std": 0.5,
        "std_dist_type": "gaussian",
        "decoder_depths": None,
        "decoder_n_filters": values["encoder_n_filters"],
        "decoder_ratios": _RATIOS,
    }
    language_model = {key: value for key, value in values.items() if not key.startswith(("encoder_", "head_"))}
    return {
        "model_type": "vibevoice",
        "torch_dtype": dtype_name,
        "acoustic_tokenizer_config": tokenizer | acoustic,
        "semantic_tokenizer_config": tokenizer | {"vae_dim": _SEMANTIC_DIM, "fix_std": 0, "std_dist_type": "none"},
        "decoder_config": language_model
        | {
            "model_type": "qwen2",
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_window_layers": values["num_hidden_layers"],
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "rope_scaling": None,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
            "torch_dtype": dtype_name,
        },
        "diffusion_head_config": {
            "head_layers": values["head_layers"],
            "head_ffn_ratio": 3.0,
            "hidden_size": values["hidden_size"],
            "latent_size": _ACOUSTIC_DIM,
            "speech_vae_dim": _ACOUSTIC_DIM,
            "rms_norm_eps": 1e-5,
        },
    }


def _random_tensors(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    block = (
        torch.randn(_BLOCK_LENGTH, generator=generator)
        if max(map(math.prod, shapes.values())) > _BLOCK_LENGTH
        else None
    )
    for name, shape in shapes.items():
        mean, std = _distribution(name, shape)
        if block is None or math.prod(shape) <= _BLOCK_LENGTH:
            normal = torch.randn(shape, generator=generator)
            yield tensor_names.to_original(name), (normal * std + mean).to(dtype)
        else:
            start = int(torch.randint(_BLOCK_LENGTH, (1,), generator=generator))
            yield tensor_names.to_original(name), _tiled((block.roll(start) * std + mean).to(dtype), shape)


def _tiled(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The block over and over again, cut to the shape."""
    length = math.prod(shape)
    whole, rest = divmod(length, block.numel())
    return torch.cat([block] * whole + [block[:rest]]).view(shape)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a tensor, so that every layer's output has about its input's variance."""
    if len(shape) < 2:
        return next((mean, std) for ending, mean, std in _VECTORS if name.endswith(ending))
    if name in {tensor_names.EMBED_TOKENS, tensor_names.LM_HEAD}:
        return 0.0, 1 / math.sqrt(shape[1])
    if "convtr" in name:  # (in, out, kernel), and a kernel of twice the stride: each sample sums over 2 * in products
        return 0.0, 1 / math.sqrt(2 * shape[0])
    gain = 1.0
    if name in {
        tensor_names.ACOUSTIC_ENCODER + "stem.conv.conv.weight",
        tensor_names.SEMANTIC_ENCODER + "stem.conv.conv.weight",
    }:
        gain = 1 / _SPEECH_RMS
    elif name == tensor_names.ACOUSTIC_DECODER + "head.conv.weight":
        gain = _SPEECH_RMS
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))
