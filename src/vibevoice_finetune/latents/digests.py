"""Digests of audio files, remembered between runs.

The latent store finds an entry by the digest of the source's bytes. Hundreds of hours are tens of gigabytes, so a
file's digest is kept beside the store and used again while its path, size and modification time stay as they were.

One text file a writer (`digests-<unique>.tsv`): a line holds its CRC-32, size, time in nanoseconds, digest and path.
Reading takes every file there is and passes over lines that are torn or damaged: what is lost is only hashed again.
What is new goes into a file of its own; when there are many, everything known goes into one, and the files that it was
read from are removed. So several processes may save at once without losing what another one learned.
"""

import json
import time
import uuid
import weakref
import zlib
from pathlib import Path
from typing import NamedTuple

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.errors import UserError
from vibevoice_finetune.latents.shards import write_beside

PATTERN = "digests-*.tsv"
MANY_FILES = 64
SETTLED_NS = 2_000_000_000
"""A file changed within the last two seconds may change again without a new modification time (FAT counts in steps of
two seconds), so its digest is not remembered."""


class Stamp(NamedTuple):
    """What tells that a file has not changed."""

    size: int
    modified_ns: int


class DigestCache:
    """Digests of sources: from memory, from the files beside the store, or computed.

    Sources in memory (bytes, arrays) are remembered for as long as they live, files across runs. `digest` may be
    called from several threads at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._new: dict[str, tuple[Stamp, str]] = {}
        self._files: set[Path] = set()
        self._in_memory: weakref.WeakKeyDictionary[AudioSource, str] = weakref.WeakKeyDictionary()
        for path in sorted(folder.glob(PATTERN)):
            self._read(path)

    def digest(self, source: AudioSource) -> str:
        """The source's digest, hexadecimal.

        Raises:
            DataError: the file cannot be read.
        """
        if source in self._in_memory:
            return self._in_memory[source]
        digest = source.digest() if source.path is None else self._digest_file(source, source.path)
        self._in_memory[source] = digest
        return digest

    def remember(self, source: AudioSource, digest: str) -> None:
        """Take over the digest of a source that another process has computed."""
        self._in_memory[source] = digest

    def save(self) -> None:
        """Write what was learned since the last call.

        Raises:
            UserError: the folder cannot be written to.
        """
        if not self._new:
            return
        merge = len(self._files) >= MANY_FILES
        entries = self._known if merge else self._new
        content = "".join(_line(name, stamp, digest) for name, (stamp, digest) in entries.items())
        path = self._folder / PATTERN.replace("*", uuid.uuid4().hex)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_beside(path, content.encode())
            for merged in self._files if merge else ():
                merged.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(
                f"{self._folder}: the list of audio digests cannot be written: {error.strerror or error}; "
                "make room or choose another --latents_dir, then start the same command again."
            ) from error
        self._files = {path} if merge else self._files | {path}
        self._new = {}

    def _digest_file(self, source: AudioSource, path: Path) -> str:
        name = str(path.absolute())
        before = _stamp(path)
        if before is not None and name in self._known and self._known[name][0] == before:
            return source.part_of(self._known[name][1])
        digest = source.content_digest()
        settled = before is not None and time.time_ns() - before.modified_ns > SETTLED_NS
        if before is not None and settled and _stamp(path) == before:
            self._known[name] = self._new[name] = (before, digest)
        return source.part_of(digest)

    def _read(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError:  # another process has replaced it meanwhile: the digests are computed anew
            return
        self._files.add(path)
        for line in content.split(b"\n"):
            entry = _parse(line)
            if entry is not None:
                name, stamp, digest = entry
                self._known[name] = (stamp, digest)


def _stamp(path: Path) -> Stamp | None:
    """None for a file that is not there; what is wrong with it is said by whoever reads it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)


def _line(name: str, stamp: Stamp, digest: str) -> str:
    rest = f"{stamp.size}\t{stamp.modified_ns}\t{digest}\t{json.dumps(name)}"
    return f"{zlib.crc32(rest.encode()):08x}\t{rest}\n"


def _parse(line: bytes) -> tuple[str, Stamp, str] | None:
    checksum, _, rest = line.partition(b"\t")
    if checksum != f"{zlib.crc32(rest):08x}".encode():
        return None
    size, modified_ns, digest, name = rest.split(b"\t")
    return json.loads(name), Stamp(int(size), int(modified_ns)), digest.decode()
