"""The file format of the latent store: shards, each written once and never changed.

A shard is a safetensors file with what one of the two encoders made of some segments: `latents` holds the frames of
all entries end to end, the other tensors are the index, one row per entry. Where an entry begins is the running sum of
`frames`, so it is not stored. One encoder's output per shard, because only one encoder is in memory at a time: the
semantic features of a segment come to the disk long after its acoustic latents.

Why it is safe:
- A shard is written beside its place, flushed and renamed (`files/atomic.py`), so a kill leaves whole shards only.
- The index has a checksum over itself, and each entry has one over its frames. A file that was cut, zeroed or had a
  bit flipped is noticed before a frame of it is used (a CRC-32 misses no single flip).
- The index is copied into memory, and frames are read, not mapped: in a mapped file, what happens to the file later
  happens to the arrays, and a file that is cut while it is mapped ends the process with SIGBUS.
- No file stays open: a store of any number of shards works with the usual limit of 1,024 open files, and other
  processes may replace shards at any time (`latents/merge.py`).

Shapes: N entries of a shard, F frames of one entry, D dim of the encoder (C acoustic, S semantic).
"""

import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import writing_file
from vibevoice_finetune.files.headers import HeaderError, StoredTensor, read_header
from vibevoice_finetune.latents.segments import KEY_LENGTH

SUFFIX = ".safetensors"
BAD_SUFFIX = ".bad"
FULL_SHARD_FRAMES = 65_536
"""2.4 h of audio; 17 MB of acoustic latents, 34 MB of semantic features at the released models' dims."""

KEY_TYPE = np.dtype(f"S{KEY_LENGTH}")
TYPE_CODES: dict[type[np.generic], str] = {np.float32: "F32", np.int64: "I64", np.uint32: "U32", np.uint8: "U8"}
"""What safetensors calls the types of a shard's tensors."""

WRITE_ADVICE = (
    "everything written before is complete and is used again; free some space (about 25 MB per hour of audio) or "
    "choose another --latents_dir, then start the same command again"
)

Scalar = TypeVar("Scalar", bound=np.generic)
Floats = NDArray[np.float32]
Keys = NDArray[np.bytes_]
"""Keys of segments as an array of `KEY_TYPE`; four times smaller than a list of strings."""


class Part(StrEnum):
    """Which of the two encoders made something."""

    ACOUSTIC = "acoustic"
    SEMANTIC = "semantic"


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
class StoreKind:
    """What all shards of a store have in common; a shard of another kind is not read."""

    fingerprint: str
    acoustic_dim: int
    semantic_dim: int

    def dim(self, part: Part) -> int:
        """D of one part."""
        return self.acoustic_dim if part is Part.ACOUSTIC else self.semantic_dim

    @property
    def metadata(self) -> dict[str, str]:
        """The part of a shard's header that tells its kind."""
        return {"format": "vibevoice_finetune latents", "version": "2", "fingerprint": self.fingerprint}


class ShardError(Exception):
    """A file that is not a whole shard; the message says what is wrong with it."""


class ForeignShardError(ShardError):
    """A whole file of another kind: a later format, or a shard that somebody copied from another encoder's folder."""


class DamagedEntryError(Exception):
    """The frames of an entry do not have the checksum that they were written with."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The index of a shard, copied into memory.

    Attributes:
        path: the file.
        part: the encoder that made it.
        arithmetic: what the encoder computed in, "float32" or "tf32"; both serve alike, so it is only recorded.
        dim: D.
        keys: (N,) keys of the entries, 32 hexadecimal digits each.
        frames: (N,) F of each entry.
        crc32: (N,) checksums of the entries' frames.
        position: (N,) where the frames of each entry begin in the file, in bytes.
    """

    path: Path
    part: Part
    arithmetic: str
    dim: int
    keys: Keys
    frames: NDArray[np.int64]
    crc32: NDArray[np.uint32]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def entries(self) -> list[tuple[str, Floats]]:
        """All entries with their frames.

        Raises:
            DamagedEntryError: one of them is damaged.
            FileNotFoundError: the file is gone.
        """
        with self.path.open("rb", buffering=0) as file:
            return [(key.decode(), self._read(file, entry)) for entry, key in enumerate(self.keys.tolist())]

    def good_entries(self) -> list[tuple[str, Floats]]:
        """The entries that are not damaged."""
        good = []
        with self.path.open("rb", buffering=0) as file:
            for entry, key in enumerate(self.keys.tolist()):
                try:
                    good.append((key.decode(), self._read(file, entry)))
                except DamagedEntryError:
                    continue
        return good

    def _read(self, file: FileIO, entry: int) -> Floats:
        return read_frames(
            file, self.path, int(self.position[entry]), (int(self.frames[entry]), self.dim), int(self.crc32[entry])
        )


