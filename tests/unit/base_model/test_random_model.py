"""Random checkpoints: whole, of the right form, alive, and the same every time."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vibevoice_finetune.base_model import parts, random_model
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import (
    BaseModel,
    load_encoders,
    load_for_generation,
    load_for_training,
    model_fingerprint,
    open_base_model,
    weight_index,
    with_special_tokens,
)
from vibevoice_finetune.base_model.random_model import write_random_model
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.latents.shards import Part

HOP = 3_200


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> BaseModel:
    return open_base_model(str(tiny_checkpoint))


def speech_like(num_frames: int, seed: int) -> Tensor:
    """Noise that swells and fades three times a second, at the level of normalised speech: (1, N)."""
    generator = torch.Generator().manual_seed(seed)
    time_sec = torch.arange(num_frames * HOP) / 24_000
    envelope = (torch.sin(2 * torch.pi * 3 * time_sec) + 1.1) / 2
    waveform = torch.randn(num_frames * HOP, generator=generator) * envelope
    return (0.056 * waveform / waveform.square().mean().sqrt()).unsqueeze(0)


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_folder_is_a_whole_original_checkpoint(tiny: BaseModel) -> None:
    assert tiny.layout is Layout.ORIGINAL
    facts = parts.facts(tiny.config)
    assert (facts.hop_length, facts.acoustic_dim, facts.semantic_dim) == (HOP, 64, 128)
    assert facts.tied
    assert facts.vae_std == 0.625
    names = {path.name for path in tiny.folder.iterdir()}
    assert names == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in tiny.folder.iterdir()) < 10_000_000
    parameters = sum(tensor.numel() for tensor in load_for_training(tiny, torch.float32, "cpu").parameters())
    assert parameters < 1_000_000


def test_the_tokenizer_knows_every_byte_and_the_control_tokens(tiny: BaseModel) -> None:
    tokenizer = load_tokenizer(tiny)
    assert len(tokenizer) == 256 + 22
    special = special_tokens(tokenizer)
    assert special.ids == (265, 266, 267, 256)  # Qwen2.5's order, from 256 on
    text = " Speaker 0: Grüße, 世界! 🙂\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer("<|vision_pad|>").input_ids == [special.frame]
    config = with_special_tokens(tiny, special).config
    assert config.audio_token_id == special.frame


def test_nothing_is_zero_and_everything_is_finite(tiny: BaseModel) -> None:
    for name, tensor in read_tensors(weight_index(tiny).tensors):
        assert tensor.isfinite().all(), name
        assert tensor.count_nonzero() == tensor.numel(), name


@torch.no_grad()
def test_latents_depend_on_the_audio(tiny: BaseModel) -> None:
    encoders = load_encoders(tiny, torch.float32, "cpu")
    acoustic_BFC, semantic_BFS = (encoders.encode(part, speech_like(20, seed=0)) for part in Part)
    for features in (acoustic_BFC[0], semantic_BFS[0]):
        assert 0.3 < features.std() < 3
        assert features.std(0).mean() > 0.5 * features.std(), "most of the variance is from frame to frame"
    other_BFC = encoders.encode(Part.ACOUSTIC, speech_like(20, seed=1))
    assert (other_BFC - acoustic_BFC).square().mean() > acoustic_BFC.var()


@torch.no_grad()
def test_scaled_latents_have_unit_size_and_the_decoder_makes_audible_sound(tiny: BaseModel) -> None:
    model = load_for_generation(tiny, torch.float32, "cpu")
    mean_BFC = load_encoders(tiny, torch.float32, "cpu").encode(Part.ACOUSTIC, speech_like(20, seed=0))
    scaled = (mean_BFC + parts.latent_bias(model)) * parts.latent_scale(model)
    assert 0.5 < scaled.std() < 2
    waveform = model.model.audio_tower.decode(mean_BFC).audio
    assert waveform.shape == (1, 1, 20 * HOP)
    assert 0.01 < waveform.square().mean().sqrt() < 0.5
    hidden = parts.language_model(model)(input_ids=torch.arange(256)[None]).last_hidden_state
    assert parts.lm_head(model)(hidden).std() < 5, "scores that leave something to learn"


def test_the_same_seed_gives_the_same_files(tiny: BaseModel, tmp_path: Path) -> None:
    assert files(write_random_model(tmp_path / "again")) == files(tiny.folder)
    other = open_base_model(str(write_random_model(tmp_path / "other", seed=1)))
    assert model_fingerprint(other) != model_fingerprint(tiny)


def test_dtype_tying_and_shards(tmp_path: Path) -> None:
    folder = write_random_model(tmp_path / "model", dtype=torch.bfloat16, tied=False, shards=3)
    assert len(list(folder.glob("model-0000*.safetensors"))) >= 3
    checkpoint = open_base_model(str(folder))
    assert {stored.dtype for stored in weight_index(checkpoint).tensors.values()} == {"BF16"}
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    model = load_for_training(checkpoint, torch.bfloat16, "cpu")
    assert not torch.equal(parts.lm_head(model).weight, parts.embed_tokens(model).weight)


def test_large_tensors_repeat_without_equal_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full-size matrices are tiled; here the block is 509 numbers, so that those of the tiny model are tiled too."""
    monkeypatch.setattr(random_model, "_BLOCK_LENGTH", 509)
    checkpoint = open_base_model(str(write_random_model(tmp_path / "model")))
    weights = dict(read_tensors(weight_index(checkpoint).tensors))
    embedding_VD = weights["model.language_model.embed_tokens.weight"]
    assert torch.equal(embedding_VD.flatten()[:1000], embedding_VD.flatten()[509:1509]), "it is tiled"
    assert len(torch.unique(embedding_VD, dim=0)) == len(embedding_VD)
    assert embedding_VD.std() == pytest.approx(128**-0.5, rel=0.1)
    one, other = (weights[f"model.language_model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert not torch.equal(one, other)


def test_a_folder_with_files_is_refused(tiny: BaseModel) -> None:
    with pytest.raises(BaseModelError, match="is not empty"):
        write_random_model(tiny.folder)
