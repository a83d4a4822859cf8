"""The file format of the latent store: one shard, written once, read through a memory map.

A shard is a safetensors file of flat arrays. `acoustic` and `semantic` hold the frames of all entries end to end; the
other tensors are the index, one row an entry. Offsets are the running sums of `frames`, so they are not stored. Opening
a shard reads its header and its index, never its frames. Measured for 3,000 rows in random order, rows a second: this
layout 20,000 cold, `datasets` with Array2D 1,500, a `.npz` a row 700, lmdb 400.

Nothing is ever changed in place: a shard is written beside under a name of its own, synchronised, and renamed, so a
kill at any moment leaves whole shards and at most one `.partial` file. The index carries a CRC-32 over itself and one
for the frames of each entry, so that a torn file or a flipped bit is found (a CRC-32 misses no single flip).

Shapes: N entries of a shard, F frames of one entry, C acoustic dim, S semantic dim.
"""

import json
import math
import mmap
import os
import time
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from vibevoice_finetune.errors import UserError

SUFFIX = ".safetensors"
PARTIAL_SUFFIX = ".partial"
BAD_SUFFIX = ".bad"
KEY_LENGTH = 32
MAX_HEADER_BYTES = 1_000_000
"""A shard's header names eight tensors in under 1 kB; a longer one is not ours, whatever its length field says."""

KEY_TYPE = np.dtype(f"S{KEY_LENGTH}")
INDEX_TENSORS = ("keys", "frames", "with_semantic", "acoustic_crc32", "semantic_crc32")
"""In the order in which the checksum of the index runs over them."""

TYPE_CODES: dict[type[np.generic], str] = {np.float32: "F32", np.int64: "I64", np.uint32: "U32", np.uint8: "U8"}
"""What safetensors calls the types of a shard's tensors."""

Scalar = TypeVar("Scalar", bound=np.generic)
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Latents:
    """What one segment of audio was encoded to.

    Attributes:
        acoustic_FC: mean of the acoustic encoder, float32.
        semantic_FS: output of the semantic encoder, float32; None for a segment that only serves as a voice prompt.
    """

    acoustic_FC: Floats
    semantic_FS: Floats | None


@dataclass(frozen=True)
class ShardKind:
    """What every shard of a store has in common; a shard of another kind is not read."""

    fingerprint: str
    acoustic_dim: int
    semantic_dim: int

    @property
    def metadata(self) -> dict[str, str]:
        """The part of a shard's header that tells its kind."""
        return {"format": "vibevoice_finetune latents", "version": "1", "fingerprint": self.fingerprint}


class ShardError(Exception):
    """A file that is not a whole shard; the message says what is wrong with it."""


class ForeignShardError(ShardError):
    """A whole file of another kind: a later format, or a shard that somebody copied from another encoder's folder."""


class DamagedEntryError(Exception):
    """The frames of an entry do not have the checksum that they were written with."""