def read_shard(path: Path, kind: StoreKind) -> Shard:
    """Read the index of a shard; frames are not touched.

    Raises:
        ShardError: the file is cut, damaged in header or index, or of another kind.
        FileNotFoundError: it is gone.
        UserError: it cannot be opened.
    """
    try:
        header = read_header(path)
        if not kind.metadata.items() <= header.metadata.items():
            raise ForeignShardError(f"its header says {header.metadata}, expected {kind.metadata}")
        tensors = {tensor.name: tensor for tensor in header.tensors}
        with path.open("rb", buffering=0) as file:
            key_bytes = _read_tensor(file, tensors, "keys", np.uint8)
            frames = _read_tensor(file, tensors, "frames", np.int64)
            crc32 = _read_tensor(file, tensors, "crc32", np.uint32)
    except HeaderError as error:
        raise ShardError(str(error)) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check its permissions and the disk, or choose "
            "another --latents_dir."
        ) from error
    if header.metadata.get("index_crc32") != _index_checksum(key_bytes, frames, crc32):
        raise ShardError("the checksum of its index is wrong")
    if header.metadata.get("part") not in list(Part):
        raise ForeignShardError(f"it holds {header.metadata.get('part')!r}, which this version does not know")
    part = Part(header.metadata["part"])
    dim, latents = kind.dim(part), tensors.get("latents")
    rows = int(frames.sum())
    if (
        key_bytes.shape != (len(frames), KEY_LENGTH)
        or crc32.shape != frames.shape
        or frames.ndim != 1
        or bool((frames < 1).any())
        or latents is None
        or (latents.dtype, latents.shape) != (TYPE_CODES[np.float32], (rows, dim))
    ):
        raise ShardError(f"it holds {latents}, but its index promises {rows:,} frames of {dim} numbers")
    return Shard(
        path=path,
        part=part,
        arithmetic=header.metadata.get("arithmetic", ""),
        dim=dim,
        keys=key_bytes.reshape(-1).view(KEY_TYPE),
        frames=frames,
        crc32=crc32,
        position=latents.start + (np.cumsum(frames) - frames) * dim * np.dtype(np.float32).itemsize,
    )


def read_frames(file: FileIO, path: Path, position: int, shape: tuple[int, int], crc32: int) -> Floats:
    """Frames (F, D) of an entry, as an array of their own.

    Args:
        file: opened without a buffer.
        path: of the file, for the message.
        position: of the first byte.
        shape: (F, D).
        crc32: the checksum that they were written with.

    Raises:
        DamagedEntryError: the frames do not match their checksum, or the file ends before them.
    """
    frames_FD: Floats = np.empty(shape, dtype=np.float32)
    buffer = frames_FD.reshape(-1).view(np.uint8).data
    file.seek(position)
    if not _read_into(file, buffer) or zlib.crc32(buffer) != crc32:
        raise DamagedEntryError(f"{path}: the latents at byte {position:,} do not match their checksum")
    return frames_FD


def _read_into(file: FileIO, buffer: memoryview) -> bool:
    """Fill a buffer; False if the file ends before. A single system call returns at most 2 GB."""
    done = 0
    while done < len(buffer):
        count = file.readinto(buffer[done:])
        if not count:
            return False
        done += count
    return True


