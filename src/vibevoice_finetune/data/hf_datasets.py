"""Hugging Face data sets: found, loaded, and read row by row without copying or decoding audio.

In comes a data set's name, out goes a sequence that makes each `Row` when it is asked for. Encoded audio becomes a
memoryview and lists of numbers become arrays, both of them windows onto the memory-mapped file: what nobody looks at is
never read from the disk. (`to_pylist` and Arrow's scalars copy binary values; `datasets` itself would decode Audio
columns, which needs torchcodec.)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import datasets
import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types

from vibevoice_finetune.audio.decode import RowError
from vibevoice_finetune.data.rows import Columns, Row, Selection, check_optional_columns, make_row, unused_keys
from vibevoice_finetune.errors import DataError, shown

BATCH_ROWS = 1_000
FILE_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}

LOADING_ERRORS = (
    *(datasets.exceptions.DatasetsError, OSError, RuntimeError, ImportError, ValueError),
    *(TypeError, LookupError, AttributeError),
)
"""What `datasets` raises for what a user can fix; the last three for damaged folders of `save_to_disk`."""


def load_split(
    name: str, config: str | None, split: str, cache_dir: Path | None, *, ignore_verifications: bool
) -> datasets.Dataset:
    """Load one split of a data set: an id on the Hub, or a folder or file on this machine.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    verification = "no_checks" if ignore_verifications else "basic_checks"
    try:
        splits = _load_splits(name, config, split, cache_dir, verification)
        if split in splits:
            splits[split].data.validate(full=True)  # a damaged file could make Arrow read outside of it
    except LOADING_ERRORS as error:
        raise DataError(
            f"dataset {shown(name)}: cannot be loaded ({_root_cause(error)}); {_advice(name, error)}."
        ) from error
    if split not in splits:
        raise DataError(
            f'dataset {shown(name)}: there is no split "{shown(split)}"; its splits are {", ".join(splits)}; name one '
            "with --train_split_name or --eval_split_name."
        )
    return splits[split]


def _load_splits(
    name: str, config: str | None, split: str, cache_dir: Path | None, verification: str
) -> dict[str, datasets.Dataset]:
    place = Path(name)
    if (place / datasets.config.DATASET_STATE_JSON_FILENAME).is_file() or (
        place / datasets.config.DATASETDICT_JSON_FILENAME
    ).is_file():
        saved = datasets.load_from_disk(name)
        return dict(saved) if isinstance(saved, datasets.DatasetDict) else {_split_name(saved): saved}
    options = {"cache_dir": cache_dir and str(cache_dir), "verification_mode": verification}
    if place.is_file():
        if place.suffix not in FILE_BUILDERS:
            raise ValueError(f"a file ending in {', '.join(FILE_BUILDERS)} is expected")
        return dict(datasets.load_dataset(FILE_BUILDERS[place.suffix], data_files=str(place), **options))
    if "[" in split or "+" in split:
        return {split: datasets.load_dataset(name, config, split=split, **options)}
    return dict(datasets.load_dataset(name, config, **options))


def _split_name(saved: datasets.Dataset) -> str:
    """Which split a folder with one data set is: what it was a slice of when it was saved, else "train"."""
    return str(saved.split).split("[")[0] if saved.split is not None else "train"


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return shown(str(error).strip().split("\n")[0] or type(error).__name__)


def _advice(name: str, error: BaseException) -> str:
    if "torchcodec" in _root_cause(error):
        return "folders of audio files need torchcodec; list the files in a JSONL and give that as --train_jsonl"
    if Path(name).exists():
        return "expected a folder written by save_to_disk, or parquet; a JSONL is given as --train_jsonl"
    return (
        f'check the name and the connection, or run "hf download --repo-type dataset {shown(name)} --local-dir FOLDER" '
        "on a machine that is online and give FOLDER in its place"
    )


class DatasetRows(Sequence[Row]):
    """The rows of a data set, each made when it is asked for."""

    def __init__(self, table: datasets.Dataset, columns: Columns, base_dir: Path | None, label: str) -> None:
        found = list(table.column_names)
        for column, flag in ((columns.text, "--text_column_name"), (columns.audio, "--audio_column_name")):
            if column not in found:
                raise DataError(
                    f'{label}: there is no column "{shown(column)}"; its columns are {shown(", ".join(found))}; name '
                    f"the right one with {flag}."
                )
        check_optional_columns(set(found), columns, label)
        wanted = set(found) - set(unused_keys(found, columns))
        # Arrow's own values: reading an Audio column in any other format would decode it.
        self._table = table.select_columns([column for column in found if column in wanted]).with_format("arrow")
        self._columns = columns
        self._base_dir = base_dir
        self._label = label

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return Selection(self, np.arange(len(self), dtype=np.int64)[index])
        place = range(len(self))[index]
        row = next(self._make_rows(self._table[place], place))
        if isinstance(row, RowError):
            raise row
        return row

    def __iter__(self) -> Iterator[Row]:
        for row in self.checked():  # in batches: a fifteenth of the time of one by one
            if isinstance(row, RowError):
                raise row
            yield row

    def checked(self) -> Iterator[Row | RowError]:
        """All rows in order, or what is wrong with them."""
        for batch, table in enumerate(self._table.iter(batch_size=BATCH_ROWS)):
            yield from self._make_rows(table, batch * BATCH_ROWS)

    def _make_rows(self, table: pa.Table, first: int) -> Iterator[Row | RowError]:
        by_column = {
            name: [value for chunk in table.column(name).chunks for value in cells(chunk)]
            for name in table.column_names
        }
        for offset in range(len(table)):
            where = f"{self._label} row {first + offset}"
            try:
                values = {name: column[offset] for name, column in by_column.items()}
                yield make_row(values, self._columns, self._base_dir, where)
            except RowError as error:
                yield error


def cells(array: pa.Array) -> list[object]:
    """The values of an Arrow array, one a row; null becomes None.

    Struct becomes dict, binary memoryview, a list of numbers an array (null inside it NaN), any other list a list.
    """
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return cells(array.storage)
    if pa.types.is_struct(kind):
        names = [kind.field(index).name for index in range(kind.num_fields)]
        members = zip(*map(cells, array.flatten()), strict=True) if names else ((),) * len(array)
        valid = array.is_valid().to_pylist()
        return [dict(zip(names, row, strict=True)) if ok else None for row, ok in zip(members, valid, strict=True)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_sequence(scalar.values) if scalar.is_valid else None for scalar in array]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _binary(array)
    values: list[object] = array.to_pylist()
    return values


def _sequence(values: pa.Array) -> object:
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        return values.to_numpy(zero_copy_only=False)
    return cells(values)


def _binary(array: pa.Array) -> list[object]:
    """Windows onto the data buffer of variable-length binary values (Arrow columnar format, section 4.3)."""
    _, offset_buffer, data_buffer = array.buffers()
    width = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    offsets = np.frombuffer(offset_buffer, dtype=width)[array.offset : array.offset + len(array) + 1].tolist()
    data = memoryview(data_buffer) if data_buffer is not None else memoryview(b"")
    valid = array.is_valid().to_pylist()
    return [data[offsets[row] : offsets[row + 1]] if valid[row] else None for row in range(len(array))]
