"""Digests of audio files, remembered between runs.

The latent store finds an entry by the digest of the source's bytes. Hundreds of hours are tens of gigabytes, so a
file's digest is kept beside the store and used again while its size, its times and its inode stay as they were.

`digests-<unique>.bin`, one file per writer: fixed records, then a CRC-32 over them. A file whose checksum is wrong is
passed over: what is lost is only hashed again. What is new goes into a file of its own; when there are many, everything
known goes into one, and the files that it was read from are removed. So several processes may save at once without
losing what another one learned. Records rather than lines of text: 300,000 take 20 MB in memory and no time to read.
"""

import hashlib
import logging
import time
import uuid
import weakref
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.files.atomic import WriteError, write_file

logger = logging.getLogger(__name__)

PATTERN = "digests-*.bin"
MANY_FILES = 64
CHECKSUM_BYTES = 4
SETTLED_NS = 2_000_000_000
"""A file changed within the last two seconds may change again without a new time (FAT counts in steps of two seconds,
other systems in ticks of some milliseconds), so its digest is not remembered."""

RECORD = np.dtype([("name", "<u8"), ("stamp", "<i8", (4,)), ("digest", "V32")])
"""A hash of the file's absolute path; size, times of change of content and of inode in nanoseconds, inode; SHA-256.

Two paths with one hash are told apart by their stamps."""

Stamp = tuple[int, int, int, int]


class DigestCache:
    """Digests of sources: from memory, from the files beside the store, or computed.

    Sources in memory (bytes, arrays) are remembered for as long as they live, files across runs. `digest` may be
    called from several threads at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._new: dict[int, tuple[Stamp, bytes]] = {}
        self._in_memory: weakref.WeakKeyDictionary[AudioSource, str] = weakref.WeakKeyDictionary()
        self._files: set[Path] = set()
        found = [self._read(path) for path in sorted(folder.glob(PATTERN))]
        self._known = _newest(np.concatenate([np.zeros(0, dtype=RECORD), *found]))
        self._names: NDArray[np.uint64] = np.ascontiguousarray(self._known["name"])

    def digest(self, source: AudioSource) -> str:
        """The source's digest, hexadecimal.

        Raises:
            DataError: the file cannot be read.
        """
        digest = self._in_memory.get(source)
        if digest is None:
            digest = source.digest() if source.path is None else self._digest_file(source, source.path)
            self._in_memory[source] = digest
        return digest

    def current(self, source: AudioSource) -> str:
        """The digest of a source as it is now; a file that has not changed since it was hashed is not read again.

        Raises:
            DataError: the file cannot be read.
        """
        return self.digest(source) if source.path is None else self._digest_file(source, source.path)

    def remember(self, source: AudioSource, digest: str) -> None:
        """Take over the digest of a source that another process has computed."""
        self._in_memory[source] = digest

    def forget(self, source: AudioSource) -> None:
        """The source has changed since its digest was taken."""
        self._in_memory.pop(source, None)

    def save(self) -> None:
        """Write what was learned since the last call.

        A folder that cannot be written to costs the next run its time, not this one its result: whoever only reads
        a store of others may not be allowed to write there.
        """
        if not self._new:
            return
        new = np.array([(name, *found) for name, found in self._new.items()], dtype=RECORD)
        merge = len(self._files) >= MANY_FILES
        content = (_newest(np.concatenate([self._known, new])) if merge else new).tobytes()
        path = self._folder / PATTERN.replace("*", uuid.uuid4().hex)
        try:
            write_file(path, content + zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little"))
            for merged in self._files if merge else ():
                merged.unlink(missing_ok=True)
        except (WriteError, OSError) as error:
            logger.warning("the digests of audio files are not remembered: %s", error)
            return
        self._files = {path} if merge else self._files | {path}
        self._known = _newest(np.concatenate([self._known, new]))
        self._names = np.ascontiguousarray(self._known["name"])
        self._new = {}

    def _digest_file(self, source: AudioSource, path: Path) -> str:
        name = int.from_bytes(hashlib.blake2b(bytes(path.absolute()), digest_size=8).digest(), "little")
        before = _stamp(path)
        known = None if before is None else self._find(name, before)
        if known is not None:
            return source.part_of(known.hex())
        digest = source.content_digest()
        settled = before is not None and time.time_ns() - max(before[1:3]) > SETTLED_NS
        if before is not None and settled and _stamp(path) == before:
            self._new[name] = before, bytes.fromhex(digest)
        return source.part_of(digest)

    def _find(self, name: int, stamp: Stamp) -> bytes | None:
        new = self._new.get(name)
        if new is not None:
            return new[1] if new[0] == stamp else None
        place = int(self._names.searchsorted(np.uint64(name)))
        if place == len(self._names) or self._names[place] != name:
            return None
        record = self._known[place]
        return record["digest"].tobytes() if tuple(record["stamp"].tolist()) == stamp else None

    def _read(self, path: Path) -> NDArray[Any]:
        try:
            content = path.read_bytes()
        except OSError:  # another process has replaced it meanwhile: the digests are computed anew
            return np.zeros(0, dtype=RECORD)
        self._files.add(path)
        records, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
        if len(records) % RECORD.itemsize or zlib.crc32(records).to_bytes(CHECKSUM_BYTES, "little") != checksum:
            return np.zeros(0, dtype=RECORD)
        return np.frombuffer(records, dtype=RECORD)


def _newest(records: NDArray[Any]) -> NDArray[Any]:
    """One record for each name, sorted by name: the one whose file was changed last."""
    records = records[np.lexsort((records["stamp"][:, 2], records["name"]))]
    is_last = np.ones(len(records), dtype=bool)
    is_last[:-1] = records["name"][1:] != records["name"][:-1]
    return records[is_last]


def _stamp(path: Path) -> Stamp | None:
    """What tells that a file has not changed; None for a file that is not there: whoever reads it says so.

    The time of the inode cannot be set by a program, so a file that was replaced by another of its size and its time
    of modification, as by ``cp --preserve``, is noticed.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    inode = int.from_bytes((status.st_ino & (2**64 - 1)).to_bytes(8, "little"), "little", signed=True)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode
