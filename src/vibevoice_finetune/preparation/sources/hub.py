"""Hugging Face data sets: a folder of `save_to_disk`, parquet files, or an id on the Hub.

The audio of each row becomes a file, so that recordings are what they are for every other source: encoded bytes as they
are, arrays as WAV with floats. A file that is there already is not written again.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from vibevoice_finetune.audio.decode import AudioError, RowError
from vibevoice_finetune.audio.source import AudioSource, parse_audio, to_full_scale
from vibevoice_finetune.data.hf_datasets import cells, load_split
from vibevoice_finetune.errors import shown
from vibevoice_finetune.files.atomic import write_file
from vibevoice_finetune.preparation.recordings import Ignored, Recording, Source
from vibevoice_finetune.preparation.sources.tables import (
    LONG_BYTES,
    MEDIA_SUFFIXES,
    SPEAKER_COLUMNS,
    TEXT_COLUMNS,
    audio_column,
    column,
    stem_group,
)

MARKS = ("state.json", "dataset_dict.json")
"""One of these lies in a folder that `save_to_disk` has written."""

BATCH_ROWS = 100


def is_saved_dataset(place: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((place / mark).is_file() for mark in MARKS)


def read_dataset(name: str, config: str | None, split: str, columns: Mapping[str, str], folder: Path) -> Source:
    """Read one split; its audio goes to files in `folder`.

    Raises:
        DataError: it cannot be loaded, has no such split, or none of its columns holds audio.
        WriteError: the files cannot be written.
    """
    table = load_split(name, config, split, None, ignore_verifications=False)
    label = f"dataset {shown(name)}"
    found = list(table.column_names)
    audio = audio_column(label, found, columns.get("audio"))
    text = _optional(label, found, columns.get("text"), TEXT_COLUMNS, "--text_column_name")
    speaker = _optional(label, found, columns.get("speaker"), SPEAKER_COLUMNS, "--speaker_column_name")
    wanted = [one for one in found if one in (audio, text, speaker)]
    rows = table.select_columns(wanted).with_format("arrow")  # any other format would decode the audio
    recordings, ignored = [], []
    number = -1
    for batch in rows.iter(batch_size=BATCH_ROWS):
        values = {one: [value for chunk in batch.column(one).chunks for value in cells(chunk)] for one in wanted}
        for place in range(len(batch)):
            number += 1
            row = {one: values[one][place] for one in wanted}
            where = f"{label} row {number}"
            try:
                path, own = _as_file(row[audio], folder / split, number, where)
            except RowError as error:
                ignored.append(Ignored(where, str(error).removeprefix(f"{where}: ")))
                continue
            said = " ".join(str(row[text] or "").split()) if text else ""
            who = str(row[speaker]) if speaker and row[speaker] is not None else None
            is_clip = bool(said) and path.stat().st_size < LONG_BYTES
            group = f"{who or ''}/{stem_group(own)}" if own else f"{number:06d}"
            recordings.append(Recording(f"{split}/{number:06d}", path, group, who, said or None, is_clip=is_clip))
    return Source("dataset", tuple(recordings), tuple(ignored))


def _optional(label: str, found: list[str], wanted: str | None, usual: tuple[str, ...], flag: str) -> str | None:
    if wanted is None and not any(name.lower() in usual for name in found):
        return None
    return column(label, found, wanted, usual, flag)


def _as_file(value: object, folder: Path, number: int, where: str) -> tuple[Path, str]:
    """The file of a row's audio, and the name, without suffix, that it had where it came from."""
    source = parse_audio(value, None, where)
    given = value.get("path") if isinstance(value, Mapping) else None
    name = Path(given) if isinstance(given, str) else Path()
    if source.path is not None:
        return source.path, source.path.stem
    suffix = name.suffix.lower() if name.suffix.lower() in MEDIA_SUFFIXES else ".wav" if source.data is None else ".bin"
    path = folder / f"{number:06d}{suffix}"
    content = _bytes_of(source)
    if not path.is_file() or path.stat().st_size != len(content) or path.read_bytes() != content:
        write_file(path, content)
    return path, name.stem


def _bytes_of(source: AudioSource) -> bytes:
    if source.data is not None:
        return bytes(source.data)
    assert source.array is not None
    assert source.sampling_rate_hz is not None
    file = io.BytesIO()
    samples = np.asarray(to_full_scale(source.array), dtype=np.float32)
    try:
        soundfile.write(file, samples, source.sampling_rate_hz, format="WAV", subtype="FLOAT")
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{source.where}: cannot be written as WAV ({shown(error)}).", "wrong type") from error
    return file.getvalue()
