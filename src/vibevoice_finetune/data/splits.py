"""Training rows and evaluation rows, from wherever a command line says they are.

In come the flags; out go the rows for training and for evaluation, read by `data/jsonl.py`. Training and the estimate
of its memory both begin here, so they cannot differ in what they read.
"""

from collections.abc import Sequence
from pathlib import Path

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.data.jsonl import read_dataset, read_jsonl, split_off
from vibevoice_finetune.data.rows import BadRows, Columns, Row
from vibevoice_finetune.errors import DataError


def read_splits(arguments: Arguments, cache_dir: Path | None, bad_rows: BadRows) -> dict[str, Sequence[Row]]:
    """Rows by "train" and "eval"; evaluation has its own file or split, or a share of the training rows.

    Raises:
        DataError: a file or data set cannot be read, or there is nothing to evaluate on.
    """
    data, loop = arguments.data, arguments.loop
    train, held_out = read_training_rows(arguments, cache_dir, bad_rows)
    splits: dict[str, Sequence[Row]] = {"train": train} if loop.do_train else {}
    if loop.evaluates:
        if held_out is not None:
            splits["eval"] = held_out
        elif data.validation_jsonl:
            splits["eval"] = read_jsonl(Path(data.validation_jsonl), columns_of(arguments), bad_rows)
        elif data.dataset_name:
            splits["eval"] = _read_dataset(arguments, data.eval_split_name, cache_dir, bad_rows)
        else:
            raise DataError(
                "evaluation is asked for but there is nothing to evaluate on; "
                "give --validation_jsonl or --eval_split_size, or leave --do_eval and --eval_strategy out."
            )
    return splits


def read_training_rows(
    arguments: Arguments, cache_dir: Path | None, bad_rows: BadRows
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """The training rows, and those of them that are held out for evaluation, if some are.

    Raises:
        DataError: the file or data set cannot be read.
    """
    data, loop = arguments.data, arguments.loop
    if data.train_jsonl:
        rows: Sequence[Row] = read_jsonl(Path(data.train_jsonl), columns_of(arguments), bad_rows)
    else:
        rows = _read_dataset(arguments, data.train_split_name, cache_dir, bad_rows)
    if loop.evaluates and not data.validation_jsonl and data.eval_split_size:
        return split_off(rows, data.eval_split_size, loop.draw_seed)
    return rows, None


def columns_of(arguments: Arguments) -> Columns:
    """What the flags call the columns."""
    data = arguments.data
    return Columns(
        text=data.text_column_name,
        audio=data.audio_column_name,
        voice_prompts=data.voice_prompts_column_name,
        speaker=data.speaker_column_name,
    )


def _read_dataset(arguments: Arguments, split: str, cache_dir: Path | None, bad_rows: BadRows) -> Sequence[Row]:
    data = arguments.data
    assert data.dataset_name is not None
    return read_dataset(
        data.dataset_name,
        data.dataset_config_name,
        split,
        columns_of(arguments),
        cache_dir,
        bad_rows,
        ignore_verifications=data.ignore_verifications,
    )
