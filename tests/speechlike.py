"""Sounds with the features of speech that measures look at, made of numbers: no recording needed."""

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 24_000
Audio = NDArray[np.float32]


def speechlike(seed: int = 0, words: int = 6, pause_sec: float = 0.25, level_dbfs: float = -25.0) -> Audio:
    """Words of 0.35 s with pauses between, before and after them, in a room that is 60 dB quieter.

    A word is 0.25 s of a buzz whose pitch is drawn and glides, then 0.1 s of hiss up to 12 kHz.
    """
    rng = np.random.default_rng(seed)
    pause = np.zeros(round(pause_sec * RATE_HZ))
    parts = [pause]
    for _ in range(words):
        parts += [_buzz(rng), _hiss(rng), pause]
    samples = np.concatenate(parts)
    spoken = samples[samples != 0]
    samples *= 10 ** (level_dbfs / 20) / np.sqrt(np.mean(spoken**2))
    return with_noise(samples.astype(np.float32), 60, seed)


def _buzz(rng: np.random.Generator) -> NDArray[np.float64]:
    size = round(0.25 * RATE_HZ)
    pitch = rng.uniform(90, 220) * np.linspace(1, rng.uniform(0.8, 1.25), size)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    tones = sum(np.sin(k * phase + rng.uniform(0, 6)) * rng.uniform(0.3, 1) / k for k in range(1, 20))
    return np.asarray(tones * _fades(size))


def _hiss(rng: np.random.Generator) -> NDArray[np.float64]:
    size = round(0.1 * RATE_HZ)
    return rng.standard_normal(size) * 0.3 * _fades(size)


def _fades(size: int) -> NDArray[np.float64]:
    rise = np.minimum(1, np.arange(size) / (0.01 * RATE_HZ))
    return np.minimum(rise, rise[::-1])


def with_noise(samples: Audio, below_db: float, seed: int = 0) -> Audio:
    """White noise so many decibels below the mean power of the louder half of the samples' 10 ms frames."""
    frames = samples[: len(samples) // 240 * 240].reshape(-1, 240)
    power = np.sort((frames.astype(np.float64) ** 2).mean(axis=1))
    level = np.sqrt(power[len(power) // 2 :].mean()) * 10 ** (-below_db / 20)
    noise = np.random.default_rng(seed + 1_000).standard_normal(len(samples))
    return (samples + level * noise).astype(np.float32)


def chords(seconds: float) -> Audio:
    """A chord of three notes with six partials each, every 0.4 s another; RMS 1."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    music = np.zeros(len(time))
    for number, root in enumerate((220.0, 165.0, 247.0, 196.0) * 10):
        now = (time >= 0.4 * number) & (time < 0.4 * (number + 1))
        for third in (1.0, 1.26, 1.5):
            music[now] += sum(np.sin(2 * np.pi * root * third * k * time[now]) / k for k in range(1, 7))
    return (music / np.sqrt(np.mean(music**2))).astype(np.float32)


def in_a_room(samples: Audio, t60_sec: float, seed: int = 3) -> Audio:
    """The samples with an echo that is as strong as they are and falls by 60 dB in `t60_sec`."""
    size = round(1.2 * t60_sec * RATE_HZ)
    answer = np.random.default_rng(seed).standard_normal(size) * 10 ** (-3 * np.arange(size) / RATE_HZ / t60_sec)
    answer /= np.sqrt(np.sum(answer**2))
    answer[0] = 1
    length = len(samples) + size - 1
    padded = 1 << length.bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, padded) * np.fft.rfft(answer, padded), padded)[:length]
    return np.asarray(wet, dtype=np.float32)
