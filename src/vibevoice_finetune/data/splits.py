"""Training rows and evaluation rows, from wherever a command line says they are.

In come the flags; out go the data sets for training and for evaluation, each a name and its rows, read by
`data/jsonl.py`. Training and the estimate of its memory both begin here, so they cannot differ in what they read.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.data.jsonl import read_dataset, read_jsonl, split_off
from vibevoice_finetune.data.rows import BadRows, Columns, Row
from vibevoice_finetune.errors import DataError


@dataclass(frozen=True)
class DataSet:
    """The rows of one file or Hugging Face data set, and what the command line calls it."""

    name: str
    rows: Sequence[Row]


def read_splits(arguments: Arguments, cache_dir: Path | None, bad_rows: BadRows) -> dict[str, list[DataSet]]:
    """Data sets by "train" and "eval"; evaluation has its own file or split, or a share of the training rows.

    Raises:
        DataError: a file or data set cannot be read, or there is nothing to evaluate on.
    """
    data, loop = arguments.data, arguments.loop
    train, held_out = read_training_rows(arguments, cache_dir, bad_rows)
    splits = {"train": train} if loop.do_train else {}
    if loop.evaluates:
        if held_out is not None:
            splits["eval"] = held_out
        elif data.validation_jsonl:
            rows = read_jsonl(Path(data.validation_jsonl), columns_of(arguments), bad_rows)
            splits["eval"] = [DataSet(data.validation_jsonl, rows)]
        elif data.dataset_name:
            splits["eval"] = _read_datasets(arguments, data.eval_split_name, cache_dir, bad_rows)
        else:
            raise DataError(
                "evaluation is asked for but there is nothing to evaluate on; "
                "give --validation_jsonl or --eval_split_size, or leave --do_eval, --eval_strategy and "
                "--select_best_by out."
            )
    return splits


def read_training_rows(
    arguments: Arguments, cache_dir: Path | None, bad_rows: BadRows
) -> tuple[list[DataSet], list[DataSet] | None]:
    """The training rows, and those of them that are held out for evaluation, if some are: a share of each data set.

    Raises:
        DataError: a file or data set cannot be read.
    """
    data, loop = arguments.data, arguments.loop
    named = Counter(Path(path).name for path in data.train_jsonl or ())
    sets = []
    for path in data.train_jsonl or ():
        label = path if named[Path(path).name] > 1 else None
        sets.append(DataSet(path, read_jsonl(Path(path), columns_of(arguments), bad_rows, label)))
    sets += _read_datasets(arguments, data.train_split_name, cache_dir, bad_rows)
    if not (loop.evaluates and not data.validation_jsonl and data.eval_split_size):
        return sets, None
    parts = [(each.name, split_off(each.rows, data.eval_split_size, loop.draw_seed)) for each in sets]
    return [DataSet(name, rows) for name, (rows, _) in parts], [DataSet(name, rows) for name, (_, rows) in parts]


def columns_of(arguments: Arguments) -> Columns:
    """What the flags call the columns."""
    data = arguments.data
    return Columns(
        text=data.text_column_name,
        audio=data.audio_column_name,
        voice_prompts=data.voice_prompts_column_name,
        speaker=data.speaker_column_name,
    )


def _read_datasets(arguments: Arguments, split: str, cache_dir: Path | None, bad_rows: BadRows) -> list[DataSet]:
    data = arguments.data
    columns = columns_of(arguments)
    config, unchecked = data.dataset_config_name, data.ignore_verifications
    return [
        DataSet(name, read_dataset(name, config, split, columns, cache_dir, bad_rows, ignore_verifications=unchecked))
        for name in data.dataset_name or ()
    ]
