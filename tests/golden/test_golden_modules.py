"""The modules that a checkpoint is loaded into compute what the original implementation computes.

`expected.safetensors` holds inputs and outputs of the original's encoders, decoder, connectors, diffusion head and
language model, in float32. "To 1e-5" means: the largest difference is at most 1e-5 of the largest expected number.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import VibeVoiceForConditionalGeneration

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import (
    BaseModel,
    SpeechEncoders,
    load_encoders,
    load_for_generation,
    load_for_training,
    open_base_model,
)
from vibevoice_finetune.latents.shards import Part

TOLERANCE = 1e-5


@dataclass(frozen=True)
class Golden:
    checkpoint: BaseModel
    expected: dict[str, Tensor]
    whole: VibeVoiceForConditionalGeneration
    training: VibeVoiceForConditionalGeneration
    encoders: SpeechEncoders


@pytest.fixture(scope="module", params=["tied", "untied"])
def golden(request: pytest.FixtureRequest, golden_dir: Path) -> Golden:
    checkpoint = open_base_model(str(golden_dir / request.param / "checkpoint"))
    return Golden(
        checkpoint=checkpoint,
        expected=load_file(golden_dir / request.param / "expected.safetensors"),
        whole=load_for_generation(checkpoint, torch.float32, "cpu"),
        training=load_for_training(checkpoint, torch.float32, "cpu"),
        encoders=load_encoders(checkpoint, torch.float32, "cpu"),
    )


def assert_golden(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    difference = (actual - expected).abs().max() / expected.abs().max()
    assert difference <= TOLERANCE, f"relative difference {difference:.2e}"


@torch.no_grad()
def test_encoders(golden: Golden) -> None:
    waveform_B1N = golden.expected["encode.waveform"]
    acoustic_BFC, semantic_BFS = (golden.encoders.encode(part, waveform_B1N.squeeze(1)) for part in Part)
    assert_golden(acoustic_BFC, golden.expected["encode.acoustic_mean"])
    assert_golden(semantic_BFS, golden.expected["encode.semantic"])
    assert_golden(
        golden.whole.model.audio_tower.encode(waveform_B1N, sample=False).latents,
        golden.expected["encode.acoustic_mean"],
    )
    assert_golden(
        golden.whole.model.semantic_tokenizer_encoder(waveform_B1N).latents, golden.expected["encode.semantic"]
    )


@torch.no_grad()
def test_decoder(golden: Golden) -> None:
    audio = golden.whole.model.audio_tower.decode(golden.expected["decode.latents"]).audio
    assert_golden(audio, golden.expected["decode.waveform"])


@pytest.mark.parametrize("loaded", ["whole", "training"])
@torch.no_grad()
def test_connectors(golden: Golden, loaded: str) -> None:
    model = golden.whole if loaded == "whole" else golden.training
    for kind, connector in (
        ("acoustic", parts.acoustic_connector(model)),
        ("semantic", parts.semantic_connector(model)),
    ):
        assert_golden(connector(golden.expected[f"connector.{kind}_in"]), golden.expected[f"connector.{kind}_out"])


@pytest.mark.parametrize("loaded", ["whole", "training"])
@torch.no_grad()
def test_diffusion_head(golden: Golden, loaded: str) -> None:
    head = parts.diffusion_head(golden.whole if loaded == "whole" else golden.training)
    noisy_NC = golden.expected["head.noisy"]
    timestep_N = golden.expected["head.timestep"].float()
    condition_ND = golden.expected["head.condition"]
    assert_golden(head(noisy_NC, timestep_N, condition_ND), golden.expected["head.out"])
    velocity_N1C = parts.predict_velocity(head, noisy_NC[:, None], timestep_N[:, None], condition_ND)
    assert_golden(velocity_N1C[:, 0], golden.expected["head.out"])


@pytest.mark.parametrize("loaded", ["whole", "training"])
@torch.no_grad()
def test_language_model(golden: Golden, loaded: str) -> None:
    model = golden.whole if loaded == "whole" else golden.training
    mask_BT = golden.expected["lm.attention_mask"]
    hidden_BTD = (
        parts.language_model(model)(input_ids=golden.expected["lm.input_ids"], attention_mask=mask_BT)
    ).last_hidden_state
    seen = mask_BT.bool()
    assert not seen.all(), "the golden batch is padded, or this test would not see padding leak"
    assert_golden(hidden_BTD[seen], golden.expected["lm.hidden"][seen])
    assert_golden(parts.lm_head(model)(hidden_BTD)[seen], golden.expected["lm.logits"][seen])


def test_facts(golden: Golden) -> None:
    facts = parts.facts(golden.checkpoint.config)
    assert facts.hop_length == golden.encoders.hop_length
    assert facts.sampling_rate_hz == 24_000
    assert facts.vae_std == 0.625  # fix_std 0.5 / 0.8
    assert facts.vocab_size == 512
    if facts.tied:
        assert (facts.hop_length, facts.acoustic_dim, facts.semantic_dim, facts.hidden_size) == (40, 6, 10, 64)
        assert (facts.num_layers, facts.num_head_layers, facts.max_positions) == (3, 2, 4096)
    else:
        assert (facts.hop_length, facts.acoustic_dim, facts.semantic_dim, facts.hidden_size) == (24, 8, 12, 48)
        assert (facts.num_layers, facts.num_head_layers, facts.max_positions) == (2, 3, 4096)
