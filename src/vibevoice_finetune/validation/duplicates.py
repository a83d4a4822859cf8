"""The same recording or the same text twice: inside a set, and in training as well as in validation.

In come rows of both sets and, where they were decoded, fingerprints; out go findings on the later row.
"""

from collections.abc import Iterator, Sequence

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.script import shorten
from vibevoice_finetune.errors import shown
from vibevoice_finetune.validation.findings import Finding
from vibevoice_finetune.validation.fingerprint import Fingerprint, same_recordings
from vibevoice_finetune.validation.text_checks import normalised


def check_paths(train: Sequence[Row], validation: Sequence[Row]) -> Iterator[Finding]:
    """Rows with the same file as an earlier one."""
    first: dict[str, tuple[str, bool]] = {}
    for rows, in_training in ((train, True), (validation, False)):
        for row in rows:
            name = path_key(row.audio)
            if name is None:
                continue
            where, earlier_in_training = first.setdefault(name, (row.where, in_training))
            if where != row.where:
                leaked = earlier_in_training != in_training
                kind = "leaked-audio" if leaked else "same-audio"
                yield Finding(kind, row.where, f"{shown(row.audio.path)} is the audio of {where}, too", 1.0)


def check_texts(train: Sequence[Row], validation: Sequence[Row]) -> Iterator[Finding]:
    """Rows with the same words as an earlier one of the same speaker, or of the other set."""
    first: dict[tuple[str | None, str], str] = {}
    in_training: dict[str, str] = {}
    for row in train:
        words = normalised(row.text)
        in_training.setdefault(words, row.where)
        yield from _repeated(row, words, first)
    first.clear()
    for row in validation:
        words = normalised(row.text)
        if words in in_training:
            yield Finding("leaked-text", row.where, f'"{shorten(row.text)}" is the text of {in_training[words]}, too')
        else:
            yield from _repeated(row, words, first)


def _repeated(row: Row, words: str, first: dict[tuple[str | None, str], str]) -> Iterator[Finding]:
    where = first.setdefault((row.speaker, words), row.where)
    if where != row.where:
        yield Finding("same-text", row.where, f'"{shorten(row.text)}" is the text of {where}, too')


def check_prints(prints: Sequence[tuple[Row, bool, Fingerprint]]) -> Iterator[Finding]:
    """Rows whose audio is that of an earlier row in another file.

    Args:
        prints: (row, whether it is of the training set, fingerprint), training rows first.
    """
    blamed: set[str] = set()
    for one, other, share in same_recordings([found for _, _, found in prints]):
        (row, row_trains, _), (later, later_trains, _) = prints[one], prints[other]
        if later.where in blamed:
            continue
        blamed.add(later.where)
        kind = "same-audio" if row_trains == later_trains else "leaked-audio"
        yield Finding(kind, later.where, f"sounds like {row.where} ({share:.0%} of the fingerprint)", share)


def path_key(source: AudioSource) -> str | None:
    """What tells that two sources are the same part of a file, without opening it; None for audio in memory."""
    if source.path is None:
        return None
    return str(source.path) if source.span is None else f"{source.path} {source.span}"
