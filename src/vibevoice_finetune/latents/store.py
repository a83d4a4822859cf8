"""The latent store: audio that was encoded once and is read from then on.

The folder of an encoder is named after its fingerprint, so another encoder finds nothing. What the arithmetic was
(`latents/arithmetic.py`) stands in each shard and makes no difference: tf32 and float32 agree well enough to serve each
other. `latents/fill.py` fills the store, `data/dataset.py` reads it, `latents/shards.py` has the file format.

    LATENTS_DIR/digests-….bin                        digests of audio files, for all encoders
    LATENTS_DIR/<fingerprint>/<unique>.safetensors   the shards, each with acoustic latents or semantic features

Any number of processes may write into one folder at once, and replace shards by others with the same entries. A reader
sees what was there when it last called `reload`, and reloads by itself when a shard is no longer there.

Shapes: F frames, C acoustic dim, S semantic dim.
"""

import logging
import re
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.errors import DataError
from vibevoice_finetune.files.atomic import STAGING_SUFFIX
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.segments import CutNumber, RandomCut, Segment, make_key
from vibevoice_finetune.latents.shards import (
    BAD_SUFFIX,
    FULL_SHARD_FRAMES,
    KEY_TYPE,
    SUFFIX,
    DamagedEntryError,
    Floats,
    ForeignShardError,
    Keys,
    Latents,
    Part,
    Shard,
    ShardError,
    ShardWriter,
    StoreKind,
    read_frames,
    read_shard,
    write_shard,
)

__all__ = ["CutNumber", "Keys", "LatentStore", "Latents", "Part", "RandomCut", "Segment", "make_key"]

logger = logging.getLogger(__name__)

LEFTOVER_AGE_SEC = 3600.0
"""Age at which a staging file is taken for the rest of a killed writer; writing one takes seconds."""

READ_ATTEMPTS = 3
"""A shard that is gone was merged into another one, which is gone again only if that happened twice in a second."""


