"""Whether a recording of the model ends well and goes at the right pace.

Everything is decided from the samples, the text, what a recogniser heard, and the generation's own record. The
thresholds are set so that none of the signs is seen in real clips (`tests/unit/evaluation/test_health.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.evaluation.words import normalise

Floats = NDArray[np.float32]

FRAME_SEC = 0.01
QUIET_DB = -40.0
"""Below the loudest 50 ms."""

LONG_SILENCE_SEC = 1.5
LONG_INNER_SILENCE_SEC = 2.0
LAST_WORDS = 2
"""Last words of the text that must be heard: one may be misheard, two were not said."""

SHORTEST_SEC_PER_WORD = 0.1
"""Nobody speaks ten words a second: what is shorter stopped at once."""

SHORTEST_LOOP_WORDS, LOOPS = 2, 3
FAST, SLOW = 1.25, 0.75
"""Pace against the real clips of the speaker, beyond which it is heard as wrong."""

SIGNS = (
    "last words missing",
    "long silence at the end",
    "long silence inside",
    "ran to the length limit",
    "repeats itself",
    "stopped at once",
    "cut off",
)


@dataclass(frozen=True)
class Health:
    """What is wrong with a recording.

    Attributes:
        duration_sec: of the whole.
        speech_sec: from its first sound to its last, inner pauses included.
        trailing_silence_sec: at its end.
        signs: of `SIGNS`, those that are seen.
    """

    duration_sec: float
    speech_sec: float
    trailing_silence_sec: float
    signs: tuple[str, ...]


def health(samples: Floats, rate_hz: int, text: str, heard: str, *, ended: bool = True, language: str = "en") -> Health:
    """Look at one recording.

    Args:
        samples: mono, (N,).
        rate_hz: of the samples.
        text: what should have been said.
        heard: what a recogniser heard.
        ended: whether the model ended by itself.
        language: of the text.
    """
    duration_sec = len(samples) / rate_hz
    loud = _loud_frames(samples, rate_hz)
    wanted, found = normalise(text, language).split(), normalise(heard, language).split()
    if not len(loud):
        return Health(duration_sec, 0.0, duration_sec, ("stopped at once",) if wanted else ())
    first, last = int(loud[0]), int(loud[-1])
    frames = int(duration_sec / FRAME_SEC)
    trailing = max(frames - 1 - last, 0) * FRAME_SEC
    speech_sec = (last - first + 1) * FRAME_SEC
    inner = float(np.diff(loud).max(initial=1) - 1) * FRAME_SEC
    stopped = speech_sec < SHORTEST_SEC_PER_WORD * len(wanted) or not found
    seen = {
        "last words missing": not stopped and _misses_the_end(wanted, found),
        "long silence at the end": trailing > LONG_SILENCE_SEC,
        "long silence inside": inner > LONG_INNER_SILENCE_SEC,
        "ran to the length limit": not ended,
        "repeats itself": repeats(found, wanted),
        "stopped at once": bool(wanted) and stopped,
        "cut off": not stopped and _is_cut_off(samples, rate_hz),
    }
    return Health(duration_sec, speech_sec, trailing, tuple(sign for sign in SIGNS if seen[sign]))


def repeats(heard: Sequence[str], wanted: Sequence[str] = ()) -> bool:
    """Whether some words come again and again, more often than the text has them.

    >>> repeats("on the table on the table on the table".split())
    True
    >>> repeats("no no no".split())
    False
    """
    for size in range(SHORTEST_LOOP_WORDS, len(heard) // LOOPS + 1):
        for start in range(len(heard) - LOOPS * size + 1):
            phrase = list(heard[start : start + size])
            if all(list(heard[start + i * size : start + (i + 1) * size]) == phrase for i in range(1, LOOPS)):
                text = " ".join(wanted)
                if " ".join(phrase * LOOPS) not in text:
                    return True
    return False


def is_off_pace(pace: float) -> bool:
    """Whether a pace against the real one is heard as wrong.

    >>> is_off_pace(1.3), is_off_pace(1.1), is_off_pace(0.7)
    (True, False, True)
    """
    return not SLOW <= pace <= FAST


def letters_per_sec(text: str, speech_sec: float, language: str = "en") -> float:
    """Pace: letters of the text for each second from the first sound to the last."""
    return len(normalise(text, language).replace(" ", "")) / speech_sec if speech_sec else 0.0


def _misses_the_end(wanted: Sequence[str], heard: Sequence[str]) -> bool:
    """Neither of the last two words is among the last few heard, and less was heard than was to be said.

    A word that the text has more than once, such as "the", must have been heard as often.
    """
    if len(wanted) <= LAST_WORDS or len(heard) >= len(wanted):
        return False
    tail = heard[-2 * LAST_WORDS :]
    return not any(word in tail and heard.count(word) >= wanted.count(word) for word in wanted[-LAST_WORDS:])


def _loud_frames(samples: Floats, rate_hz: int) -> NDArray[np.intp]:
    width = max(1, round(FRAME_SEC * rate_hz))
    frames = samples[: len(samples) // width * width].reshape(-1, width).astype(np.float64)
    if not len(frames):
        return np.zeros(0, dtype=np.intp)
    power = (frames**2).mean(axis=1)
    smooth = np.convolve(power, np.full(5, 0.2), mode="same")
    if smooth.max() <= 1e-9:
        return np.zeros(0, dtype=np.intp)
    return np.flatnonzero(power > smooth.max() * 10 ** (QUIET_DB / 10))


def _is_cut_off(samples: Floats, rate_hz: int) -> bool:
    """Whether the last 20 ms are nearly as loud as the loudest: a recording that ends inside a word."""
    width = max(1, round(0.02 * rate_hz))
    frames = samples[: len(samples) // width * width].reshape(-1, width).astype(np.float64)
    power = (frames**2).mean(axis=1)
    return bool(power[-1] > power.max() * 10 ** (-15.0 / 10))