class Shard:
    """A shard opened for reading; safe in forked processes, and after the file was renamed or deleted.

    Attributes:
        path: the file.
        keys: (N,) keys of the entries, 32 hexadecimal digits each.
        frames: (N,) F of each entry.
        with_semantic: (N,) whether the entry has semantic features.
    """

    def __init__(self, path: Path, kind: ShardKind) -> None:
        """Map the file and read its index.

        Raises:
            ShardError: the file is torn, damaged in header or index, or of another kind.
            OSError: it cannot be opened at all.
        """
        self.path = path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ShardError(f"it has {size} bytes")
            # A private copy-on-write map: arrays over it are writable, as torch wants them, and never reach the file.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        header, data_start = _read_header(self._map, size)
        metadata = header.get("__metadata__")
        if not isinstance(metadata, dict) or not kind.metadata.items() <= metadata.items():
            raise ForeignShardError(f"its header says {metadata}, expected {kind.metadata}")
        tensors = _Tensors(self._map, header, data_start)
        keys = tensors.get("keys", np.uint8)
        with_semantic = tensors.get("with_semantic", np.uint8)
        self.frames = tensors.get("frames", np.int64)
        self._acoustic_crc32 = tensors.get("acoustic_crc32", np.uint32)
        self._semantic_crc32 = tensors.get("semantic_crc32", np.uint32)
        self._acoustic = tensors.get("acoustic", np.float32)
        self._semantic = tensors.get("semantic", np.float32)
        index = (keys, self.frames, with_semantic, self._acoustic_crc32, self._semantic_crc32)
        if metadata.get("index_crc32") != _index_checksum(index):
            raise ShardError("the checksum of its index is wrong")
        self.keys: NDArray[np.bytes_] = keys.reshape(-1).view(KEY_TYPE)
        self.with_semantic: NDArray[np.bool_] = with_semantic.astype(bool)
        self._acoustic_end = np.cumsum(self.frames)
        self._semantic_end = np.cumsum(self.frames * self.with_semantic)
        if self._acoustic.shape != (int(self.frames.sum()), kind.acoustic_dim) or self._semantic.shape != (
            int(self.frames[self.with_semantic].sum()),
            kind.semantic_dim,
        ):
            raise ShardError(
                f"it holds {self._acoustic.shape} acoustic and {self._semantic.shape} semantic frames, its index "
                f"promises {int(self.frames.sum())}; dims {kind.acoustic_dim} and {kind.semantic_dim} were expected"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, entry: int) -> Latents:
        """Frames of one entry, (F, C) and (F, S), as views into the file.

        Raises:
            DamagedEntryError: the frames do not match their checksum.
        """
        frames = int(self.frames[entry])
        acoustic_end, semantic_end = int(self._acoustic_end[entry]), int(self._semantic_end[entry])
        acoustic_FC = self._acoustic[acoustic_end - frames : acoustic_end]
        semantic_FS = self._semantic[semantic_end - frames : semantic_end] if self.with_semantic[entry] else None
        good = _checksum(acoustic_FC) == self._acoustic_crc32[entry]
        if semantic_FS is not None:
            good = good and _checksum(semantic_FS) == self._semantic_crc32[entry]
        if not good:
            raise DamagedEntryError(f"{self.path}: entry {self.keys[entry].decode()} fails its checksum")
        return Latents(acoustic_FC, semantic_FS)


