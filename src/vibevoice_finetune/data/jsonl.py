"""Where rows come from: JSONL files and Hugging Face data sets.

In comes the name of a file or data set, out goes a sequence of `Row`s, each checked cheaply at the door; bad ones go to
`BadRows` with file and line. What a row is stands in `data/rows.py`.
"""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from vibevoice_finetune.audio.decode import RowError
from vibevoice_finetune.data.rows import BadRows, Columns, Row, Selection, check_optional_columns, make_row, unused_keys
from vibevoice_finetune.errors import ArgumentError, DataError, shown
from vibevoice_finetune.files.names import near_miss

__all__ = ["BadRows", "Columns", "Row", "read_dataset", "read_jsonl", "split_off"]

MAX_LINE_BYTES = 200_000_000
"""Size of half an hour of audio at 24 kHz, written as an array of numbers."""

logger = logging.getLogger(__name__)

EXAMPLE = '{"text": "Speaker 0: Hello.", "audio": "clip.wav"}'


def read_jsonl(path: Path, columns: Columns, bad_rows: BadRows, label: str | None = None) -> list[Row]:
    """Read rows from a file with one JSON object per line; relative paths in it start at its folder.

    Args:
        path: the file.
        columns: which key means what.
        bad_rows: what becomes of bad rows.
        label: what messages call the file; None: its name.

    Raises:
        DataError: the file cannot be read or holds no rows, or a row is bad, or more than half of them are.
    """
    label = shown(label or path.name)
    before = bad_rows.counts.total()
    rows: list[Row] = []
    keys: set[str] = set()
    total = 0
    for number, line in _lines(path):
        total += 1
        where = f"{label}:{number}"
        try:
            values = _parse_line(line, where)
            keys |= values.keys()
            rows.append(make_row(values, columns, path.parent, where))
        except RowError as error:
            bad_rows.report(error, error.reason)
    if total == 0:
        raise DataError(f"{shown(path)}: the file holds no rows; expected one object per line, like {EXAMPLE}.")
    bad_rows.check(total, before)
    check_optional_columns(keys, columns, shown(path))
    _notice_unused(keys, columns, label, "keys")
    _notice_shared_audio(rows, label)
    return rows


def read_dataset(
    name: str,
    config: str | None,
    split: str,
    columns: Columns,
    cache_dir: Path | None,
    bad_rows: BadRows,
    ignore_verifications: bool = False,
) -> Sequence[Row]:
    """Read rows from a Hugging Face data set. Its audio stays on the disk until it is decoded.

    Args:
        name: an id on the Hub, a folder that `save_to_disk` wrote, or a folder or file (.parquet, .arrow, .csv) that
            `load_dataset` reads. Relative paths in a local one start at its folder.
        config: which of the data set's configurations, if it has several.
        split: a split's name, or a slice of one (``train[:90%]``) where `load_dataset` does the reading.
        columns: their names.
        cache_dir: where downloads are kept; None for the library's own place.
        bad_rows: what becomes of bad rows.
        ignore_verifications: do not compare sizes and checksums with what the data set states.

    Raises:
        DataError: it cannot be found or read, lacks the split or a column, or a row is bad, or more than half are.
    """
    # Late: `datasets` takes two seconds to import, and a run from JSONL does not need it.
    from vibevoice_finetune.data.hf_datasets import DatasetRows, load_split  # noqa: PLC0415

    table = load_split(name, config, split, cache_dir, ignore_verifications=ignore_verifications)
    label = f"dataset {shown(name)}[{split}]"
    place = Path(name)
    base_dir = place if place.is_dir() else place.parent if place.is_file() else None
    rows = DatasetRows(table, columns, base_dir, label)
    before = bad_rows.counts.total()
    good: list[int] = []
    for index, row in enumerate(rows.checked()):
        if isinstance(row, RowError):
            bad_rows.report(row, row.reason)
        else:
            good.append(index)
    bad_rows.check(len(rows), before)
    _notice_unused(set(table.column_names), columns, label, "columns")
    return rows if len(good) == len(rows) else Selection(rows, np.array(good, dtype=np.int64))


