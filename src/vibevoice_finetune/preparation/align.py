"""A long transcript laid over the cuts of its recording, by what a recogniser heard.

A recogniser hears words wrong; a book spells them right but does not say when they are spoken. So the words that were
heard, cut by cut, and the words of the transcript are laid side by side with the fewest edits over the whole recording
(word Levenshtein distance, rapidfuzz), and each cut gets the transcript's words from the first that falls into it to
the last. Words of the transcript that nobody heard at a border between two cuts go where the sentence ends.

In come the texts heard and the transcript, out goes a text for each cut and how far it is from what was heard.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from vibevoice_finetune.errors import require

SENTENCE_END = (".", "!", "?", "…", "。", "！", "？", ":", ";")
CLAUSE_END = (",", "、", "，", "—", "–", "-")
SIMILAR = 0.5
"""Share of letters that a misheard word has in common with the written one."""

CLOSING = "\"'”’»)]"


@dataclass(frozen=True)
class Aligned:
    """What the transcript has for one cut.

    Attributes:
        text: the transcript's own words; empty if none falls into the cut.
        error: edits between the letters that were heard and those of `text`, over the larger number of letters;
            0 is equal, 1 is nothing in common.
    """

    text: str
    error: float


@dataclass(frozen=True)
class _Word:
    key: str  # what is compared
    start: int
    end: int  # where it stands in the transcript


def align(heard: Sequence[str], transcript: str) -> list[Aligned]:
    """Give each cut its part of the transcript.

    Args:
        heard: what a recogniser heard in each cut, in order.
        transcript: of the whole recording.

    Raises:
        UserError: rapidfuzz is not installed.

    >>> [found.text for found in align(["hello their", "how are you"], "Hello there! How are you?")]
    ['Hello there!', 'How are you?']
    """
    words = _words(transcript)
    spoken = [[word.key for word in _words(text)] for text in heard]
    flat = [key for keys in spoken for key in keys]
    positions = _positions(flat, [word.key for word in words])
    borders = _borders([len(keys) for keys in spoken], positions, words, transcript)
    found = []
    for number, text in enumerate(heard):
        part = words[borders[number] : borders[number + 1]]
        own = _with_marks(transcript, part, words, borders[number + 1]) if part else ""
        found.append(Aligned(own, letter_error(text, own)))
    return found


def letter_error(heard: str, text: str) -> float:
    """Edits between the letters and digits of two texts, over the larger number of them; 0 to 1.

    >>> letter_error("Hello, World", "hello word")
    0.1
    """
    one, other = letters(heard), letters(text)
    longest = max(len(one), len(other))
    distance: int = require("prepare", "rapidfuzz.distance").Levenshtein.distance(one, other)
    return distance / longest if longest else 0.0


def letters(text: str) -> str:
    """Letters and digits alone, without case and accents; what is spoken of a text, about."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in plain if letter.isalnum())


def _words(text: str) -> list[_Word]:
    """Words as the text has them, by what of them is spoken; in scripts without spaces a letter is a word."""
    found = []
    for match in re.finditer(r"\S+", text):
        if _is_unspaced(match.group()):
            for offset, letter in enumerate(match.group()):
                if letters(letter):
                    at = match.start() + offset
                    found.append(_Word(letters(letter), at, at + 1))
        elif letters(match.group()):
            found.append(_Word(letters(match.group()), match.start(), match.end()))
    return found


def _is_unspaced(word: str) -> bool:
    """Chinese, Japanese and Thai are written without spaces."""
    return bool(re.search(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]", word))


def _positions(heard: list[str], words: list[str]) -> list[int | None]:
    """For each word heard the word of the transcript that it stands for, or None."""
    levenshtein = require("prepare", "rapidfuzz.distance").Levenshtein
    positions: list[int | None] = [None] * len(heard)
    for tag, heard_start, heard_end, start, _ in levenshtein.opcodes(heard, words):
        if tag not in ("equal", "replace"):
            continue
        for offset in range(heard_end - heard_start):
            one, other = heard[heard_start + offset], words[start + offset]
            # An edit may stand anywhere at the same cost; only one between similar words says where it was spoken.
            if tag == "equal" or levenshtein.normalized_similarity(one, other) >= SIMILAR:
                positions[heard_start + offset] = start + offset
    return positions


def _borders(lengths: list[int], positions: list[int | None], words: list[_Word], text: str) -> list[int]:
    """Where in the transcript each cut begins, and where the last one ends; never falls.

    What the transcript has before the first word heard and after the last one belongs to no cut, but for the rest of
    the sentence.
    """
    total = len(words)
    known = [position for position in positions if position is not None]
    if not known:
        return [0] * (len(lengths) + 1)
    first, last = min(known), max(known) + 1
    before = list(accumulate((-1 if p is None else p for p in positions), max, initial=-1))
    after = list(accumulate((total if p is None else p for p in reversed(positions)), min, initial=total))[::-1]
    starts = [border for border in range(first, -1, -1) if border == 0 or _ends(SENTENCE_END, border, words, text)]
    borders, at = [starts[0]], 0
    for number, length in enumerate(lengths[:-1]):
        at += length
        low = max(before[at] + 1, borders[-1])
        borders.append(low if not length and number else _best_border(low, max(after[at], low), words, text))
    return [*borders, max(_best_border(last, total, words, text), borders[-1])]


def _best_border(low: int, high: int, words: list[_Word], text: str) -> int:
    """Of the borders that the words heard leave open, the one at the end of a sentence, else of a clause."""
    for ends in (SENTENCE_END, CLAUSE_END):
        for border in range(low, high + 1):
            if border and _ends(ends, border, words, text):
                return border
    return low


def _ends(marks: tuple[str, ...], border: int, words: list[_Word], text: str) -> bool:
    """Whether the word before a border is followed by one of these marks."""
    return text[words[border - 1].start : _end(text, words, border)].rstrip(CLOSING + " \n").endswith(marks)


def _end(text: str, words: list[_Word], border: int) -> int:
    """Where the word before a border ends, with the marks that follow it."""
    return words[border].start if border < len(words) else len(text)


def _with_marks(text: str, part: list[_Word], words: list[_Word], border: int) -> str:
    """The transcript from the first to the last word, with the marks behind the last one that stand without a space."""
    tail = text[part[-1].end : _end(text, words, border)]
    marks = re.match(r"\S*", tail)
    own = text[part[0].start : part[-1].end] + (marks.group() if marks else "")
    return " ".join(own.split())
