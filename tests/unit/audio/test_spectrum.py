import numpy as np
import pytest
import soxr

from tests.speechlike import RATE_HZ, chords, speechlike, with_noise
from vibevoice_finetune.audio.spectrum import bandwidth, line_contrast, power_spectrum


def test_the_spectrum_has_the_power_of_the_samples() -> None:
    # Parseval: the mean over a window of Hann² is 3/8, and half of the bins carry twice their power.
    noise = np.random.default_rng(0).standard_normal(RATE_HZ * 4).astype(np.float32)
    spectrum = power_spectrum(noise)
    assert spectrum.shape == (1 + (len(noise) - 1_024) // 256, 513)
    assert spectrum[:, 1:-1].mean() == pytest.approx(1_024 * 3 / 8, rel=0.02)


def test_short_audio_is_one_frame() -> None:
    assert power_spectrum(np.ones(10, dtype=np.float32)).shape == (1, 513)


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = speechlike()
    whole = power_spectrum(samples)
    monkeypatch.setattr("vibevoice_finetune.audio.spectrum.BLOCK_FRAMES", 7)
    np.testing.assert_array_equal(power_spectrum(samples), whole)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050])
def test_upsampled_audio_ends_at_half_of_its_rate(rate: int) -> None:
    narrow = soxr.resample(soxr.resample(speechlike(), RATE_HZ, rate, "VHQ"), rate, RATE_HZ, "VHQ")
    assert bandwidth(power_spectrum(narrow), RATE_HZ) == pytest.approx(rate / 2, rel=0.06)


def test_full_audio_reaches_the_nyquist_rate() -> None:
    assert bandwidth(power_spectrum(speechlike()), RATE_HZ) == RATE_HZ / 2


def test_a_sloping_spectrum_has_no_edge() -> None:
    # 12 dB an octave, as of a dull voice: between 1 and 12 kHz it falls by 43 dB, but nowhere by 20 dB in 500 Hz.
    noise = np.fft.rfft(np.random.default_rng(1).standard_normal(RATE_HZ * 3))
    dull = np.fft.irfft(noise / np.maximum(1, np.linspace(0, 12, len(noise))) ** 2).astype(np.float32)
    assert bandwidth(power_spectrum(dull), RATE_HZ) == RATE_HZ / 2


@pytest.mark.parametrize("below_db", [10, 20, 30])
def test_music_has_lines_and_noise_has_not(below_db: float) -> None:
    speech = speechlike()
    level = np.sqrt(np.mean(speech[speech > 1e-3] ** 2)) * 10 ** (-below_db / 20)
    assert line_contrast(power_spectrum(with_noise(speech, below_db)), RATE_HZ) == pytest.approx(5.6, abs=0.6)
    music = speech + np.float32(level) * chords(4)[: len(speech)]
    assert line_contrast(power_spectrum(music), RATE_HZ) > 8


def test_nothing_has_no_lines() -> None:
    assert line_contrast(power_spectrum(np.zeros(RATE_HZ, dtype=np.float32)), RATE_HZ) == 0
