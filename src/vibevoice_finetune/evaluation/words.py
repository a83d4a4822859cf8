"""Errors between what should have been said and what a recogniser heard.

Words come from jiwer's alignment after both texts were normalised: for English by the rules that Whisper was judged
with (numbers, spellings, contractions), else by its basic form (case, punctuation). Errors are counted, not divided:
they are added up over rows before a rate is made of them, so that a long row weighs more than a short one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from vibevoice_finetune.errors import require

WITHOUT_SPACES = ("ja", "km", "lo", "my", "th", "yue", "zh")
"""Languages written without spaces: each letter counts as a word, as in Whisper's own evaluation."""


@dataclass(frozen=True)
class Errors:
    """Edits that turn a reference into what was heard.

    Attributes:
        substituted: words or letters heard as others.
        deleted: of the reference, not heard.
        inserted: heard, but not of the reference.
        total: words or letters of the reference.
    """

    substituted: int
    deleted: int
    inserted: int
    total: int

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.substituted + other.substituted,
            self.deleted + other.deleted,
            self.inserted + other.inserted,
            self.total + other.total,
        )

    @property
    def edits(self) -> int:
        """All of them."""
        return self.substituted + self.deleted + self.inserted

    @property
    def rate(self) -> float:
        """Edits per word or letter of the reference; above 1 where more was heard than was to be said."""
        return self.edits / self.total if self.total else float(self.edits > 0)


def normalise(text: str, language: str | None = "en") -> str:
    """The text as it is compared.

    Raises:
        UserError: whisper-normalizer is not installed.
    """
    words = _normaliser("en" if language == "en" else "", language in WITHOUT_SPACES)(text).split()
    return " ".join(word for word in words if any(letter.isalnum() for letter in word))


@cache
def _normaliser(language: str, split_letters: bool) -> Callable[[str], str]:
    if language == "en":
        english: Callable[[str], str] = require("evaluate", "whisper_normalizer.english").EnglishTextNormalizer()
        return english
    basic: Callable[[str], str] = require("evaluate", "whisper_normalizer.basic").BasicTextNormalizer(
        split_letters=split_letters
    )
    return basic


def word_errors(reference: str, heard: str, language: str | None = "en") -> Errors:
    """Errors in words; in languages without spaces, in letters.

    >>> word_errors("The cat sat.", "the bat sat down")
    Errors(substituted=1, deleted=0, inserted=1, total=3)
    """
    return _errors(normalise(reference, language).split(), normalise(heard, language).split())


def letter_errors(reference: str, heard: str, language: str | None = "en") -> Errors:
    """Errors in letters, spaces left out.

    >>> letter_errors("Two cats", "two hats").substituted
    1
    """
    one, other = normalise(reference, language).replace(" ", ""), normalise(heard, language).replace(" ", "")
    return _errors(list(one), list(other))


def _errors(reference: list[str], heard: list[str]) -> Errors:
    if not reference or not heard:
        return Errors(0, len(reference), len(heard), len(reference))
    found = require("evaluate", "jiwer").process_words([" ".join(reference)], [" ".join(heard)])
    return Errors(found.substitutions, found.deletions, found.insertions, len(reference))
