"""What a folder, a file or a data set on this machine holds: recordings, clips, transcripts, speakers.

`find` looks and says what it recognised; `--format` names a format where looking is not enough. Nothing is decoded
here: only names and text files are read.
"""

import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.prepare.recordings import Ignored, Recording, Source
from vibevoice_finetune.prepare.sources.tables import MEDIA_SUFFIXES, read_table, read_text, stem_group
from vibevoice_finetune.prepare.sources.timed_text import TIMED_SUFFIXES, read_timed_text

TEXT_SUFFIXES = (".txt", ".lab")
TABLE_SUFFIXES = (".csv", ".tsv", ".list", ".lst", ".psv")

LONG_BYTES = 6_000_000
"""A file above this is taken for a long recording until it is decoded: a minute of 48 kHz, 16 bit, mono."""

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
        found = read_table(source, form, columns or {})
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
        return read_table(folder / "metadata.csv", "ljspeech" if form == "ljspeech" else form, columns)
    if form in ("auto", "commonvoice") and (folder / "validated.tsv").is_file():
        return read_table(folder / "validated.tsv", "commonvoice", columns)
    if form in ("ljspeech", "commonvoice", "table", "gptsovits", "f5"):
        tables = _files(folder, TABLE_SUFFIXES)
        if len(tables) != 1:
            raise DataError(
                f"{shown(folder)}: --format {form} needs one table, {len(tables)} were found; name the table itself."
            )
        return read_table(tables[0], form, columns)
    media = _files(folder, MEDIA_SUFFIXES)
    if form in ("auto", "vctk") and _is_vctk(folder, media):
        return _vctk(folder, media)
    if form == "vctk":
        raise DataError(f"{shown(folder)}: --format vctk needs folders txt/SPEAKER and wav48*/SPEAKER.")
    tables = _files(folder, (".csv", ".tsv", ".list"))
    if form == "auto" and len(tables) == 1 and not any(_beside(path, TEXT_SUFFIXES + TIMED_SUFFIXES) for path in media):
        return read_table(tables[0], "auto", columns)
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
        text = read_text(plain) if plain and not passages else None
        if form == "clips" and text is None:
            ignored.append(Ignored(shown(path), "no .txt or .lab beside it"))
            continue
        if form == "subtitles" and not passages:
            ignored.append(Ignored(shown(path), "no subtitles, labels or TextGrid beside it"))
            continue
        is_clip = form == "clips" or (form == "auto" and text is not None and path.stat().st_size < LONG_BYTES)
        group = name if not is_clip else PurePosixPath(name).parent.joinpath(stem_group(path.stem)).as_posix()
        recordings.append(Recording(name, path, group, text=text, passages=passages, is_clip=is_clip))
    kinds = Counter("subtitles" if r.passages else "clips" if r.is_clip else "recordings" for r in recordings)
    return Source(kinds.most_common(1)[0][0] if kinds else form, tuple(recordings), tuple(ignored))


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
        recordings.append(Recording(f"{speaker}/{stem}", path, group, speaker, read_text(text), is_clip=True))
    return Source("vctk", tuple(recordings), tuple(ignored))


def _with_own_names(recordings: Iterable[Recording]) -> Iterable[Recording]:
    """Names that every file system takes, and no two alike even where case does not count."""
    taken: Counter[str] = Counter()
    for recording in recordings:
        plain = unicodedata.normalize("NFKD", recording.name)
        name = "/".join(re.sub(r"[^\w.-]+", "_", part).strip("._")[:80] or "_" for part in plain.split("/"))
        taken[name.casefold()] += 1
        number = taken[name.casefold()]
        yield replace(recording, name=name if number == 1 else f"{name}__{number}")
