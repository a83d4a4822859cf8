"""Numbers about a recording of speech: how loud, how clean, how wide, and where its words begin and end.

In come samples, float within ±1, mono (N,) or with channels (N, C); out come numbers in decibels, seconds and hertz.
Nothing is decided here and nothing is changed: what is too much stands in `validation/thresholds.py`. The functions are
pure and need numpy only. How well they separate was measured on made faults (`benchmarks/validate_planted.py`).

Everything that looks at time uses levels of 10 ms frames; everything that looks at frequency lives in
`audio/spectrum.py`. Decibels are to full scale (dBFS, RMS) unless a name says that they are relative to the speech.

Shapes: N samples, C channels, L frames of 10 ms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Decibels = NDArray[np.float64]

FRAME_SEC = 0.01

DIGITAL_SILENCE_DBFS = -85.0
"""Below this a 10 ms frame holds nothing but rounding: 16-bit rounding noise is at −101 dBFS, its dither at −96."""

LOWEST_DBFS = -120.0
"""What a frame of zeros is given, so that no infinity enters any sum."""

SPEECH_RANGE_DB = 35.0
"""Speech is what lies within so much of the loudest twentieth of the frames: weak consonants are about 30 dB down."""

MIN_SPEECH_SEC = 0.03
MAX_GAP_SEC = 0.2
"""A pause within a word, the closure of a stop, is shorter; what is longer is not counted as speech."""

FALL_SEC = 0.15
"""Longer than a stop's closure and release, shorter than a word."""

MIN_CLIPPED_RUN = 3
"""Samples. A sine above 1 kHz has at most two samples within a rounding step of its peak."""


@dataclass(frozen=True)
class Activity:
    """Where somebody speaks, by energy.

    Attributes:
        segments_sec: (start, end) of each stretch of speech, in order, pauses below 0.2 s bridged.
        duration_sec: of the whole recording.
        level_dbfs: RMS of the frames with speech.
    """

    segments_sec: tuple[tuple[float, float], ...]
    duration_sec: float
    level_dbfs: float

    @property
    def speech_sec(self) -> float:
        """Seconds of speech, without the pauses."""
        return sum(end - start for start, end in self.segments_sec)

    @property
    def leading_silence_sec(self) -> float:
        """Before the first word."""
        return self.segments_sec[0][0] if self.segments_sec else self.duration_sec

    @property
    def trailing_silence_sec(self) -> float:
        """After the last word."""
        return self.duration_sec - self.segments_sec[-1][1] if self.segments_sec else self.duration_sec


