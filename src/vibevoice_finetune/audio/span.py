"""Which part of a recording a row means, from the keys that manifests use for it.

In come the values of a row (or of an audio object inside it), out goes a `Span` in seconds, or None for all of it. Keys
that contradict each other, or hold no seconds, are refused: ignoring them would pair a whole recording with a part of
its words.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vibevoice_finetune.errors import DataError, shown

START_KEYS = ("start", "offset", "begin", "start_time", "begin_time", "start_sec", "start_seconds", "offset_sec")
END_KEYS = ("end", "stop", "end_time", "stop_time", "end_sec", "end_seconds")
DURATION_KEYS = ("duration", "duration_sec", "duration_seconds", "duration_s", "dur")
RATE_KEYS = ("sampling_rate", "sample_rate", "sr")
SPAN_KEYS = (*START_KEYS, *END_KEYS, *DURATION_KEYS)

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
        """First sample, and the one behind the last, of a recording with so many.

        Raises:
            SpanError: it ends behind the end of the recording, or begins there.

        >>> Span(0.5, 1.0).samples(24_000, 24_000)
        (12000, 24000)
        """
        start = round(self.start_sec * rate_hz)
        end = num_samples if self.end_sec is None else round(self.end_sec * rate_hz)
        if start >= num_samples or end > num_samples + ROUNDING_SEC * rate_hz:
            raise SpanError(
                f"the row asks for {self} of audio that is {num_samples / rate_hz:,.2f} s long; expected are seconds "
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
    """
    _, start = _seconds(values, START_KEYS, where)
    end_key, end = _seconds(values, END_KEYS, where)
    duration_key, duration = _seconds(values, DURATION_KEYS, where)
    if start is None and end is None:
        return None, duration
    begins = start or 0.0
    if duration is not None and (end is not None or start is not None):
        if end is not None and abs(end - begins - duration) > ROUNDING_SEC:
            raise SpanError(
                f'{where}: "{end_key}" is {end:g} and "{duration_key}" {duration:g}, which do not agree for a start at '
                f"{begins:g} s; expected are seconds that do; correct the row."
            )
        end = begins + duration if end is None else end
    if end is not None and end <= begins:
        raise SpanError(
            f'{where}: "{end_key or duration_key}" ends the audio at {end:g} s, but it starts at {begins:g} s; '
            "expected is an end behind the start, in seconds; correct the row."
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
        f"the audio is {duration_sec:,.2f} s long, but its row states a duration of {stated_sec:,.2f} s; expected are "
        'all words of the audio, or "offset" beside "duration" for a part; correct the row.'
    )


def parse_stated_rate(values: Mapping[str, object], where: str) -> object:
    """The sampling rate that a row states beside a bare array, unchecked; None if it states none.

    Raises:
        SpanError: it states two.
    """
    stated = {key: values[key] for key in RATE_KEYS if values.get(key) is not None}
    if len(set(map(str, stated.values()))) > 1:
        raise SpanError(f"{where}: states several sampling rates ({shown(stated)}); one is expected; correct the row.")
    return next(iter(stated.values()), None)


def _seconds(values: Mapping[str, object], keys: tuple[str, ...], where: str) -> tuple[str, float | None]:
    found = [key for key in keys if values.get(key) is not None]
    if not found:
        return "", None
    numbers = [_number(values[key], key, where) for key in found]
    if max(numbers) - min(numbers) > ROUNDING_SEC:
        raise SpanError(
            f'{where}: "{found[0]}" is {numbers[0]:g} and "{found[1]}" {numbers[1]:g}; expected is one of them, in '
            "seconds; correct the row."
        )
    return found[0], numbers[0]


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool) and 0 <= value < 1e9:
        return float(value)
    raise SpanError(
        f'{where}: "{key}" is {shown(repr(value), 60)}; a number of seconds is expected, because such keys choose a '
        "part of the audio; correct it, or rename the key if it means something else."
    )
