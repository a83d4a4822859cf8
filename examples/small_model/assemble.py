"""The whole small model: its text tokenizer, its configuration, and the folder in the original layout.

python assemble.py --codec RUN/decoder.pt --semantic RUN/semantic.pt --language_model RUN/language_model.pt --out small
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from language import WORDS
from state import load_state
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, VibeVoiceForConditionalGeneration

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import config_to_native, config_to_original
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.processor import original_preprocessor
from vibevoice_finetune.base_model.random_model import _SPECIAL_TOKENS
from vibevoice_finetune.base_model.weights import write_weights
from vibevoice_finetune.data.prompt import SPEECH_HEADING, SYSTEM_PIECE, TEXT_HEADING, VOICE_HEADING

LANGUAGE_MODEL = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
HEAD_LAYERS = 2


def write_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """A byte-level tokenizer whose merges make each word of the language, and of the prompt, one token.

    Other words still work: they fall into bytes, as with any tokenizer of this kind.
    """
    alphabet = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    special = list(_SPECIAL_TOKENS[1:])
    plain = Qwen2Tokenizer(vocab=alphabet, merges=[], extra_special_tokens=special)
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = plain.backend_tokenizer.pre_tokenizer
    trained.normalizer = plain.backend_tokenizer.normalizer
    texts = [SYSTEM_PIECE, VOICE_HEADING, TEXT_HEADING, SPEECH_HEADING] * 3
    for word in WORDS:
        texts += [f" Speaker 0: {word[0].upper() + word[1:]} {word} {word}s.\n", f"{word} {word}.\n"] * 3
    trainer = trainers.BpeTrainer(
        vocab_size=4000, min_frequency=2, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in json.loads(trained.to_str())["model"]["merges"]
    ]
    vocabulary = dict(alphabet)
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=special)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_config(vocab_size: int, codec: dict[str, Any], semantic: dict[str, Any]) -> Any:
    """The native configuration, made from the original one so that both layouts can express it."""
    width = LANGUAGE_MODEL["hidden_size"]
    raw = {
        "model_type": "vibevoice",
        "torch_dtype": "bfloat16",
        "acoustic_tokenizer_config": _tokenizer_config(codec)
        | {
            "fix_std": codec["vae_std"] * 0.8,
            "std_dist_type": "gaussian",
            "decoder_depths": None,
            "decoder_n_filters": codec["num_filters"],
            "decoder_ratios": list(reversed(codec["downsampling_ratios"])),
        },
        "semantic_tokenizer_config": _tokenizer_config(semantic) | {"fix_std": 0, "std_dist_type": "none"},
        "decoder_config": LANGUAGE_MODEL
        | {
            "model_type": "qwen2",
            "vocab_size": -(-vocab_size // 8) * 8,
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_window_layers": LANGUAGE_MODEL["num_hidden_layers"],
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "rope_scaling": None,
            "sliding_window": None,
            "use_cache": True,
            "use_sliding_window": False,
            "torch_dtype": "bfloat16",
        },
        "diffusion_head_config": {
            "head_layers": HEAD_LAYERS,
            "head_ffn_ratio": 2.5,
            "hidden_size": width,
            "latent_size": codec["hidden_size"],
            "speech_vae_dim": codec["hidden_size"],
            "rms_norm_eps": 1e-5,
        },
    }
    return config_to_native(raw, "the small model")


def _tokenizer_config(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "causal": True,
        "channels": 1,
        "layernorm_eps": 1e-5,
        "weight_init_value": 0.01,
        "layer_scale_init_value": 0.1,
        "encoder_depths": "-".join(map(str, settings["depths"])),
        "encoder_n_filters": settings["num_filters"],
        "encoder_ratios": list(reversed(settings["downsampling_ratios"])),
        "vae_dim": settings["hidden_size"],
    }


def write_folder(folder: Path, model: Any, config: Any) -> None:
    """`config.json`, `preprocessor_config.json` and the weights in bf16, beside the tokenizer that is there."""
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink(missing_ok=True)
    weights = model.state_dict()
    shapes = tensor_shapes(config)
    write_weights(
        folder, ((tensor_names.to_original(n), weights[n].detach().to(torch.bfloat16).contiguous()) for n in shapes)
    )
    config.dtype = torch.bfloat16
    preprocessor = original_preprocessor(config, ".")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps(config_to_original(config), indent=2) + "\n")


def main() -> None:
    """Put the stages together."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--semantic", type=Path, required=True)
    parser.add_argument("--language_model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    codec, semantic, state = map(load_state, (arguments.codec, arguments.semantic, arguments.language_model))
    assert codec is not None
    assert semantic is not None
    assert state is not None
    tokenizer = write_tokenizer(arguments.out)
    config = make_config(len(tokenizer), codec["config"], semantic["config"])
    model = VibeVoiceForConditionalGeneration(config)
    model.load_state_dict(state["model"])
    model.model.audio_tower.load_state_dict(codec["model"])
    model.model.semantic_tokenizer_encoder.load_state_dict(semantic["model"])
    write_folder(arguments.out, model, config)
    size = sum(weight.numel() for weight in model.parameters())
    print(f"{size / 1e6:.2f} M parameters after {state['step']} steps of the language model")


if __name__ == "__main__":
    main()
