"""Lists of clips: LJSpeech's, Common Voice's, GPT-SoVITS's and F5-TTS's, and any table with named columns."""

import csv
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.preparation.recordings import Ignored, Recording, Source

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
MEDIA_SUFFIXES = AUDIO_SUFFIXES + VIDEO_SUFFIXES
MAX_TEXT_BYTES = 50_000_000
"""The longest novel has 13 MB."""

LONG_BYTES = 6_000_000
"""A file above this is taken for a long recording until it is decoded: a minute of 48 kHz, 16 bit, mono."""

TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text", "utterance", "label")
AUDIO_COLUMNS = (
    "audio",
    "audio_path",
    "audio_file",
    "audio_filepath",
    "path",
    "file",
    "filename",
    "file_name",
    "wav",
    "clip",
    "id",
)
SPEAKER_COLUMNS = ("speaker", "speaker_id", "speaker_name", "client_id", "voice", "spk")


def read_table(path: Path, form: str, columns: dict[str, str]) -> Source:
    """Rows of a text file: LJSpeech's, Common Voice's, GPT-SoVITS's, F5-TTS's, or any with named columns."""
    text = read_text(path)
    lines = text.splitlines()
    if not lines:
        raise DataError(f"{shown(path)}: is empty.")
    first = lines[0]
    if form == "auto":
        pipes = first.count("|")
        named = any(part.strip().lower() in (*AUDIO_COLUMNS, *columns.values()) for part in re.split(r"[|,;\t]", first))
        is_media = first.split("|")[0].strip().lower().endswith(MEDIA_SUFFIXES)
        if pipes >= 3 and is_media:
            form = "gptsovits"
        elif pipes and named:
            form = "f5" if pipes == 1 else "table"
        elif pipes:
            form = "ljspeech"
        else:
            form = "table"
    read: dict[str, Callable[[Path, list[str]], Source]] = {
        "ljspeech": _ljspeech,
        "gptsovits": _gptsovits,
        "f5": _f5,
    }
    if form in read:
        return read[form](path, lines)
    return _named_columns(path, lines, form, columns)


