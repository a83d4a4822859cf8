"""What a recogniser understands, and the word error against what should have been said.

Why: the loss says nothing about intelligibility; a recogniser does. Moonshine's tiny English model comes inside the
wheel of `moonshine-voice` 0.0.49 (later versions download it), needs no network and runs at a tenth of real time.

In: mono float32 audio at any rate. Out: text; errors as (edits, reference words), to be added up over sentences.
"""

import re
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.errors import require

_RATE_HZ = 16_000
_SILENCE_SEC = 0.5  # at both ends: without it the first and last words are lost (error 8.2 -> 3.9 %)
_PEAK = 0.9

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

Transcribe = Callable[[NDArray[np.float32], int], str]
"""Audio and its sampling rate in, text out."""


@dataclass(frozen=True)
class WordErrors:
    """Edits and reference words; add them up over sentences before dividing."""

    edits: int
    words: int

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.edits + other.edits, self.words + other.words)

    @property
    def rate(self) -> float:
        """Edits per reference word."""
        return self.edits / self.words if self.words else 0.0


class Recogniser:
    """Moonshine's tiny English recogniser, on the processor."""

    def __init__(self) -> None:
        # It imports sounddevice for its microphone, which wants a system library; nothing here needs one.
        sys.modules.setdefault("sounddevice", types.ModuleType("sounddevice"))
        moonshine: Any = require("asr", "moonshine_voice")
        self._transcriber = moonshine.Transcriber(
            model_path=str(moonshine.get_model_path("tiny-en")),
            model_arch=moonshine.ModelArch.TINY,
            options={"vad_threshold": 0.0},
        )

    def __call__(self, samples: NDArray[np.float32], rate_hz: int) -> str:
        """The text of one recording, (samples,) mono."""
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, _RATE_HZ)
        audio = audio / (np.abs(audio).max(initial=0.0) + 1e-6) * _PEAK
        silence = np.zeros(int(_SILENCE_SEC * _RATE_HZ), dtype=np.float32)
        padded = np.concatenate([silence, audio.astype(np.float32), silence])
        lines = self._transcriber.transcribe_without_streaming(padded.tolist(), _RATE_HZ).lines
        return " ".join(line.text for line in lines)


def spoken_words(text: str, same: dict[str, str] | None = None) -> list[str]:
    """The words of a text as they are spoken: lower case, no punctuation, single digits in words.

    Args:
        text: any English text.
        same: words to read as another, for homophones that no recogniser can tell apart.

    >>> spoken_words("Bring 2 of the Books, at 10.", {"too": "two"})
    ['bring', 'two', 'of', 'the', 'books', 'at', 'ten']
    """
    plain = re.sub(r"[^a-z0-9 ]", " ", text.lower().replace("'", ""))
    plain = re.sub(r"\b10\b", "ten", plain)
    plain = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", plain)
    same = same or {}
    return [same.get(word, word) for word in plain.split()]


def edit_distance(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other (Levenshtein).

    >>> edit_distance(["take", "the", "box"], ["take", "a", "red", "box"])
    2
    """
    row = list(range(len(heard) + 1))
    for i, wanted in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, word in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (wanted != word))
    return row[-1]


def word_errors(reference: str, heard: str, same: dict[str, str] | None = None) -> WordErrors:
    """Word errors of one sentence."""
    wanted = spoken_words(reference, same)
    return WordErrors(edit_distance(wanted, spoken_words(heard, same)), len(wanted))


def bootstrap_interval(
    errors: Sequence[WordErrors], draws: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the word error rate, sentences drawn with replacement.

    Returns:
        The lower and the upper end.
    """
    rng = np.random.default_rng(seed)
    table = np.array([(error.edits, error.words) for error in errors], dtype=np.float64)
    chosen = table[rng.integers(len(table), size=(draws, len(table)))].sum(axis=1)
    low, high = np.quantile(chosen[:, 0] / np.maximum(chosen[:, 1], 1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
