"""What a recogniser and a speaker encoder say of the rows: another text, another voice.

The models are handed in behind two protocols, so that nothing here depends on one of them. Both kinds of check compare
a row with the others of the set, because every recogniser and every encoder has its own idea of what is close.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.data.prompt import shorten
from vibevoice_finetune.errors import require
from vibevoice_finetune.validation.findings import Finding
from vibevoice_finetune.validation.text_checks import normalised

Embedding = NDArray[np.float32]

MAX_CHARACTER_ERROR = 0.3
"""A small recogniser errs in 1 to 4 % of the words of clean speech; another text differs in 70 % of its characters."""

MIN_VOICE_DISTANCE = 0.2
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
    """The voice of one recording: where it stands, whose it should be, and its unit vector."""

    where: str
    speaker: str | None
    embedding: Embedding


def check_words(texts: Sequence[tuple[str, str, str]]) -> Iterator[Finding]:
    """Rows whose text is not what the recogniser heard.

    Args:
        texts: (where, the row's text, what was heard).

    Raises:
        UserError: rapidfuzz is not installed.
    """
    levenshtein = require("asr", "rapidfuzz.distance").Levenshtein
    for where, text, heard in texts:
        wanted, got = normalised(text).replace(" ", ""), normalised(heard).replace(" ", "")
        error = levenshtein.distance(wanted, got) / max(1, len(wanted))
        if error > MAX_CHARACTER_ERROR:
            found = f'{min(error, 9.99):.0%} of the characters differ: text "{shorten(text)}", heard "{shorten(heard)}"'
            yield Finding("wrong-text", where, found, error)


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
        near = np.ones(len(group), dtype=bool)
        for _ in range(2):
            likeness = _likeness(vectors, near)
            near = likeness >= _limit(likeness[near])
        for voice, value, is_near in zip(group, likeness, near, strict=True):
            if not is_near:
                found = f"likeness {value:.2f} to the others of {speaker!r}, where {np.median(likeness):.2f} is usual"
                yield Finding("other-voice", voice.where, found, float(-value))


def check_prompts(pairs: Sequence[tuple[Voice, Voice]]) -> Iterator[Finding]:
    """Voice prompts of one-speaker rows that have another voice than the target.

    Args:
        pairs: (target, prompt).
    """
    if len(pairs) < MIN_CLIPS:
        return
    likeness = np.array([float(target.embedding @ prompt.embedding) for target, prompt in pairs])
    limit = _limit(likeness)
    for (_, prompt), value in zip(pairs, likeness, strict=True):
        if value < limit:
            found = f"likeness {value:.2f} to the row's audio, where {np.median(likeness):.2f} is usual"
            yield Finding("prompt-voice", prompt.where, found, float(-value))


def _likeness(vectors_VE: NDArray[np.float32], near_V: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cosine of each vector with the mean of the others that are near, itself left out."""
    total = vectors_VE[near_V].sum(axis=0)
    middles = total - np.where(near_V[:, None], vectors_VE, 0)
    norms = np.maximum(np.linalg.norm(middles, axis=1), 1e-9)
    return np.asarray((middles * vectors_VE).sum(axis=1) / norms, dtype=np.float64)


def _limit(likeness: NDArray[np.float64]) -> float:
    median = float(np.median(likeness))
    deviation = 1.4826 * float(np.median(np.abs(likeness - median)))
    return median - max(MIN_VOICE_DISTANCE, VOICE_DEVIATIONS * deviation)