def _row(table: Path, line: int, name: str, text: str, speaker: str | None, kind: str) -> Recording | Ignored:
    """A clip that a table names; its file is looked for beside the table and in the folders usual for it."""
    where = f"{shown(table)}:{line}"
    text = " ".join(text.split())
    if not text:
        return Ignored(where, "empty text")
    for folder in (table.parent, table.parent / "wavs", table.parent / "clips", table.parent / "audio"):
        for suffix in ("", ".wav", ".flac", ".mp3", ".ogg"):
            path = folder / f"{name}{suffix}"
            if (suffix or path.suffix.lower() in MEDIA_SUFFIXES) and _is_file(path):
                stem = PurePosixPath(name).with_suffix("").as_posix() if not suffix else name
                own = stem.lstrip("/.")
                group = f"{speaker or ''}/{stem_group(PurePosixPath(own).name)}" if kind == "ljspeech" else own
                return Recording(own, path, group, speaker, text, is_clip=True)
    return Ignored(where, f"no audio file {shown(name)}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte: a text that was taken for a name
        return False


def _collect(kind: str, rows: Iterable[Recording | Ignored]) -> Source:
    found = list(rows)
    recordings = tuple(row for row in found if isinstance(row, Recording))
    return Source(kind, recordings, tuple(row for row in found if isinstance(row, Ignored)))


def _ljspeech(path: Path, lines: list[str]) -> Source:
    """`id|text|normalised text`; numbers are spelt out in the last column."""

    def rows() -> Iterable[Recording | Ignored]:
        for number, line in enumerate(lines, start=1):
            parts = line.split("|")
            if len(parts) < 2:
                yield Ignored(f"{shown(path)}:{number}", "expected id|text")
                continue
            yield _row(path, number, parts[0].strip(), parts[-1] or parts[1], None, "ljspeech")

    return _collect("ljspeech", rows())


def _gptsovits(path: Path, lines: list[str]) -> Source:
    """`audio|speaker|language|text`."""

    def rows() -> Iterable[Recording | Ignored]:
        for number, line in enumerate(lines, start=1):
            parts = line.split("|", 3)
            if len(parts) < 4:
                yield Ignored(f"{shown(path)}:{number}", "expected audio|speaker|language|text")
                continue
            yield _row(path, number, parts[0].strip(), parts[3], parts[1].strip() or None, "gptsovits")

    return _collect("gptsovits", rows())


def _f5(path: Path, lines: list[str]) -> Source:
    """`audio_file|text` with that line at its head."""

    def rows() -> Iterable[Recording | Ignored]:
        for number, line in enumerate(lines[1:], start=2):
            parts = line.split("|", 1)
            if len(parts) < 2:
                yield Ignored(f"{shown(path)}:{number}", "expected audio_file|text")
                continue
            yield _row(path, number, parts[0].strip(), parts[1], None, "f5")

    return _collect("f5", rows())


def _named_columns(path: Path, lines: list[str], form: str, columns: dict[str, str]) -> Source:
    """A CSV or TSV whose first line names its columns."""
    delimiter = (
        "\t"
        if "\t" in lines[0]
        else "|"
        if "|" in lines[0]
        else ";"
        if lines[0].count(";") > lines[0].count(",")
        else ","
    )
    reader = csv.DictReader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_NONE if form == "commonvoice" else csv.QUOTE_MINIMAL
    )
    names = [name.strip() for name in reader.fieldnames or []]
    reader.fieldnames = names
    chosen = {
        "audio": audio_column(shown(path), names, columns.get("audio")),
        "text": column(shown(path), names, columns.get("text"), TEXT_COLUMNS, "--text_column_name"),
    }
    speaker_column = columns.get("speaker") or next((n for n in names if n.lower() in SPEAKER_COLUMNS), None)

    def rows() -> Iterable[Recording | Ignored]:
        for row in reader:
            audio, text = (row.get(chosen[key]) or "" for key in ("audio", "text"))
            speaker = (row.get(speaker_column) or "").strip() or None if speaker_column else None
            if not audio.strip():
                yield Ignored(f"{shown(path)}:{reader.line_num}", "no audio named")
                continue
            found = _row(path, reader.line_num, audio.strip(), text, speaker, form)
            if form == "commonvoice" and isinstance(found, Recording):
                found = replace(found, group=speaker or found.name)
            yield found

    return _collect(form, rows())


def audio_column(label: str, names: list[str], wanted: str | None) -> str:
    """The column that names or holds the audio; see `column`."""
    return column(label, names, wanted, AUDIO_COLUMNS, "--audio_column_name")


def column(label: str, names: list[str], wanted: str | None, usual: tuple[str, ...], flag: str) -> str:
    """The column that the flag names, or else the first of the usual names that is there.

    Raises:
        DataError: there is none.
    """
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{label}: has no column {shown(wanted)!r}; it has {shown(', '.join(names))}.")
        return wanted
    for name in usual:
        for own in names:
            if own.lower() == name:
                return own
    raise DataError(
        f"{label}: no column is called {', '.join(usual[:4])} …; it has {shown(', '.join(names))}; name it with {flag}."
    )


def stem_group(stem: str) -> str:
    """What clips of one recording are called alike: the name up to its last number.

    >>> stem_group("LJ001-0042"), stem_group("clip")
    ('LJ001', 'clip')
    """
    found = re.fullmatch(r"(.+?)[-_ .]*\d+", stem)
    return found[1] if found and re.search(r"[-_ .]\d+$", stem) else stem


def read_text(path: Path) -> str:
    """A text file, in UTF-8 or, with its mark, UTF-16.

    Raises:
        DataError: it is too long, or in another encoding.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise DataError(f"{shown(path)}: is longer than {MAX_TEXT_BYTES:,} bytes; is it a transcript?")
        raw = path.read_bytes()
        coding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        return unicodedata.normalize("NFC", raw.decode(coding)).strip()
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: is not UTF-8 (byte {error.start:,}); save it as UTF-8.") from error
