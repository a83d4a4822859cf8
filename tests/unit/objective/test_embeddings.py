"""Where each embedding of a sequence comes from, computed by hand beside it."""

import math

import numpy as np
import pytest
import torch

from tests.unit.small_model import ACOUSTIC, SEMANTIC, small_model
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.dataset import jitter, voice_jitter
from vibevoice_finetune.objective.embeddings import draw_latents, embed_prompt, embed_target


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_text_and_voice_frames_stand_where_they_belong():
    """Four tokens, of which the second and third are frames of a voice."""
    model = small_model()
    voice_VC = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.1, 0.2]])
    found = embed_prompt(model, torch.tensor([7, 9, 9, 3]), torch.tensor([1, 2]), voice_VC)
    matrix_VD = parts.embed_tokens(model).weight
    voice_VD = parts.acoustic_connector(model)(voice_VC)
    torch.testing.assert_close(found, torch.stack([matrix_VD[7], voice_VD[0], voice_VD[1], matrix_VD[3]]))


def test_without_voices_there_is_only_text():
    model = small_model()
    found = embed_prompt(model, torch.tensor([1, 2]), torch.zeros(0, dtype=torch.long), torch.zeros(0, ACOUSTIC))
    assert torch.equal(found, parts.embed_tokens(model).weight[[1, 2]])


def test_a_target_frame_is_the_sum_of_both_connectors():
    model = small_model()
    latents_FC, semantic_FS = torch.ones(2, ACOUSTIC), torch.arange(2.0 * SEMANTIC).view(2, SEMANTIC)
    expected = parts.acoustic_connector(model)(latents_FC) + parts.semantic_connector(model)(semantic_FS)
    torch.testing.assert_close(embed_target(model, latents_FC, semantic_FS), expected)


def test_latents_are_shifted_and_scaled_in_float32():
    """(mean + vae_std * jitter + bias) * scale; the published vae_std is 0.5 / 0.8."""
    model = small_model(torch.bfloat16)
    parts.latent_bias(model).fill_(-0.5)
    parts.latent_scale(model).fill_(2.0)
    found = draw_latents(model, torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 1.0, -1.0]]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([[1.0, 4.25, 3.75]]))


def test_jitter_has_one_factor_a_clip():
    """Clips differ in how much they are jittered, by far more than their 40 normal numbers would: |N(0, 1)| has a
    standard deviation of sqrt(1 - 2 / pi)."""
    rng = np.random.default_rng(0)
    clips = np.stack([jitter(rng, (5, 8)) for _ in range(4000)])
    assert clips.mean() == pytest.approx(0, abs=0.05)
    assert clips.std() == pytest.approx(1, rel=0.05)
    assert clips.std(axis=(1, 2)).std() == pytest.approx(math.sqrt(1 - 2 / math.pi), rel=0.1)


def test_voices_are_jittered_one_after_the_other():
    one = np.random.default_rng(3)
    expected = np.concatenate([jitter(one, (2, 4)), jitter(one, (3, 4))])
    assert np.array_equal(voice_jitter(np.random.default_rng(3), [2, 3], 4), expected)
    assert voice_jitter(one, [], 4).shape == (0, 4)
