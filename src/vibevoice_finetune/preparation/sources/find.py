"""What a folder, a file or a data set on this machine holds: recordings, clips, transcripts, speakers.

`find` looks and says what it recognised; `--format` names a format where looking is not enough. Nothing is decoded
here: only names and text files are read.
"""

import hashlib
import os
import re
import shutil
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.files.atomic import writing_folder
from vibevoice_finetune.preparation.recordings import Ignored, Recording, Source
from vibevoice_finetune.preparation.sources.tables import LONG_BYTES, MEDIA_SUFFIXES, read_table, read_text, stem_group
from vibevoice_finetune.preparation.sources.timed_text import TIMED_SUFFIXES, read_timed_text

TEXT_SUFFIXES = (".txt", ".lab")
TABLE_SUFFIXES = (".csv", ".tsv", ".list", ".lst", ".psv")


def find(source: Path, form: str = "auto", columns: dict[str, str] | None = None) -> Source:
    """Look what a source holds.

    Args:
        source: a folder, a table, one audio file, or a zip (see `unpack`).
        form: as `--format` has it.
        columns: names of columns of a table that are not found by their usual names: "audio", "text", "speaker".

    Raises:
        DataError: there is nothing to train on, or not in that format.
    """
    check_exists(source)
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


def check_exists(source: Path) -> None:
    """Raise a `DataError` if there is no such file or folder."""
    if not source.exists():
        is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None
        hint = "; a data set on the Hub is read with --format dataset" if is_id else ""
        raise DataError(f"{shown(source)}: there is no such file or folder{hint}.")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip of recordings into a folder of its own; members that would leave it are refused.

    The folder's name is a digest of what the zip holds, so that another zip is unpacked anew, and one that was
    unpacked to its end is not.

    Raises:
        DataError: it is not a zip, or a member's name leads out of the folder.
        WriteError: there is no room for it.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise DataError(f"{shown(archive)}: {shown(member.filename)} leads out of the archive; refused.")
            listed = repr(sorted((member.filename, member.CRC, member.file_size) for member in members))
            place = folder / hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()[:16]
            if not place.is_dir():
                with writing_folder(place) as staging:
                    opened.extractall(staging)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{shown(archive)}: cannot be unpacked ({shown(error)}); unpack it and name the folder."
        ) from error
    for path in folder.iterdir():
        if path != place and not path.name.startswith("."):  # of another zip; hidden is what another job unpacks
            shutil.rmtree(path, ignore_errors=True)
    inside = [path for path in place.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else place


def _folder(folder: Path, form: str, columns: dict[str, str]) -> Source:
    if form in ("auto", "ljspeech") and (folder / "metadata.csv").is_file():
        return read_table(folder / "metadata.csv", "ljspeech" if form == "ljspeech" else form, columns)
    if form in ("auto", "commonvoice") and (folder / "validated.tsv").is_file():
        return read_table(folder / "validated.tsv", "commonvoice", columns)
    if form in ("ljspeech", "commonvoice", "table", "gptsovits", "f5", "dataset"):
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
        DataError: a folder cannot be read, or a name is not UTF-8.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{shown(error.filename)}: cannot be read ({error.strerror}); check its permissions.")

    root = os.path.realpath(folder)
    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):  # links to folders are not followed
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and _is_inside(path, root)]
    for path in found:
        if not str(path).isprintable() and re.search("[\ud800-\udfff]", str(path)):
            raise DataError(f"{shown(path)}: the name is not UTF-8, so no list can name it; rename it.")
    return sorted(found)


def _is_inside(path: Path, root: str) -> bool:
    """Whether a file, or what a link leads to, lies in the folder; a link in a circle leads nowhere."""
    return path.is_file() and Path(os.path.realpath(path)).is_relative_to(root)


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