class _Places:
    """Where each key of one part lies; one row per key, sorted by key.

    Arrays rather than a dictionary: 50 bytes an entry instead of 300.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        keys = np.concatenate([np.zeros(0, dtype=KEY_TYPE), *(shard.keys for shard in shards)])
        # Of equal keys, written by two jobs at once, the first is taken: the same one in every process.
        self.keys: Keys
        self.keys, chosen = np.unique(keys, return_index=True)
        self.paths = [shard.path for shard in shards]
        lengths = [len(shard) for shard in shards]
        self.shard = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)[chosen]
        self.frames = _joined([shard.frames for shard in shards], np.int32)[chosen]
        self.crc32 = _joined([shard.crc32 for shard in shards], np.uint32)[chosen]
        self.position = _joined([shard.position for shard in shards], np.int64)[chosen]

    def find(self, key: str) -> int | None:
        wanted = key.encode()
        place = int(self.keys.searchsorted(wanted))
        return place if place < len(self.keys) and self.keys[place] == wanted else None

    def find_all(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        places = self.keys.searchsorted(keys)
        found = places < len(self.keys)
        found[found] = self.keys[places[found]] == keys[found]
        return places, found


class LatentStore:
    """Reads the shards of one encoder pair; knows keys.

    Forked DataLoader workers share the index. Pickled into a spawned worker, it opens the folder anew.

    Args:
        folder: what the user calls `--latents_dir`; nothing is written here before the store is filled.
        fingerprint: of the encoders: weights and configuration.
        acoustic_dim: C.
        semantic_dim: S.
    """

    def __init__(self, folder: Path, fingerprint: str, acoustic_dim: int, semantic_dim: int) -> None:
        assert re.fullmatch(r"[0-9A-Za-z_-]{1,128}", fingerprint), f"{fingerprint!r} cannot be a folder's name"
        self.folder = folder
        self.kind = StoreKind(fingerprint, acoustic_dim, semantic_dim)
        self.shard_folder = folder / fingerprint
        self.digests = DigestCache(folder)
        self._listed: list[Path] | None = None
        self._unusable: dict[Path, str] = {}
        self._damaged: set[Path] = set()
        self.reload()

    def __reduce__(self) -> tuple[type["LatentStore"], tuple[Path, str, int, int]]:
        return LatentStore, (self.folder, self.kind.fingerprint, self.kind.acoustic_dim, self.kind.semantic_dim)

    def key(self, segment: Segment) -> str:
        """The segment's key, 32 hexadecimal digits. The first call for an audio source may read all of it.

        Raises:
            DataError: the audio file cannot be read.
        """
        return make_key(self.digests.digest(segment.source), segment)

    def __len__(self) -> int:
        return len(self._places[Part.ACOUSTIC].keys)

    def __contains__(self, key: str) -> bool:
        return self._places[Part.ACOUSTIC].find(key) is not None

    def missing(self, keys: Keys, part: Part) -> NDArray[np.bool_]:
        """For each of many keys, whether this part of it has to be encoded."""
        _, found = self._places[part].find_all(keys)
        return ~found

    def num_frames(self, key: str) -> int:
        """F of a stored key, without reading its frames.

        Raises:
            KeyError: the key is not stored.
        """
        places = self._places[Part.ACOUSTIC]
        place = places.find(key)
        if place is None:
            raise KeyError(key)
        return int(places.frames[place])

    def total_frames(self, keys: Keys) -> int:
        """Sum of F over those of the keys that are stored."""
        places = self._places[Part.ACOUSTIC]
        at, found = places.find_all(keys)
        return int(places.frames[at[found]].sum())

    def read(self, key: str) -> Latents:
        """The frames of a stored key, (F, C) and (F, S), as arrays of the caller's own.

        Raises:
            KeyError: the key is not stored.
            DataError: the frames on disk have been damaged or removed since the store was filled.
        """
        acoustic_FC = self._read(Part.ACOUSTIC, key)
        if acoustic_FC is None:
            raise KeyError(key)
        semantic_FS = self._read(Part.SEMANTIC, key)
        return Latents(acoustic_FC, semantic_FS)

    def _read(self, part: Part, key: str) -> Floats | None:
        for _ in range(READ_ATTEMPTS):
            places = self._places[part]
            place = places.find(key)
            if place is None:
                return None
            path = places.paths[places.shard[place]]
            shape = int(places.frames[place]), self.kind.dim(part)
            try:
                with path.open("rb", buffering=0) as file:
                    return read_frames(file, path, int(places.position[place]), shape, int(places.crc32[place]))
            except FileNotFoundError:  # another process has merged it with others
                self.reload()
            except DamagedEntryError as error:
                raise DataError(
                    f"{error}: the file was damaged after it was checked at the start; start the same command again, "
                    "what is damaged is encoded again."
                ) from error
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({error.strerror or error}); check the disk and the permissions, then "
                    "start the same command again."
                ) from error
        raise DataError(
            f"{path}: is no longer there; nothing else may remove files from --latents_dir during a run; start the "
            "same command again, what is missing is encoded again."
        )

    def reload(self) -> None:
        """Look at the folder again: read the index of every shard, unless the list of files is what it was.

        Where another process replaces shards meanwhile, the list is of another moment than the reading. Then it is
        made again, since what replaces a shard is there before the shard goes.
        """
        while True:
            paths = sorted(self.shard_folder.glob(f"*{SUFFIX}"))
            if paths == self._listed:
                return
            shards: dict[Part, list[Shard]] = {part: [] for part in Part}
            try:
                for path in paths:
                    shard = self._open(path)
                    if shard is not None:
                        shards[shard.part].append(shard)
            except FileNotFoundError:
                continue
            self._places = {part: _Places(found) for part, found in shards.items()}
            self._listed = paths
            return

    def _open(self, path: Path) -> Shard | None:
        """The shard, or None if it cannot be used, which is said once.

        Raises:
            FileNotFoundError: it is no longer there.
        """
        if path in self._unusable:
            return None
        try:
            return read_shard(path, self.kind)
        except ShardError as error:
            self._unusable[path] = str(error)
            damaged = not isinstance(error, ForeignShardError)
            if damaged:
                self._damaged.add(path)
            logger.warning("%s: %snot used: %s", path, "damaged, " if damaged else "", error)
            return None

    def writer(
        self, arithmetic: str = "float32", *, max_frames: int = FULL_SHARD_FRAMES, max_age_sec: float = 60.0
    ) -> ShardWriter:
        """A writer into this store's folder; what it publishes is seen after `reload`."""
        return ShardWriter(self.shard_folder, self.kind, arithmetic, max_frames=max_frames, max_age_sec=max_age_sec)

    def check(self, keys: Keys, index: int = 0, count: int = 1) -> Iterator[tuple[int, int]]:
        """Compare the frames of stored keys with their checksums, shard by shard, and repair the folder.

        A shard with a damaged entry is replaced by one with its good entries; call `reload` afterwards, and the
        damaged ones are missing. Several processes share the work by giving different numbers.

        Args:
            keys: what will be read; entries of other keys are not looked at.
            index: which part of the shards, 0 … count - 1.
            count: into how many parts the shards are divided.

        Yields:
            For each shard, how many of its entries were checked and how many of all were damaged.

        Raises:
            WriteError: a shard with the good entries cannot be written.
        """
        for part, places in self._places.items():
            at, found = places.find_all(keys)
            at = np.unique(at[found])
            at = at[np.lexsort((places.position[at], places.shard[at]))]  # in the order in which the disk has them
            ends = np.searchsorted(places.shard[at], np.arange(len(places.paths)), side="right")
            for number, path in enumerate(places.paths):
                if zlib.crc32(path.name.encode()) % count != index:  # processes may see different lists of shards
                    continue
                wanted = at[ends[number - 1] if number else 0 : ends[number]]
                if len(wanted) and self._is_damaged(part, path, wanted):
                    yield len(wanted), self._set_aside(path)
                else:
                    yield len(wanted), 0

    def _is_damaged(self, part: Part, path: Path, wanted: NDArray[np.int64]) -> bool:
        places, dim = self._places[part], self.kind.dim(part)
        try:
            with path.open("rb", buffering=0) as file:
                for place in wanted.tolist():
                    shape = int(places.frames[place]), dim
                    read_frames(file, path, int(places.position[place]), shape, int(places.crc32[place]))
        except FileNotFoundError:  # merged by another process; the caller reloads
            return False
        except DamagedEntryError:
            return True
        except OSError as error:  # a bad sector
            logger.warning("%s: %s", path, error.strerror or error)
            return True
        return False

    def _set_aside(self, path: Path) -> int:
        """Replace a shard by one with its good entries; how many were damaged."""
        try:
            shard = read_shard(path, self.kind)
            good = shard.good_entries()
        except FileNotFoundError:  # another process was faster
            return 0
        except ShardError as error:  # cut since its index was read
            logger.warning("%s: damaged, its entries will be encoded again: %s", path, error)
            _rename_bad(path)
            places = next(places for places in self._places.values() if path in places.paths)
            return int(np.count_nonzero(places.shard == places.paths.index(path)))
        num_bad = len(shard) - len(good)
        logger.warning("%s: %d of %d entries are damaged and will be encoded again", path, num_bad, len(shard))
        if good:
            write_shard(self.shard_folder, self.kind, shard.part, shard.arithmetic, good)
        _rename_bad(path)
        return num_bad

    def clean(self) -> None:
        """Set unreadable shards aside and remove what killed writers have left. For one process at a time."""
        for path in self._damaged:
            _rename_bad(path)
            logger.warning("%s: set aside as %s: %s", path.name, path.name + BAD_SUFFIX, self._unusable[path])
        self._damaged = set()
        for folder in (self.folder, self.shard_folder):
            for staging in folder.glob(f".*{STAGING_SUFFIX}"):
                try:
                    if time.time() - staging.stat().st_mtime > LEFTOVER_AGE_SEC:
                        staging.unlink()
                except OSError:  # gone already, or a folder that only its owner may write to: it does no harm
                    continue


def _joined(arrays: Sequence[NDArray[np.generic]], kind: type[np.generic]) -> NDArray[np.generic]:
    return np.concatenate([np.zeros(0, dtype=kind), *(array.astype(kind) for array in arrays)])


def _rename_bad(path: Path) -> None:
    """Another process may have done it already, and a store that cannot be written to stays as it is."""
    try:
        path.rename(path.with_name(path.name + BAD_SUFFIX))
    except OSError:
        return