def split_off(rows: Sequence[Row], fraction: float, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Set a random share of the rows aside for evaluation; both parts keep their order and have at least one row.

    Returns:
        Rows for training, rows for evaluation.

    Raises:
        ArgumentError: the fraction is not between 0 and 1.
        DataError: there are fewer than two rows.
    """
    if not 0 < fraction < 1:
        raise ArgumentError(
            f"--eval_split_size {fraction}: a share of the rows between 0 and 1 is expected, like 0.05."
        )
    if len(rows) < 2:
        raise DataError(f"{len(rows)} row cannot be split into training and evaluation rows; at least 2 are needed.")
    size = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
    shuffled = np.random.default_rng(seed).permutation(len(rows))
    return Selection(rows, np.sort(shuffled[size:])), Selection(rows, np.sort(shuffled[:size]))


def _notice_unused(found: Iterable[str], columns: Columns, label: str, kind: str) -> None:
    """Say once which keys nothing reads: a misspelt one would go unnoticed."""
    unused = unused_keys(found, columns)
    if unused:
        listed = ", ".join(shown(key, 60) for key in unused[:20]) + (" …" if len(unused) > 20 else "")
        logger.warning("%s: these %s are not used: %s", label, kind, listed)


def _notice_shared_audio(rows: Sequence[Row], label: str) -> None:
    """Say where rows have the same whole file and different texts: a part of it is probably meant."""
    text_of: dict[str, str] = {}
    shared = 0
    first = ""
    for row in rows:
        if row.audio.path is None or row.audio.span is not None:
            continue
        if text_of.setdefault(str(row.audio.path), row.text) != row.text:
            shared += 1
            first = first or row.where
    if shared:
        logger.warning(
            "%s: %s rows have the same audio as an earlier row but another text, first %s; if each says a part of it, "
            'give "start" and "end" in seconds',
            *(label, f"{shared:,}", first),
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise DataError(f"{shown(path)}: is not a file; a JSONL file is expected; name one.")
        with path.open("rb") as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return
                if number == 1 and line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{shown(path)}: the file is UTF-16; UTF-8 is expected; save it as UTF-8.")
                if len(line) > MAX_LINE_BYTES:
                    raise DataError(
                        f"{shown(path)}:{number}: the line has more than {MAX_LINE_BYTES:,} bytes; expected one "
                        f"object per line, like {EXAMPLE}; keep audio in files."
                    )
                if number == 1 and b"\0" in line[:4]:
                    raise DataError(
                        f"{shown(path)}: the file is not text; expected one object per line, like {EXAMPLE}."
                    )
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    yield number, content
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        said = error.strerror if isinstance(error, OSError) else None
        similar = near_miss(str(path)) if isinstance(error, FileNotFoundError) else None
        advice = f'did you mean "{shown(similar)}"?' if similar else "check the path."
        raise DataError(f"{shown(path)}: the file cannot be read ({said or error}); {advice}") from error


class _RepeatedKeyError(Exception):
    """A key stands twice in one object; its argument is the key."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _RepeatedKeyError(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # one for all: `json.loads` makes one for each line


def _parse_line(line: bytes, where: str) -> dict[str, object]:
    try:
        values = _DECODER.decode(line.decode("utf-8").rstrip())
    except _RepeatedKeyError as error:
        raise RowError(
            f'{where}: the key "{shown(error.args[0])}" stands there twice; once is expected; remove one.',
            "duplicate key",
        ) from error
    except json.JSONDecodeError as error:
        said = f"{error.msg}, column {error.colno}"
    except UnicodeDecodeError as error:
        said = f"byte {error.start + 1} is not UTF-8"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        said = shown(error)
    else:
        if isinstance(values, dict):
            return values
        said = f"a {type(values).__name__}, not an object"
    raise RowError(
        f"{where}: the line is not a JSON object ({said}); expected one object per line, like {EXAMPLE}; correct "
        "the line.",
        "not JSON",
    )