def _read_tensor(file: FileIO, tensors: dict[str, StoredTensor], name: str, kind: type[Scalar]) -> NDArray[Scalar]:
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != TYPE_CODES[kind]:
        raise ShardError(f"its header describes the tensor {name} as {tensor}")
    array = np.empty(tensor.shape, dtype=kind)
    file.seek(tensor.start)
    if array.size and not _read_into(file, array.reshape(-1).view(np.uint8).data):
        raise ShardError(f"it ends within the tensor {name}")
    return array


def _index_checksum(*index: NDArray[Any]) -> str:
    checksum = 0
    for array in index:
        checksum = _checksum(array, checksum)
    return f"{checksum:08x}"


def _checksum(array: NDArray[Any], start: int = 0) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, start)


def write_shard(
    folder: Path, kind: StoreKind, part: Part, arithmetic: str, entries: Sequence[tuple[str, Floats]]
) -> Path:
    """Write entries as one shard under a name that no other writer uses, and return its path.

    Raises:
        WriteError: it cannot be written; nothing is left behind.
    """
    dim = kind.dim(part)
    assert all(len(key) == KEY_LENGTH and frames.shape == (len(frames), dim) for key, frames in entries)
    arrays = [np.ascontiguousarray(frames, dtype=np.float32) for _, frames in entries]
    keys = np.array([key for key, _ in entries], dtype=KEY_TYPE).view(np.uint8).reshape(-1, KEY_LENGTH)
    frames = np.array([len(array) for array in arrays], dtype=np.int64)
    crc32 = np.array([_checksum(array) for array in arrays], dtype=np.uint32)
    content = safetensors_numpy.save(
        {"keys": keys, "frames": frames, "crc32": crc32, "latents": np.concatenate(arrays)},
        {
            **kind.metadata,
            "part": str(part),
            "arithmetic": arithmetic,
            "index_crc32": _index_checksum(keys, frames, crc32),
        },
    )
    path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
    with writing_file(path, WRITE_ADVICE) as staging, staging.open("wb") as file:
        file.write(content)
    return path


class ShardWriter:
    """Collects entries and publishes them as shards; what was published survives any kill.

    Use as a context manager: leaving it, also by an exception, publishes what is still held.

    Args:
        folder: where shards lie; made if missing.
        kind: what all shards of the folder have in common.
        arithmetic: what the encoders compute in.
        max_frames: publish when this many frames are held.
        max_age_sec: publish when the oldest entry was held for so long; the most that a kill can cost.
    """

    def __init__(self, folder: Path, kind: StoreKind, arithmetic: str, *, max_frames: int, max_age_sec: float) -> None:
        self._folder = folder
        self._kind = kind
        self._arithmetic = arithmetic
        self._max_frames = max_frames
        self._max_age_sec = max_age_sec
        self._held: dict[Part, list[tuple[str, Floats]]] = {}
        self._held_frames = 0
        self._oldest_sec = 0.0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.publish()

    def add(self, key: str, latents: Latents) -> None:
        """Take a segment's latents, both parts; as `add_part`."""
        self.add_part(Part.ACOUSTIC, key, latents.acoustic_FC)
        if latents.semantic_FS is not None:
            self.add_part(Part.SEMANTIC, key, latents.semantic_FS)

    def add_part(self, part: Part, key: str, frames_FD: Floats) -> None:
        """Take what one encoder made of a segment; may publish.

        Raises:
            WriteError: the shard cannot be written, for instance because the disk is full.
        """
        if not self._held:
            self._oldest_sec = time.monotonic()
        self._held.setdefault(part, []).append((key, frames_FD))
        self._held_frames += len(frames_FD)
        if self._held_frames >= self._max_frames or time.monotonic() - self._oldest_sec >= self._max_age_sec:
            self.publish()

    def publish(self) -> None:
        """Write what is held, a shard for each part. After a failure the entries are gone, the folder is as before.

        Raises:
            WriteError: the shard cannot be written, for instance because the disk is full.
        """
        held, self._held, self._held_frames = self._held, {}, 0
        for part, entries in held.items():
            write_shard(self._folder, self._kind, part, self._arithmetic, entries)
