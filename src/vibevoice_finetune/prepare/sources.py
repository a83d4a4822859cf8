"""What a folder, a file or a data set on this machine holds: recordings, clips, transcripts, speakers.

`find` looks and says what it recognised; `--format` names a format where looking is not enough. Nothing is decoded
here: only names and text files are read.
"""

import csv
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.prepare.recordings import Ignored, Recording, Source
from vibevoice_finetune.prepare.timed_text import TIMED_SUFFIXES, read_timed_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".wma")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
MEDIA_SUFFIXES = AUDIO_SUFFIXES + VIDEO_SUFFIXES
TEXT_SUFFIXES = (".txt", ".lab")
TABLE_SUFFIXES = (".csv", ".tsv", ".list", ".lst", ".psv")

LONG_BYTES = 6_000_000
"""A file above this is taken for a long recording until it is decoded: a minute of 48 kHz, 16 bit, mono."""

MAX_TEXT_BYTES = 50_000_000
"""The longest novel has 13 MB."""

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

FORMATS = ("auto", "recordings", "clips", "subtitles", "ljspeech", "vctk", "commonvoice", "table", "gptsovits", "f5")


def find(source: Path, form: str = "auto", columns: dict[str, str] | None = None) -> Source:
    """Look what a source holds.

    Args:
        source: a folder, a table, one audio file, or a zip (see `unpack`).
        form: one of `FORMATS`.
        columns: names of columns of a table that are not found by their usual names: "audio", "text", "speaker".

    Raises:
        DataError: there is nothing to train on, or not in that format.
    """
    if not source.exists():
        raise DataError(f"{shown(source)}: there is no such file or folder.")
    if source.is_file() and source.suffix.lower() in MEDIA_SUFFIXES:
        found = _loose([source], source.parent, form)
    elif source.is_file():
        found = _table(source, form, columns or {})
    else:
        found = _folder(source, form, columns or {})
    if not found.recordings:
        why = f"; not used: {found.ignored[0].where} ({found.ignored[0].reason})" if found.ignored else ""
        raise DataError(f"{shown(source)}: no audio was found{why}; audio ends in {', '.join(MEDIA_SUFFIXES)}.")
    return replace(found, recordings=tuple(_with_own_names(sorted(found.recordings, key=lambda one: one.name))))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip of recordings; members that would leave the folder are refused.

    Raises:
        DataError: it is not a zip, or a member's name leads out of the folder.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise DataError(f"{shown(archive)}: {shown(member.filename)} leads out of the archive; refused.")
            opened.extractall(folder)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{shown(archive)}: cannot be unpacked ({shown(error)}); unpack it and name the folder."
        ) from error
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _folder(folder: Path, form: str, columns: dict[str, str]) -> Source:
    if form in ("auto", "ljspeech") and (folder / "metadata.csv").is_file():
        return _table(folder / "metadata.csv", "ljspeech" if form == "ljspeech" else form, columns)
    if form in ("auto", "commonvoice") and (folder / "validated.tsv").is_file():
        return _table(folder / "validated.tsv", "commonvoice", columns)
    if form in ("ljspeech", "commonvoice", "table", "gptsovits", "f5"):
        tables = _files(folder, TABLE_SUFFIXES)
        if len(tables) != 1:
            raise DataError(
                f"{shown(folder)}: --format {form} needs one table, {len(tables)} were found; name the table itself."
            )
        return _table(tables[0], form, columns)
    media = _files(folder, MEDIA_SUFFIXES)
    if form in ("auto", "vctk") and _is_vctk(folder, media):
        return _vctk(folder, media)
    if form == "vctk":
        raise DataError(f"{shown(folder)}: --format vctk needs folders txt/SPEAKER and wav48*/SPEAKER.")
    tables = _files(folder, (".csv", ".tsv", ".list"))
    if form == "auto" and len(tables) == 1 and not any(_beside(path, TEXT_SUFFIXES + TIMED_SUFFIXES) for path in media):
        return _table(tables[0], "auto", columns)
    return _loose(media, folder, form)


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files with such a suffix, also in folders inside; hidden ones and links that lead outside are left out.

    Raises:
        DataError: a name is not UTF-8.
    """
    root = folder.resolve()
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.resolve().is_relative_to(root)
        and path.is_file()
    )
    for path in found:
        if not str(path).isprintable() and re.search("[\ud800-\udfff]", str(path)):
            raise DataError(f"{shown(path)}: the name is not UTF-8, so no list can name it; rename it.")
    return found


def _beside(media: Path, suffixes: Iterable[str]) -> Path | None:
    """The file of the same name with one of these suffixes; also `a.wav.srt` beside `a.wav`."""
    for suffix in suffixes:
        for name in (
            media.with_suffix(suffix),
            media.with_name(media.name + suffix),
            media.with_suffix(suffix.upper()),
        ):
            if name.is_file():
                return name
    return None


def _loose(media: list[Path], folder: Path, form: str) -> Source:
    """Audio files with what lies beside each: timed text, a transcript, or nothing."""
    recordings, ignored = [], []
    for path in media:
        name = path.relative_to(folder).with_suffix("").as_posix()
        timed = _beside(path, TIMED_SUFFIXES) if form in ("auto", "subtitles") else None
        plain = _beside(path, TEXT_SUFFIXES) if form in ("auto", "recordings", "clips") else None
        passages = tuple(read_timed_text(timed)) if timed else ()
        text = _read_text(plain) if plain and not passages else None
        if form == "clips" and text is None:
            ignored.append(Ignored(shown(path), "no .txt or .lab beside it"))
            continue
        if form == "subtitles" and not passages:
            ignored.append(Ignored(shown(path), "no subtitles, labels or TextGrid beside it"))
            continue
        is_clip = form == "clips" or (form == "auto" and text is not None and path.stat().st_size < LONG_BYTES)
        group = name if not is_clip else PurePosixPath(name).parent.joinpath(_stem_group(path.stem)).as_posix()
        recordings.append(Recording(name, path, group, text=text, passages=passages, is_clip=is_clip))
    kinds = Counter("subtitles" if r.passages else "clips" if r.is_clip else "recordings" for r in recordings)
    return Source(kinds.most_common(1)[0][0] if kinds else form, tuple(recordings), tuple(ignored))


def _stem_group(stem: str) -> str:
    """What clips of one recording are called alike: the name up to its last number.

    >>> _stem_group("LJ001-0042"), _stem_group("clip")
    ('LJ001', 'clip')
    """
    found = re.fullmatch(r"(.+?)[-_ .]*\d+", stem)
    return found[1] if found and re.search(r"[-_ .]\d+$", stem) else stem


def _read_text(path: Path) -> str:
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


def _is_vctk(folder: Path, media: list[Path]) -> bool:
    return (folder / "txt").is_dir() and any(path.relative_to(folder).parts[0].startswith("wav") for path in media)


def _vctk(folder: Path, media: list[Path]) -> Source:
    """`wav48*/SPEAKER/SPEAKER_001_mic1.flac` with `txt/SPEAKER/SPEAKER_001.txt`; one microphone is taken."""
    recordings, ignored = [], []
    for path in media:
        speaker = path.parent.name
        stem = re.sub(r"_mic\d$", "", path.stem)
        if re.search(r"_mic[2-9]$", path.stem):
            ignored.append(Ignored(shown(path), "another microphone of the same sentence"))
            continue
        text = folder / "txt" / speaker / f"{stem}.txt"
        if not text.is_file():
            ignored.append(Ignored(shown(path), f"no {shown(text.relative_to(folder))}"))
            continue
        # All speakers read the same sentences, so a sentence is kept on one side of the split.
        group = stem.removeprefix(f"{speaker}_")
        recordings.append(Recording(f"{speaker}/{stem}", path, group, speaker, _read_text(text), is_clip=True))
    return Source("vctk", tuple(recordings), tuple(ignored))


def _table(path: Path, form: str, columns: dict[str, str]) -> Source:
    """Rows of a text file: LJSpeech's, Common Voice's, GPT-SoVITS's, F5-TTS's, or any with named columns."""
    text = _read_text(path)
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
                group = f"{speaker or ''}/{_stem_group(PurePosixPath(own).name)}" if kind == "ljspeech" else own
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
        "audio": _column(path, names, columns.get("audio"), AUDIO_COLUMNS, "--audio_column_name"),
        "text": _column(path, names, columns.get("text"), TEXT_COLUMNS, "--text_column_name"),
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


def _column(path: Path, names: list[str], wanted: str | None, usual: tuple[str, ...], flag: str) -> str:
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{shown(path)}: has no column {shown(wanted)!r}; it has {shown(', '.join(names))}.")
        return wanted
    for name in usual:
        for own in names:
            if own.lower() == name:
                return own
    raise DataError(
        f"{shown(path)}: no column is called {', '.join(usual[:4])} …; it has "
        f"{shown(', '.join(names))}; name it with {flag}."
    )


def _with_own_names(recordings: Iterable[Recording]) -> Iterable[Recording]:
    """Names that every file system takes, and no two alike even where case does not count."""
    taken: Counter[str] = Counter()
    for recording in recordings:
        plain = unicodedata.normalize("NFKD", recording.name)
        name = "/".join(re.sub(r"[^\w.-]+", "_", part).strip("._")[:80] or "_" for part in plain.split("/"))
        taken[name.casefold()] += 1
        number = taken[name.casefold()]
        yield replace(recording, name=name if number == 1 else f"{name}__{number}")
