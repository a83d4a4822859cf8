"""A row of training data, how it is made from raw values, and what becomes of bad ones.

In come the values of a JSONL line or of a data set's row, out goes a `Row`: a script, its audio, perhaps voice prompts
and a speaker. It is checked at the door, cheaply: files are looked for but not opened. A bad row goes to `BadRows`,
which ends the run with a message that names file and line, or counts the row by reason and leaves it out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, overload

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import RowError
from vibevoice_finetune.audio.source import AudioSource, parse_audio
from vibevoice_finetune.audio.span import SpanError, describes_audio, parse_span, parse_stated_rate
from vibevoice_finetune.errors import DataError, shown


@dataclass(frozen=True)
class Columns:
    """What the columns of the data (the keys of a JSONL line) are called."""

    text: str = "text"
    audio: str = "audio"
    voice_prompts: str = "voice_prompts"
    speaker: str = "speaker"


@dataclass(frozen=True, eq=False, slots=True)  # there may be millions
class Row:
    """One row of training data.

    Attributes:
        text: the script, as in ``Speaker 0: Hello.``; not parsed yet.
        audio: the script spoken.
        voice_prompts: reference audio of the speakers in their order; None if the row has none.
        speaker: who speaks, if the data says so.
        where: file and line (``train.jsonl:17``, counted from 1) or data set and index (``dataset NAME[train] row 17``,
            counted from 0); messages about the row begin with it.
    """

    text: str
    audio: AudioSource
    voice_prompts: tuple[AudioSource, ...] | None
    speaker: str | None
    where: str


class BadRows:
    """What becomes of bad rows: the first one ends the run ("error"), or they are counted and left out ("skip").

    Attributes:
        counts: bad rows by reason.
    """

    def __init__(self, policy: Literal["error", "skip"]) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def report(self, error: DataError, reason: str) -> None:
        """Raise the error, or count it, once per row.

        Args:
            error: its message begins with the row.
            reason: two or three words under which the row is counted.
        """
        if self.policy == "error":
            raise error
        self.counts[reason] += 1
        if reason not in self._first:  # the message may be costly
            self._first[reason] = str(error)

    def check(self, total_rows: int, before: int = 0) -> None:
        """Refuse to go on with data that is mostly bad.

        Args:
            total_rows: rows that there were, bad ones included.
            before: bad rows that are not among these; `counts.total()` before they were read.

        Raises:
            DataError: more than half of the rows are bad; the message holds the first of each reason.
        """
        bad = self.counts.total() - before
        if 2 * bad > total_rows:
            examples = "".join(f"\n  {message}" for message in self._first.values())
            raise DataError(
                f"{bad:,} of {total_rows:,} rows are bad ({self.summary()}); at most half may be left out; correct the "
                f"data. The first of each kind:{examples}"
            )

    def summary(self) -> str:
        """Bad rows by reason, most frequent first; empty if there are none.

        >>> bad_rows = BadRows("skip")
        >>> bad_rows.report(DataError("train.jsonl:3: a.wav does not exist"), "missing file")
        >>> bad_rows.summary()
        'missing file: 1, first train.jsonl:3'
        """
        return "; ".join(
            f"{reason}: {count:,}, first {self._first[reason].split(': ')[0]}"
            for reason, count in self.counts.most_common()
        )


class Selection(Sequence[Row]):
    """Some rows of a sequence, by their indices."""

    def __init__(self, rows: Sequence[Row], indices: NDArray[np.int64]) -> None:
        self._rows = rows
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Selection(self._rows, self._indices[index])
        return self._rows[int(self._indices[index])]


def make_row(values: Mapping[str, object], columns: Columns, base_dir: Path | None, where: str) -> Row:
    """Make a row from its raw values. Keys that choose a part of the audio, or state its rate, count; others do not.

    Args:
        values: by key.
        columns: which key means what.
        base_dir: where relative paths start; None for the current folder.
        where: the row, for messages.

    Raises:
        RowError: a value is missing or of the wrong kind, or a file is not there.
    """
    audio = _required(values, columns.audio, "--audio_column_name", where)
    return Row(
        text=_parse_text(_required(values, columns.text, "--text_column_name", where), columns.text, where),
        audio=_parse_audio(audio, values, columns, base_dir, where),
        voice_prompts=_parse_prompts(values.get(columns.voice_prompts), columns.voice_prompts, base_dir, where),
        speaker=_parse_speaker(values.get(columns.speaker), columns.speaker, where),
        where=where,
    )


def unused_keys(found: Iterable[str], columns: Columns) -> list[str]:
    """Keys of the data that nothing reads, in order."""
    return sorted(key for key in set(found) if key not in _named(columns) and not describes_audio(key))


@lru_cache(maxsize=8)
def _named(columns: Columns) -> frozenset[str]:
    return frozenset({columns.text, columns.audio, columns.voice_prompts, columns.speaker})


def check_optional_columns(found: set[str], columns: Columns, label: str) -> None:
    """A column that the user has named, and not only its default, must be there."""
    for column, default, flag in (
        (columns.voice_prompts, Columns.voice_prompts, "--voice_prompts_column_name"),
        (columns.speaker, Columns.speaker, "--speaker_column_name"),
    ):
        if column != default and column not in found:
            raise DataError(
                f'{label}: no row has a column "{shown(column)}"; their columns are {shown(", ".join(sorted(found)))}; '
                f"name the right one with {flag} or leave the flag out."
            )


def _parse_audio(
    audio: object, values: Mapping[str, object], columns: Columns, base_dir: Path | None, where: str
) -> AudioSource:
    """The row's audio, with what its other keys say about it."""
    named = _named(columns)
    describing = {key: value for key, value in values.items() if key not in named and describes_audio(key)}
    if not describing:
        return parse_audio(audio, base_dir, where)
    try:
        rate = parse_stated_rate(describing, where)
        span, stated_sec = parse_span(describing, where)
    except SpanError as error:
        raise RowError(str(error), "bad segment") from error
    source = parse_audio(audio, base_dir, where, rate)
    if span is None and stated_sec is None:
        return source
    if source.span is not None and span is not None and source.span != span:
        raise RowError(
            f"{where}: the audio is cut to {source.span}, and the row to {span}; one is expected; correct the row.",
            "bad segment",
        )
    return replace(source, span=span or source.span, stated_sec=stated_sec or source.stated_sec)