def _read_header(mapped: mmap.mmap, size: int) -> tuple[dict[str, object], int]:
    """The JSON header of a safetensors file and where its data begin.

    Read here and not by the library, which would map and check every tensor of a file of which we want the index.
    """
    length = int.from_bytes(mapped[:8], "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise ShardError(f"its header is said to be {length:,} bytes long; the file has {size:,}")
    try:
        header = json.loads(mapped[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise ShardError(f"its header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise ShardError("its header is not an object")
    return header, 8 + length


class _Tensors:
    """The tensors that a header describes, as views into the file."""

    def __init__(self, mapped: mmap.mmap, header: dict[str, object], data_start: int) -> None:
        self._mapped = mapped
        self._header = header
        self._data_start = data_start

    def get(self, name: str, kind: type[Scalar]) -> NDArray[Scalar]:
        """The tensor of this name.

        Raises:
            ShardError: it is of another type, or does not lie within the file.
        """
        match self._header.get(name):
            case {"dtype": code, "shape": [*shape], "data_offsets": [int(begin), int(end)]} if code == TYPE_CODES[kind]:
                pass
            case other:
                raise ShardError(f"its header describes the tensor {name} as {other}")
        if not all(isinstance(dim, int) and dim >= 0 for dim in shape):
            raise ShardError(f"the tensor {name} has the shape {shape}")
        count = math.prod(shape)
        length = len(self._mapped) - self._data_start
        if not 0 <= begin <= end <= length or end - begin != count * np.dtype(kind).itemsize:
            raise ShardError(f"the tensor {name} does not lie within the file; the file was cut short")
        start = self._data_start + begin
        return np.frombuffer(self._mapped, dtype=kind, count=count, offset=start).reshape(shape)


def _index_checksum(index: Iterable[NDArray[Any]]) -> str:
    checksum = 0
    for array in index:
        checksum = _checksum(array, checksum)
    return f"{checksum:08x}"


def _checksum(array: NDArray[Any], start: int = 0) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, start)


class ShardWriter:
    """Collects entries and publishes them as shards; what was published survives any kill.

    Use as a context manager: leaving it, also by an exception, publishes what is still held.

    Args:
        folder: where shards lie; made if missing.
        kind: what all shards of the folder have in common.
        max_frames: publish when so many frames are held. 65,536 frames are 2.4 h of audio and 50 MB at 64 + 128 dims.
        max_age_sec: publish when the oldest entry was held for so long; the most that a kill can cost.
    """

    def __init__(self, folder: Path, kind: ShardKind, *, max_frames: int = 65_536, max_age_sec: float = 60.0) -> None:
        self._folder = folder
        self._kind = kind
        self._max_frames = max_frames
        self._max_age_sec = max_age_sec
        self._held: list[tuple[str, Latents]] = []
        self._held_frames = 0
        self._oldest_sec = 0.0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.publish()

    def add(self, key: str, latents: Latents) -> None:
        """Take one entry; may publish.

        Raises:
            UserError: the shard cannot be written, for instance because the disk is full.
        """
        if not self._held:
            self._oldest_sec = time.monotonic()
        self._held.append((key, latents))
        self._held_frames += len(latents.acoustic_FC)
        if self._held_frames >= self._max_frames or time.monotonic() - self._oldest_sec >= self._max_age_sec:
            self.publish()

    def publish(self) -> None:
        """Write what is held as one shard. After a failure the entries are gone and the folder is as before.

        Raises:
            UserError: the shard cannot be written, for instance because the disk is full.
        """
        held, self._held, self._held_frames = self._held, [], 0
        if held:
            write_shard(self._folder, self._kind, held)


def write_shard(folder: Path, kind: ShardKind, entries: Iterable[tuple[str, Latents]]) -> Path:
    """Write entries as one shard under a name that no other writer uses, and return its path.

    Raises:
        UserError: it cannot be written; nothing is left behind.
    """
    content = _encode_shard(kind, list(entries))
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_beside(path, content)
    except OSError as error:
        raise UserError(
            f"{folder}: {len(content) / 1e6:,.1f} MB of latents cannot be written: {error.strerror or error}; "
            "everything written before is complete and is used again; make room (about 25 MB an hour of audio) "
            "or choose another --latents_dir, then start the same command again."
        ) from error
    return path


def _encode_shard(kind: ShardKind, entries: list[tuple[str, Latents]]) -> bytes:
    for key, latents in entries:
        frames = len(latents.acoustic_FC)
        assert len(key) == KEY_LENGTH, key
        assert latents.acoustic_FC.shape == (frames, kind.acoustic_dim), latents.acoustic_FC.shape
        assert latents.semantic_FS is None or latents.semantic_FS.shape == (frames, kind.semantic_dim)
    acoustic = [np.ascontiguousarray(latents.acoustic_FC, dtype=np.float32) for _, latents in entries]
    semantic = [
        None if latents.semantic_FS is None else np.ascontiguousarray(latents.semantic_FS, dtype=np.float32)
        for _, latents in entries
    ]
    index: dict[str, NDArray[Any]] = {
        "keys": np.array([key for key, _ in entries], dtype=KEY_TYPE).view(np.uint8).reshape(-1, KEY_LENGTH),
        "frames": np.array([len(array) for array in acoustic], dtype=np.int64),
        "with_semantic": np.array([array is not None for array in semantic], dtype=np.uint8),
        "acoustic_crc32": np.array([_checksum(array) for array in acoustic], dtype=np.uint32),
        "semantic_crc32": np.array([0 if array is None else _checksum(array) for array in semantic], dtype=np.uint32),
    }
    none = np.zeros((0, kind.semantic_dim), dtype=np.float32)
    tensors = {
        "acoustic": np.concatenate(acoustic),
        "semantic": np.concatenate([none, *(array for array in semantic if array is not None)]),
        **index,
    }
    return safetensors_numpy.save(
        tensors, {**kind.metadata, "index_crc32": _index_checksum(index[name] for name in INDEX_TENSORS)}
    )


def write_beside(path: Path, content: bytes) -> None:
    """Write a file so that it appears under its name whole or not at all, also after a loss of power.

    Raises:
        OSError: it cannot be written; the partial file is removed.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # also an interrupt: whatever ends the writing, the partial file goes
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Not possible on Windows, where folders cannot be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
