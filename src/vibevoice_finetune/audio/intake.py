"""Blocks of any rate and any channels become mono float32 samples at 24 kHz, in bounded memory.

Everything runs through `Intake`: it checks what it is given, mixes to mono and resamples as it goes, so a header that
promises ten hours, or a small file that truly unpacks to ten hours, costs no more memory than what is kept of it.

Shapes: N samples, C channels.
"""

from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import (
    MAX_DURATION_SEC,
    SAMPLING_RATE_HZ,
    AudioError,
    Floats,
    check_duration,
    check_rate,
    decode_blocks,
)
from vibevoice_finetune.audio.span import Span

MAX_PEAK = 100.0
"""Full scale of floating-point audio is 1. Forty decibels above it, the numbers are integers that were never scaled."""

CANCELLED = 1e-4
"""Share of the channels' energy, −40 dB, below which a mix has lost what they held."""

INAUDIBLE_SQUARE = 1e-9
"""Mean square of what is silent anyway, −90 dBFS."""


def decode(file: Path | bytes | memoryview, label: str, span: Span | None = None) -> Floats:
    """Decode a file or its bytes; see `decode_blocks`.

    Returns:
        Samples (N,), float32, mono, 24 kHz.

    Raises:
        AudioError: it cannot be opened or decoded, is cut short, too long, or holds numbers that are not audio.
        SpanError: the part lies outside of the audio.
    """
    intake: Intake | None = None
    parts: list[Floats] = []
    for rate_hz, block_NC in decode_blocks(file, label, span, MAX_DURATION_SEC):
        intake = intake or Intake(rate_hz, label, MAX_DURATION_SEC)
        parts.append(intake.add(block_NC))
    if intake is not None:
        parts.append(intake.finish())
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


class Intake:
    """Takes audio in blocks and gives it back: mono, 24 kHz.

    Args:
        rate_hz: sampling rate of the blocks.
        label: how messages name the audio.
        max_sec: more is refused.
    """

    def __init__(self, rate_hz: int, label: str, max_sec: float) -> None:
        check_rate(rate_hz, label)
        self._rate_hz = rate_hz
        self._label = label
        self._max_sec = max_sec
        self._taken = 0
        self._energy, self._mono_energy = 0.0, 0.0
        self._resampler: soxr.ResampleStream | None = None
        if rate_hz != SAMPLING_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="VHQ")

    def add(self, block_NC: NDArray[np.floating]) -> Floats:
        """Take the next block, (N, C), full scale at ±1; what can be given of the audio so far.

        Raises:
            AudioError: a number is not finite or no audio, or the whole has become too long.
        """
        self._taken += len(block_NC)
        check_duration(self._taken / self._rate_hz, self._max_sec, self._label)
        if not np.isfinite(block_NC).all():
            raise AudioError(
                f"{self._label} holds numbers that are not finite (NaN or infinity); write the file again from its "
                "source, or leave it out.",
                "non-finite audio",
            )
        peak = float(np.abs(block_NC).max(initial=0.0))
        if peak > MAX_PEAK:
            raise AudioError(
                f"{self._label} has samples of {peak:,.0f}; floating-point audio lies within ±1; divide integers by "
                "their full scale (int16: 32,768) or keep them as int16.",
                "undecodable audio",
            )
        mono = block_NC[:, 0] if block_NC.shape[1] == 1 else block_NC.mean(axis=1)
        samples = np.ascontiguousarray(mono, dtype=np.float32)
        if block_NC.shape[1] > 1:
            self._energy += float(np.square(block_NC, dtype=np.float32).mean(axis=1).sum(dtype=np.float64))
            self._mono_energy += float(np.square(samples).sum(dtype=np.float64))
        # A copy: the decoder may fill the same block again.
        return samples.copy() if self._resampler is None else self._resampler.resample_chunk(samples)

    def finish(self) -> Floats:
        """What is left in the resampler.

        Raises:
            AudioError: mixing the channels has left nothing.
        """
        if self._mono_energy < CANCELLED * self._energy and self._energy > self._taken * INAUDIBLE_SQUARE:
            raise AudioError(
                f"{self._label}: its channels cancel each other when they are mixed to mono (one is the other "
                "inverted); expected channels that add up; keep one of them, or invert one.",
                "channels cancel",
            )
        nothing = np.zeros(0, dtype=np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)