def frame_levels(samples: Floats, rate_hz: int) -> Decibels:
    """RMS of each 10 ms, (N,) → (L,) in dBFS; a last frame of less than 10 ms is left out unless it is the only one."""
    size = max(1, round(rate_hz * FRAME_SEC))
    count = max(1, len(samples) // size)
    frames = samples[: count * size].reshape(count, -1)
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / frames.shape[1]
    return _decibels(power)


def find_speech(levels_L: Decibels) -> Activity:
    """Where somebody speaks, by energy alone: one rule, without a model, the same on every machine.

    A frame counts as speech within 35 dB of the loudest twentieth of the frames, and no nearer to the quietest tenth
    than 30 % of the distance between the two. Stretches of less than 0.03 s are dropped, pauses of less than 0.2 s are
    bridged. Steady noise 10 dB below the speech moves the borders of words by some 0.05 s; loud music counts as
    speech.

    >>> levels = np.array([-80.0] * 30 + [-20.0] * 50 + [-80.0] * 40)
    >>> activity = find_speech(levels)
    >>> activity.segments_sec, round(activity.level_dbfs), round(activity.trailing_silence_sec, 1)
    (((0.3, 0.8),), -20, 0.4)
    """
    total_sec = len(levels_L) * FRAME_SEC
    heard = levels_L[levels_L > DIGITAL_SILENCE_DBFS]
    if len(heard) == 0:
        return Activity((), total_sec, LOWEST_DBFS)
    quiet, loud = np.percentile(heard, [10, 95])
    is_speech = levels_L > max(loud - SPEECH_RANGE_DB, quiet + 0.3 * (loud - quiet))
    is_speech |= levels_L >= loud  # all frames are equally loud
    runs = [run for run in _runs(is_speech) if (run[1] - run[0]) * FRAME_SEC >= MIN_SPEECH_SEC - 1e-9]
    segments: list[tuple[int, int]] = []
    for start, end in runs:
        if segments and (start - segments[-1][1]) * FRAME_SEC < MAX_GAP_SEC:
            segments[-1] = (segments[-1][0], end)
        else:
            segments.append((start, end))
    level = _decibels(np.mean(10 ** (levels_L[is_speech] / 10)))
    in_sec = tuple((round(start * FRAME_SEC, 2), round(end * FRAME_SEC, 2)) for start, end in segments)
    return Activity(in_sec, round(total_sec, 2), float(level))


def edge_levels(levels_L: Decibels, speech_dbfs: float) -> tuple[float, float]:
    """How loud the first and the last 30 ms are, in dB relative to the speech: a word that is cut shows here.

    Recordings that begin and end in a pause are below −25 dB, unless they are noisy; a cut through a vowel is about 0.
    A cut inside the closure of a stop cannot be seen.
    """
    return float(levels_L[:3].max() - speech_dbfs), float(levels_L[-3:].max() - speech_dbfs)


def noise_floor(levels_L: Decibels) -> float:
    """Level of what is left where nobody speaks, in dBFS.

    The fifth percentile of the levels between the first and the last frame that is not digital silence (which is
    padding). An echo that dies away does not count, nor does the closure of a stop, which is shorter; noise that a gate
    has removed from the pauses is not found. White and pink noise mixed in 10 to 25 dB below speech are found within
    3 dB. Clean speech without a pause gives 25 dB below its level or less, never more.
    """
    heard = np.flatnonzero(levels_L > DIGITAL_SILENCE_DBFS)
    if len(heard) == 0:
        return LOWEST_DBFS
    return float(np.percentile(levels_L[heard[0] : heard[-1] + 1], 5))


def steepest_fall(levels_L: Decibels, speech_dbfs: float) -> float | None:
    """By how many dB the sound falls within 0.15 s where it falls fastest: small in a room that echoes.

    Speech itself stops within some hundredths of a second; in a room no fall is faster than the room's own, which takes
    T60 seconds for 60 dB. Each 0.15 s that begins within 10 dB of the speech's level is looked at, and the tenth with
    the largest falls counts. `decay_time` says the same in seconds. Noise limits the fall, too: to the distance between
    speech and noise.

    Returns:
        Decibels; None where there are fewer than ten falls.
    """
    span = round(FALL_SEC / FRAME_SEC)
    if len(levels_L) <= span:
        return None
    smooth = _decibels(np.convolve(10 ** (levels_L / 10), np.ones(3) / 3, "same"))
    falls = smooth[:-span] - smooth[span:]
    falls = falls[(smooth[:-span] > speech_dbfs - 10) & (falls > 0)]
    return float(max(np.percentile(falls, 90), 1.0)) if len(falls) >= 10 else None


def decay_time(fall_db: float) -> float:
    """The reverberation time (T60, seconds) that a `steepest_fall` stands for.

    >>> decay_time(9.0)
    1.0
    """
    return 60 * FALL_SEC / fall_db


def peak_dbfs(samples: Floats) -> float:
    """The largest sample of (N,) or (N, C)."""
    return float(_decibels(float(np.abs(samples).max(initial=0.0)) ** 2))


def clipped_share(samples: Floats) -> float:
    """Share of the samples that lie in flat tops: three or more samples in a row within a rounding step of the peak.

    The peak is the recording's own, so audio that was clipped and then turned down is found as well; after MP3 or
    another sampling rate the tops are no longer flat, and nothing is found. One flat top alone is not counted: a low
    tone may have one. (N, C): the worst channel counts.
    """
    if samples.ndim == 2:
        return max(clipped_share(samples[:, channel]) for channel in range(samples.shape[1]))
    if len(samples) == 0:
        return 0.0
    step = 1.5 / 32_768
    clipped = 0
    for side in (float(samples.max()), -float(samples.min())):
        if side < 0.05:  # −26 dBFS: at so few rounding steps, every crest is flat
            continue
        flat = samples >= side - step if side == float(samples.max()) else samples <= step - side
        runs = [end - start for start, end in _runs(flat) if end - start >= MIN_CLIPPED_RUN]
        clipped += sum(runs) if len(runs) > 1 else 0
    return clipped / len(samples)


def dc_offset(samples: Floats) -> float:
    """The mean of (N,) or (N, C), full scale 1; of several channels the one farthest from zero."""
    means = np.atleast_1d(samples.mean(axis=0, dtype=np.float64))
    return float(means[np.abs(means).argmax()])


def channel_difference(samples_NC: Floats, rate_hz: int) -> tuple[float, float]:
    """How two channels differ.

    Returns:
        Share of the time with sound in which only one channel has it, for the channel that does so less: 0.3 if left
        and right speak in turns, 0 if one channel is silent throughout or both have the same. Then the level of
        the mix relative to the channels' mean, in dB: 0 for equal channels, −3 for independent ones, far below −6 if
        they cancel each other. (0, 0) for one channel.
    """
    if samples_NC.ndim == 1 or samples_NC.shape[1] == 1:
        return 0.0, 0.0
    left, right = (frame_levels(np.ascontiguousarray(samples_NC[:, channel]), rate_hz) for channel in (0, 1))
    loud = max(np.percentile(left, 95), np.percentile(right, 95))
    sounding = np.maximum(left, right) > loud - 25
    only = (float((left - right > 15)[sounding].mean()), float((right - left > 15)[sounding].mean()))
    power = float(np.mean(np.square(samples_NC, dtype=np.float64)))
    mixed = float(np.mean(np.square(samples_NC.mean(axis=1), dtype=np.float64)))
    return min(only), float(_decibels(mixed) - _decibels(power))


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and end of every stretch of true."""
    edges = np.flatnonzero(np.diff(flags.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _decibels(power: float | Floats) -> Decibels:
    found: Decibels = np.maximum(10 * np.log10(np.maximum(power, 1e-12)), LOWEST_DBFS)
    return found