def _required(values: Mapping[str, object], key: str, flag: str, where: str) -> object:
    value = values.get(key)
    if value is None:
        found = "it is null" if key in values else f"found are {shown(', '.join(values)) or 'none'}"
        raise RowError(
            f'{where}: "{shown(key)}" is missing ({found}); correct the row or name the right key with {flag}.',
            "missing key",
        )
    return value


def _parse_text(value: object, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f'{where}: "{shown(key)}" is {_kind(value)}; text is expected; correct the row.', "bad text")
    if not value.strip():
        raise RowError(f'{where}: "{shown(key)}" is empty; expected what the audio says; correct the row.', "bad text")
    if re.search("[\ud800-\udfff]", value):
        raise RowError(
            f'{where}: "{shown(key)}" holds half a character (a lone surrogate); correct the row.', "bad text"
        )
    return value


def _parse_speaker(value: object, key: str, where: str) -> str | None:
    """A name, or a number as class labels are."""
    if value is None or isinstance(value, str):
        return value.strip() or None if value else None
    if isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer():
        return str(int(value))  # a column of whole numbers with gaps comes as 7.0
    raise RowError(
        f'{where}: "{shown(key)}" is {_kind(value)}; a name or a whole number is expected; correct the row.',
        "bad speaker",
    )


def _parse_prompts(value: object, key: str, base_dir: Path | None, where: str) -> tuple[AudioSource, ...] | None:
    """One piece of audio or a list of them. A list of numbers is one array; any other list is a list of prompts."""
    if _is_none(value):
        return None
    if isinstance(value, list | tuple) and not all(isinstance(item, int | float) for item in value):
        return tuple(parse_audio(item, base_dir, f"{where}: {shown(key)}[{k}]") for k, item in enumerate(value))
    return (parse_audio(value, base_dir, f"{where}: {shown(key)}"),)


def _is_none(value: object) -> bool:
    """Whether a cell says that there are no voice prompts: null, empty, or an object of nothing but null."""
    match value:
        case np.ndarray():  # first, because numpy compares itself with the others element by element
            return value.size == 0
        case None | "" | [] | ():
            return True
        case Mapping():
            return all(member is None for member in value.values())
    return False


def _kind(value: object) -> str:
    return f"of type {type(value).__name__} ({shown(value)[:40]})"
