"""What is done with samples: loudness, whole frames, writing them to a file.

In come samples at any loudness; out go samples at the loudness that the model expects, padded to whole frames, or a
file.

Shapes: N samples.
"""

import io
import math
from pathlib import Path

import numpy as np
import soundfile

from vibevoice_finetune.audio.decode import BLOCK_SAMPLES, Floats
from vibevoice_finetune.errors import ArgumentError, shown
from vibevoice_finetune.files.atomic import write_file

WRITTEN_FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}
WRITE_BLOCK_SAMPLES = 1 << 16
"""libsndfile's Vorbis encoder overflows the stack when it is given minutes of audio at once."""


def normalize_rms(samples: Floats, target_dbfs: float = -25.0, eps: float = 1e-6) -> Floats:
    """Scale to a loudness, then down again if a peak would exceed full scale.

    The rule of the model's own feature extractor (`VibeVoiceAcousticTokenizerFeatureExtractor`), with the mean square
    summed in float64: ``y = x · 10^(dBFS/20) / (rms + eps)``, and ``y / (max|y| + eps)`` where ``max|y| > 1``.

    Args:
        samples: (N,), N ≥ 1.
        target_dbfs: RMS of the result in decibels to full scale.
        eps: keeps silence from dividing by zero.

    Returns:
        (N,), float32, a new array.
    """
    gain = 10 ** (target_dbfs / 20) / (math.sqrt(mean_square(samples)) + eps)
    scaled = samples * np.float32(gain)
    peak = float(np.abs(scaled).max())
    return scaled / np.float32(peak + eps) if peak > 1 else scaled


def num_frames(num_samples: int, hop_length: int) -> int:
    """Frames that the encoders make of this many samples; a last, partial one counts.

    >>> num_frames(3_200, 3_200), num_frames(3_201, 3_200)
    (1, 2)
    """
    return -(-num_samples // hop_length)


def pad_to_frames(samples: Floats, hop_length: int) -> Floats:
    """Append zeros up to whole frames, (N,) → (num_frames · hop_length,)."""
    return np.pad(samples, (0, num_frames(len(samples), hop_length) * hop_length - len(samples)))


def write_audio(path: Path, samples: Floats, sampling_rate_hz: int) -> None:
    """Write WAV, FLAC (both 16 bits) or OGG (Vorbis), by suffix. The file appears whole or not at all.

    Args:
        path: ends in .wav, .flac or .ogg.
        samples: (N,); clipped to ±1 if they exceed it.
        sampling_rate_hz: of the samples.

    Raises:
        ArgumentError: another suffix.
        WriteError: the file cannot be written.
    """
    assert samples.ndim == 1
    assert np.isfinite(samples).all()
    if path.suffix.lower() not in WRITTEN_FORMATS:
        raise ArgumentError(
            f"{shown(path)}: audio cannot be written as {path.suffix or 'a file without suffix'!r}; name the file "
            f"{', '.join(WRITTEN_FORMATS)}."
        )
    form, subtype = WRITTEN_FORMATS[path.suffix.lower()]
    encoded = io.BytesIO()
    with soundfile.SoundFile(encoded, "w", sampling_rate_hz, channels=1, subtype=subtype, format=form) as file:
        for start in range(0, len(samples), WRITE_BLOCK_SAMPLES):
            file.write(samples[start : start + WRITE_BLOCK_SAMPLES])
    write_file(path, encoded.getvalue())


def mean_square(samples: Floats, center: float = 0.0) -> float:
    """Mean of (x − center)², summed in float64 without a float64 copy of hours of audio."""
    total = 0.0
    for start in range(0, len(samples), BLOCK_SAMPLES):
        block = samples[start : start + BLOCK_SAMPLES].astype(np.float64) - center
        total += float(np.dot(block, block))
    return total / len(samples)
