"""Which part of a recording a row means, from the keys that manifests use for it.

In come the values of a row (or of an audio object inside it), out goes a `Span` in seconds, or None for all of it. Keys
that contradict each other, or hold no seconds, are refused: ignoring them would pair a whole recording with a part of
its words.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeGuard

import numpy as np

from vibevoice_finetune.errors import DataError, shown

_OF_AUDIO = "(?:audio|wav|segment|seg|clip|utterance|utt|speech)?"
_UNIT = "(?P<unit>s|secs?|seconds?|ms|msecs?|millis|milliseconds?)?"
_PLACES = (
    ("start", re.compile(f"{_OF_AUDIO}(?:start|offset|begin|onset)(?:time|at)?{_UNIT}")),
    ("end", re.compile(f"{_OF_AUDIO}(?:end|stop)(?:time|at)?{_UNIT}")),
    ("duration", re.compile(f"{_OF_AUDIO}(?:duration|dur){_UNIT}")),
    ("length", re.compile(f"{_OF_AUDIO}(?:length|len){_UNIT}")),  # often of a text: counts beside a start only
    ("samples", re.compile("(?:start|begin|end|stop)(?:samples?|frames?)|(?:samples?|frames?)(?:start|end|offset)")),
    ("pair", re.compile(f"{_OF_AUDIO}(?:timestamps?|span|interval|segment|times?){_UNIT}")),
)
"""What a key says about the part that is meant, by its letters alone, in small ones."""

_RATE = re.compile(
    "(?:audio|orig|original)?(?:sampl(?:e|ing)rate|samplerate|sr|sampl(?:e|ing)freq(?:uency)?)(?:hz)?|fs"
)
_NOT_LETTERS = re.compile("[^a-z]")

ROUNDING_SEC = 0.1
"""How far start + duration may be from end, and an end behind the end of the audio: manifests round."""

STATED_TOLERANCE = 0.1
"""How much longer than its row states audio may be, as a share, before a part of it must have been meant."""
STATED_TOLERANCE_SEC = 0.5


class SpanError(DataError):
    """The keys that describe a part of a recording make no sense."""


@dataclass(frozen=True)
class Span:
    """A part of a recording.

    Attributes:
        start_sec: where it begins.
        end_sec: where it ends; None for the end of the recording.
    """

    start_sec: float
    end_sec: float | None

    def samples(self, num_samples: int, rate_hz: int) -> tuple[int, int]:
        """First sample, and the one after the last, in a recording of `num_samples`.

        Raises:
            SpanError: it ends behind the end of the recording, or begins there.

        >>> Span(0.5, 1.0).samples(24_000, 24_000)
        (12000, 24000)
        """
        start = round(self.start_sec * rate_hz)
        end = num_samples if self.end_sec is None else round(self.end_sec * rate_hz)
        if start >= num_samples or end > num_samples + ROUNDING_SEC * rate_hz:
            raise SpanError(
                f"the row asks for {self} of audio that is {num_samples / rate_hz:,.2f} s long; expected seconds "
                "within the audio; correct the row."
            )
        return start, min(end, num_samples)

    def __str__(self) -> str:
        end = "the end" if self.end_sec is None else f"{self.end_sec:,.2f} s"
        return f"{self.start_sec:,.2f} s to {end}"


def parse_span(values: Mapping[str, object], where: str) -> tuple[Span | None, float | None]:
    """The part of the audio that a row means.

    A duration without a start states how long the audio is; it is compared with the audio when that is decoded.

    Args:
        values: of the row.
        where: the row, for messages.

    Returns:
        The part, and the stated duration of the whole where there is no part.

    Raises:
        SpanError: the keys contradict each other or hold no seconds.

    >>> parse_span({"offset": 1.5, "duration": 0.5}, "x:1")
    (Span(start_sec=1.5, end_sec=2.0), None)
    >>> parse_span({"duration": 3.2}, "x:1")
    (None, 3.2)
    >>> parse_span({"startMs": 1500, "endMs": 2000}, "x:1")
    (Span(start_sec=1.5, end_sec=2.0), None)
    """
    parts = _parts(values, where)
    _, start = _agreed(parts, "start", where)
    end_key, end = _agreed(parts, "end", where)
    duration_key, duration = _agreed(parts, "duration", where)
    if start is None and end is None:
        return None, duration
    begins = start or 0.0
    if duration is not None and (end is not None or start is not None):
        if end is not None and abs(end - begins - duration) > ROUNDING_SEC:
            raise SpanError(
                f'{where}: "{shown(end_key, 60)}" is {end:g} and "{shown(duration_key, 60)}" {duration:g}, which do '
                f"not agree for a start at {begins:g} s; expected seconds that do; correct the row."
            )
        end = begins + duration if end is None else end
    if end is not None and end <= begins:
        raise SpanError(
            f'{where}: "{shown(end_key or duration_key, 60)}" ends the audio at {end:g} s, but it starts at '
            f"{begins:g} s; expected an end after the start, in seconds; correct the row."
        )
    return (None, None) if begins == 0 and end is None else (Span(begins, end), None)


def check_stated_duration(stated_sec: float | None, duration_sec: float) -> None:
    """Refuse audio that is longer than its row says: the row means a part of it, and does not say where it starts.

    Raises:
        SpanError: it is.
    """
    if stated_sec is None or duration_sec - stated_sec <= max(STATED_TOLERANCE_SEC, STATED_TOLERANCE * stated_sec):
        return
    raise SpanError(
        f"the audio is {duration_sec:,.2f} s long, but its row states a duration of {stated_sec:,.2f} s; expected "
        'all words of the audio, or "offset" beside "duration" for a part; correct the row.'
    )


def parse_stated_rate(values: Mapping[str, object], where: str) -> object:
    """The sampling rate that a row states beside a bare array, unchecked; None if it states none.

    Raises:
        SpanError: it states two.
    """
    stated = {key: value for key, value in values.items() if value is not None and states_rate(key)}
    if len(set(map(str, stated.values()))) > 1:
        raise SpanError(f"{where}: states several sampling rates ({shown(stated)}); one is expected; correct the row.")
    return next(iter(stated.values()), None)


@lru_cache(maxsize=4096)
def part_of(key: str) -> tuple[str, float] | None:
    """What a key says about the part of the audio that is meant, and how many seconds its unit has.

    However it is written: ``start_time``, ``startTime`` and ``Start`` are one.

    >>> part_of("segment_start_ms")
    ('start', 0.001)
    >>> part_of("start_date") is None
    True
    """
    letters = _NOT_LETTERS.sub("", key.lower())
    for part, pattern in _PLACES:
        match = pattern.fullmatch(letters)
        if match:
            unit = match.groupdict().get("unit") or "s"
            return part, 0.001 if unit.startswith("m") else 1.0
    return None


@lru_cache(maxsize=4096)
def states_rate(key: str) -> bool:
    """Whether a key names the sampling rate: ``sampling_rate``, ``sampleRate``, ``sr``, ``sample_rate_hz``."""
    return _RATE.fullmatch(_NOT_LETTERS.sub("", key.lower())) is not None


def describes_audio(key: str) -> bool:
    """Whether a key beside the audio chooses a part of it or states its rate."""
    return part_of(key) is not None or states_rate(key)


def _parts(values: Mapping[str, object], where: str) -> dict[str, list[tuple[str, float]]]:
    """Keys and seconds, by what they say: start, end or duration."""
    known = {key: known for key in values if values[key] is not None and (known := part_of(key)) is not None}
    has_onset = any("onset" in key.lower() for key in known)
    has_start = any(part == "start" for part, _ in known.values())
    parts: dict[str, list[tuple[str, float]]] = {}
    for key, (part, scale) in known.items():
        value = values[key]
        if part == "pair":
            if not _is_pair(value):
                continue  # a time of day, a number, words with their times
            for bound, second in zip(("start", "end"), value, strict=True):
                parts.setdefault(bound, []).append((key, _number(second, key, where) * scale))
            continue
        if part == "samples":
            raise SpanError(
                f'{where}: "{shown(key, 60)}" chooses a part of the audio in samples; expected are seconds; write them '
                'as "start" and "end", or rename the key if it means something else.'
            )
        if part == "length" and not has_start:
            continue
        name = "duration" if part == "length" else part
        if has_onset and "offset" in key.lower():
            name = "end"  # as lists of sound events have it
        parts.setdefault(name, []).append((key, _number(value, key, where) * scale))
    return parts


def _is_pair(value: object) -> TypeGuard[Sequence[object]]:
    return (
        isinstance(value, list | tuple | np.ndarray)
        and len(value) == 2
        and all(isinstance(item, int | float | np.number) for item in value)
    )


def _agreed(parts: Mapping[str, Sequence[tuple[str, float]]], part: str, where: str) -> tuple[str, float | None]:
    found = parts.get(part)
    if not found:
        return "", None
    key, seconds = found[0]
    for other, also in found[1:]:
        if abs(also - seconds) > ROUNDING_SEC:
            raise SpanError(
                f'{where}: "{shown(key, 60)}" is {seconds:g} s and "{shown(other, 60)}" {also:g} s; expected is one of '
                "them; correct the row."
            )
    return key, seconds


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    raise SpanError(
        f'{where}: "{shown(key, 60)}" is {shown(repr(value), 60)}; a number of seconds is expected, because such keys '
        "choose a part of the audio; correct it, or rename the key if it means something else."
    )
