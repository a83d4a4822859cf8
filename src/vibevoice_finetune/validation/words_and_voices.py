"""What a recogniser and a speaker encoder say of the rows: another text, another voice.

The models are handed in behind two protocols, so that nothing here depends on one of them. Both kinds of check compare
a row with the others of the set, because every recogniser and every encoder has its own idea of what is close.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.data.script import shorten
from vibevoice_finetune.errors import require, shown
from vibevoice_finetune.validation.findings import Finding
from vibevoice_finetune.validation.text_checks import normalised

Embedding = NDArray[np.float32]

MAX_CHARACTER_ERROR = 0.3
MAX_CHARACTER_ERROR_DEGRADED = 0.65
"""A small recogniser errs in 1 to 4 % of the words of clean speech, and in half of the characters of a church or of a
voice that it does not know; another text differs in 70 % of its characters or more."""

ERROR_DEVIATIONS = 5.0
ENOUGH_ROWS = 10

MIN_VOICE_DISTANCE = 0.2
MIN_VOICE_DISTANCE_DEGRADED = 0.35
"""Cosine. Other voices are 0.3 to 0.5 away; the same voice by telephone, or heavily compressed, 0.25 to 0.3."""

DEGRADING = frozenset({"noise", "music", "reverberation", "narrow-band", "clipped", "level", "two-people"})
"""Kinds of findings that explain why a model hears something else."""

VOICE_DEVIATIONS = 5.0
MIN_CLIPS = 4
"""Fewer clips of a speaker do not say what their voice is."""


class Recogniser(Protocol):
    """Speech to text."""

    def __call__(self, samples: NDArray[np.float32], rate_hz: int, /) -> str:
        """The words of one recording, (N,) mono."""


class SpeakerEncoder(Protocol):
    """A voice to a vector."""

    def __call__(self, samples: NDArray[np.float32], rate_hz: int, /) -> Embedding:
        """The unit vector of one recording, (N,) mono."""


@dataclass(frozen=True, eq=False)
class Voice:
    """The voice of one recording: where it stands, whose it should be, and its unit vector.

    Attributes:
        degraded: something else is wrong with the sound, which moves the vector, too.
    """

    where: str
    speaker: str | None
    embedding: Embedding
    degraded: bool = False


@dataclass(frozen=True)
class Words:
    """A row's text and what was heard; `degraded`: something is wrong with the sound, so that less can be heard."""

    where: str
    text: str
    heard: str
    degraded: bool = False
    speaker: str | None = None


def check_words(rows: Sequence[Words]) -> Iterator[Finding]:
    """Rows whose text is not what the recogniser heard.

    The share of wrong characters may be 30 %, and more where the recogniser errs more in most rows of the speaker: five
    robust deviations above the speaker's median, 65 % at most.

    Raises:
        UserError: rapidfuzz is not installed.
    """
    levenshtein = require("asr", "rapidfuzz.distance").Levenshtein
    errors = []
    for row in rows:
        wanted, got = normalised(row.text).replace(" ", ""), normalised(row.heard).replace(" ", "")
        errors.append(levenshtein.distance(wanted, got) / max(1, len(wanted), len(got)))
    by_speaker: dict[str | None, list[float]] = {}
    for row, error in zip(rows, errors, strict=True):
        by_speaker.setdefault(row.speaker, []).append(error)
    limits = {speaker: _error_limit(found) for speaker, found in by_speaker.items()}
    for row, error in zip(rows, errors, strict=True):
        if error > (MAX_CHARACTER_ERROR_DEGRADED if row.degraded else limits[row.speaker]):
            sides = f'text "{shorten(row.text, 200)}", heard "{shorten(row.heard, 200)}"'
            yield Finding("wrong-text", row.where, f"{error:.0%} of the characters differ: {sides}", error)


def _error_limit(errors: Sequence[float]) -> float:
    """How much of a speaker's text may differ before it is another one."""
    if len(errors) < ENOUGH_ROWS:
        return MAX_CHARACTER_ERROR
    median = float(np.median(errors))
    deviation = 1.4826 * float(np.median(np.abs(np.array(errors) - median)))
    return min(MAX_CHARACTER_ERROR_DEGRADED, max(MAX_CHARACTER_ERROR, median + ERROR_DEVIATIONS * deviation))


def check_voices(voices: Sequence[Voice]) -> Iterator[Finding]:
    """Recordings whose voice is far from the others of the same speaker.

    Each is compared with the middle of its speaker's others; far is five robust deviations below the speaker's median,
    and 0.2 of cosine at least. The middle is taken twice, the second time without the recordings that were far.
    """
    by_speaker: dict[str, list[Voice]] = {}
    for voice in voices:
        if voice.speaker is not None:
            by_speaker.setdefault(voice.speaker, []).append(voice)
    for speaker, group in by_speaker.items():
        if len(group) < MIN_CLIPS:
            continue
        vectors = np.stack([voice.embedding for voice in group])
        degraded = np.array([voice.degraded for voice in group])
        near = np.ones(len(group), dtype=bool)
        for _ in range(2):
            likeness = _likeness(vectors, near)
            near = likeness >= _limits(likeness, near, degraded)
        for voice, value, is_near in zip(group, likeness, near, strict=True):
            if not is_near:
                usual = f"{np.median(likeness):.2f} is usual"
                found = f"likeness {value:.2f} to the others of {shown(speaker)!r}, where {usual}"
                yield Finding("other-voice", voice.where, found, float(-value))


def check_prompts(pairs: Sequence[tuple[Voice, Voice]]) -> Iterator[Finding]:
    """Voice prompts of one-speaker rows that have another voice than the target.

    Args:
        pairs: (target, prompt).
    """
    if len(pairs) < MIN_CLIPS:
        return
    likeness = np.array([float(target.embedding @ prompt.embedding) for target, prompt in pairs])
    degraded = np.array([target.degraded or prompt.degraded for target, prompt in pairs])
    limits = _limits(likeness, np.ones(len(pairs), dtype=bool), degraded)
    for (_, prompt), value, limit in zip(pairs, likeness, limits, strict=True):
        if value < limit:
            found = f"likeness {value:.2f} to the row's audio, where {np.median(likeness):.2f} is usual"
            yield Finding("prompt-voice", prompt.where, found, float(-value))


def _likeness(vectors_VE: NDArray[np.float32], near_V: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cosine of each vector with the mean of the others that are near, itself left out."""
    total = vectors_VE[near_V].sum(axis=0)
    middles = total - np.where(near_V[:, None], vectors_VE, 0)
    norms = np.maximum(np.linalg.norm(middles, axis=1), 1e-9)
    return np.asarray((middles * vectors_VE).sum(axis=1) / norms, dtype=np.float64)


def _limits(
    likeness_V: NDArray[np.float64], near_V: NDArray[np.bool_], degraded_V: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Below which likeness each is far from the others."""
    median = float(np.median(likeness_V[near_V]))
    deviation = 1.4826 * float(np.median(np.abs(likeness_V[near_V] - median)))
    least = np.where(degraded_V, MIN_VOICE_DISTANCE_DEGRADED, MIN_VOICE_DISTANCE)
    return np.asarray(median - np.maximum(least, VOICE_DEVIATIONS * deviation), dtype=np.float64)
