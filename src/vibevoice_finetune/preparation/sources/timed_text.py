"""Texts with times: subtitles (SRT, VTT, ASS), Audacity's labels, Praat's TextGrids.

In comes a file, out go passages in the order of time. What is no speech is taken out: markup, sounds in brackets, music
signs; a name before a colon at the head of a subtitle becomes its speaker.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vibevoice_finetune.errors import DataError, require, shown
from vibevoice_finetune.preparation.recordings import Passage

SUBTITLE_SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
TEXTGRID_SUFFIX = ".textgrid"
LABELS_SUFFIXES = (".labels.txt", ".labels", ".audacity.txt")
TIMED_SUFFIXES = (*SUBTITLE_SUFFIXES, TEXTGRID_SUFFIX, ".TextGrid", *LABELS_SUFFIXES)
MAX_BYTES = 50_000_000

VOICE_TAG = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]{1,40})>")
NAME_MARK = "\u2063"
"""Put around the name of a voice tag, which the reader of subtitles would drop."""

NAME_AHEAD = re.compile(rf"^(?:-\s*)?(?:{NAME_MARK}([^{NAME_MARK}]+){NAME_MARK}|([A-Z][\w .'-]{{0,30}}):)\s*")
MARKUP = re.compile(r"\{[^}]*\}|<[^>]*>")
SOUNDS = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫][^♪♫]*[♪♫]?")
WORD_TIERS = ("word", "phone", "syllab", "segment")


def read_timed_text(path: Path) -> list[Passage]:
    """Read a file of timed text.

    Raises:
        DataError: it cannot be read, or holds no passage.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{shown(path)}: is longer than {MAX_BYTES:,} bytes.")
        raw = path.read_bytes()
        coding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        text = raw.decode(coding)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: is not UTF-8 (byte {error.start:,}); save it as UTF-8.") from error
    suffix = path.suffix.lower()
    if suffix in SUBTITLE_SUFFIXES:
        found = list(_subtitles(text, path))
    elif suffix == TEXTGRID_SUFFIX:
        found = list(_textgrid(text, path))
    else:
        found = list(_labels(text, path))
    found = sorted((passage for passage in found if passage.text), key=lambda passage: passage.start_sec)
    if not found:
        raise DataError(f"{shown(path)}: holds no text with times.")
    return found


def _passage(start_sec: float, end_sec: float, text: str, speaker: str | None = None) -> Passage:
    """A passage with its text cleaned.

    >>> _passage(0, 1, "ANNA: <i>Come in.</i> [door]")
    Passage(start_sec=0, end_sec=1, text='Come in.', speaker='ANNA')
    """
    match = NAME_AHEAD.match(text)
    if match and speaker is None:
        speaker, text = (match[1] or match[2]).strip(), text[match.end() :]
    text = SOUNDS.sub(" ", MARKUP.sub("", text.replace("\\N", " ").replace("\\n", " ")))
    text = re.sub(r"^\s*-\s+", "", text)
    return Passage(start_sec, end_sec, " ".join(text.split()), speaker)


def _subtitles(text: str, path: Path) -> Iterator[Passage]:
    pysubs2 = require("prepare", "pysubs2")
    try:
        marked = VOICE_TAG.sub(rf"{NAME_MARK}\1{NAME_MARK}", text)
        events = pysubs2.SSAFile.from_string(marked, format_=path.suffix.lower()[1:].replace("ssa", "ass"))
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise DataError(f"{shown(path)}: cannot be read as subtitles ({shown(error)}).") from error
    for event in events:
        if not event.is_comment and event.end > event.start:
            yield _passage(event.start / 1000, event.end / 1000, event.text, event.name or None)


def _labels(text: str, path: Path) -> Iterator[Passage]:
    """Audacity: `start<tab>end<tab>label`, seconds; lines that begin with a backslash hold frequencies."""
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        parts = line.split("\t", 2)
        try:
            start, end = float(parts[0].replace(",", ".")), float(parts[1].replace(",", "."))
            label = parts[2]
        except (ValueError, IndexError) as error:
            raise DataError(f"{shown(path)}:{number}: expected start, end and text between tabs.") from error
        if 0 <= start < end < float("inf"):
            yield _passage(start, end, label)


def _textgrid(text: str, path: Path) -> Iterator[Passage]:
    """Praat's TextGrid, long or short: each interval tier is the speaker of its name; tiers of words are left out."""
    values = re.findall(r'"((?:[^"]|"")*)"|(?<![\w"])(-?\d+(?:\.\d+)?(?:[eE]-?\d+)?)(?![\w"\]])|(<exists>)', text)
    stream = iter([_value(*value) for value in values])
    try:
        kind, what = next(stream), next(stream)
        if kind != "ooTextFile" or what != "TextGrid":
            raise DataError(f"{shown(path)}: is not a TextGrid of Praat.")
        next(stream), next(stream)  # where the grid begins and ends
        count = next(stream)
        while not isinstance(count, float):
            count = next(stream)
        tiers = [_tier(stream) for _ in range(int(count))]
    except (StopIteration, TypeError, ValueError) as error:
        raise DataError(f"{shown(path)}: ends in the middle, or is not a TextGrid of Praat.") from error
    spoken = [(name, passages) for name, passages in tiers if not name.lower().startswith(WORD_TIERS)]
    for name, passages in spoken:
        for start, end, label in passages:
            yield _passage(start, end, label, name if len(spoken) > 1 else None)


def _value(quoted: str, number: str, exists: str) -> str | float:
    if number:
        return float(number)
    return exists or quoted.replace('""', '"')


def _tier(stream: Iterator[str | float]) -> tuple[str, list[tuple[float, float, str]]]:
    kind, name = str(next(stream)), str(next(stream))
    next(stream), next(stream)
    passages = []
    for _ in range(int(float(next(stream)))):
        start = float(next(stream))
        end = float(next(stream)) if kind == "IntervalTier" else start
        passages.append((start, end, str(next(stream))))
    return name, passages if kind == "IntervalTier" else []
