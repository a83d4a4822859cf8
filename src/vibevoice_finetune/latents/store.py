"""The latent store: audio that was encoded once and is read from then on.

A `Segment` says what is to be encoded: a clip or a random cut of it, normalised or not. Its key is a hash of the
audio's bytes, the cut and the normalisation; the encoder's fingerprint names the folder, so another encoder finds
nothing. `latents/fill.py` fills the store, `data/dataset.py` reads it: `read` returns views into memory-mapped files
and checks them against their checksum. `latents/shards.py` has the file format.

    LATENTS_DIR/digests-….tsv                      digests of audio files, for all encoders
    LATENTS_DIR/<fingerprint>/<unique>.safetensors   the shards

Any number of processes may write into one folder at once; a reader sees what was there when it last called `reload`.

Shapes: F frames, C acoustic dim, S semantic dim.
"""

import hashlib
import logging
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.shards import (
    BAD_SUFFIX,
    KEY_LENGTH,
    KEY_TYPE,
    PARTIAL_SUFFIX,
    SUFFIX,
    DamagedEntryError,
    ForeignShardError,
    Latents,
    Shard,
    ShardError,
    ShardKind,
    ShardWriter,
    write_shard,
)

__all__ = ["CutNumber", "LatentStore", "Latents", "RandomCut", "Segment"]

logger = logging.getLogger(__name__)

PROCESSING_VERSION = 1
"""Part of every key; raise it when decoding, resampling, cutting or normalising gives other samples than before."""

LEFTOVER_AGE_SEC = 3600.0
"""Age at which a partial file is taken for the rest of a killed writer; writing one takes seconds."""

Keys = NDArray[np.bytes_]
"""Keys of segments as an array of `KEY_TYPE`; four times smaller than a list of strings."""


@dataclass(frozen=True)
class RandomCut:
    """Two draws from [0, 1) that choose a piece of a clip to serve as a voice prompt.

    Attributes:
        length_draw: chooses the length between min(5 s, a quarter of the clip) and min(15 s, a half).
        start_draw: chooses the start among all places where the piece fits.
    """

    length_draw: float
    start_draw: float

    def span(self, num_samples: int, hop_length: int) -> tuple[int, int]:
        """First sample of the piece and the one behind its last; never shorter than a frame if the clip is not.

        >>> RandomCut(length_draw=0.0, start_draw=0.5).span(num_samples=4 * 24_000, hop_length=3_200)  # 1 s of 4 s
        (36000, 60000)
        >>> RandomCut(length_draw=0.5, start_draw=0.0).span(num_samples=60 * 24_000, hop_length=3_200)  # 5 to 15 s
        (0, 240000)
        """
        shortest = min(5.0 * SAMPLING_RATE_HZ, num_samples / 4)
        longest = min(15.0 * SAMPLING_RATE_HZ, num_samples / 2)
        drawn = int(shortest + self.length_draw * (longest - shortest))
        length = min(max(drawn, hop_length), num_samples)
        start = int(self.start_draw * (num_samples - length))
        return start, start + length


@dataclass(frozen=True)
class CutNumber:
    """One of a clip's random cuts. Where it lies follows from what the clip holds, not from where its row stands.

    So a file of rows and any piece of it cut the same voice prompts, and find each other's in the store.

    Attributes:
        seed: of the run.
        number: of the cut among those of its clip.
    """

    seed: int
    number: int

    def drawn(self, digest: str) -> RandomCut:
        """The cut of the audio with this digest: 64 bits of a hash a draw, of which a float64 holds 53."""
        text = f"cut {self.seed} {self.number} {digest}"
        bits = hashlib.blake2b(text.encode(), digest_size=16).digest()
        length, start = (int.from_bytes(half, "little") >> 11 for half in (bits[:8], bits[8:]))
        return RandomCut(length * 2.0**-53, start * 2.0**-53)


@dataclass(frozen=True, eq=False)
class Segment:
    """One thing to encode.

    Attributes:
        source: the audio.
        normalize: bring what is encoded to −25 dBFS.
        cut: which of the audio's random cuts; None for all of it.
        semantic: whether semantic features are needed (targets) or not (voice prompts). Not part of the key: an entry
            that has them serves both.
    """

    source: AudioSource
    normalize: bool
    cut: CutNumber | None
    semantic: bool


class LatentStore:
    """Reads the shards of one encoder; knows keys.

    Forked DataLoader workers share its maps. Pickled into a spawned worker, it opens the folder anew.

    Args:
        folder: what the user calls `--latents_dir`; nothing is written here before the store is filled.
        fingerprint: of the encoder, including whatever changes its numbers (weights, dtype).
        acoustic_dim: C.
        semantic_dim: S.
    """

    def __init__(self, folder: Path, fingerprint: str, acoustic_dim: int, semantic_dim: int) -> None:
        assert re.fullmatch(r"[0-9A-Za-z_-]{1,128}", fingerprint), f"{fingerprint!r} cannot be a folder's name"
        self.folder = folder
        self.kind = ShardKind(fingerprint, acoustic_dim, semantic_dim)
        self.shard_folder = folder / fingerprint
        self.digests = DigestCache(folder)
        self._shards: dict[Path, Shard] = {}
        self._unreadable: dict[Path, str] = {}
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
        return len(self._keys)

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def holds(self, key: str, *, semantic: bool) -> bool:
        """Whether the key is stored, with semantic features if they are needed."""
        place = self._find(key)
        return place is not None and (not semantic or bool(self._with_semantic[place]))

    def missing(self, keys: Keys, needs_semantic: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each of many keys, whether it has to be encoded; as `holds`, for all at once."""
        places, found = self._find_all(keys)
        found[found] &= ~needs_semantic[found] | self._with_semantic[places[found]]
        return ~found

    def num_frames(self, key: str) -> int:
        """F of a stored key, without reading its frames.

        Raises:
            KeyError: the key is not stored.
        """
        shard, entry = self._locate(key)
        return int(shard.frames[entry])

    def read(self, key: str) -> Latents:
        """The frames of a stored key, (F, C) and (F, S), as views into the shard's file.

        Raises:
            KeyError: the key is not stored.
            DataError: the frames on disk have been damaged since the store was filled.
        """
        shard, entry = self._locate(key)
        try:
            return shard.read(entry)
        except DamagedEntryError as error:
            raise DataError(
                f"{error}: the file was damaged after it was checked at the start; start the same command again, "
                "what is damaged is encoded again."
            ) from error

    def reload(self) -> None:
        """Look at the folder again: open shards that are new, forget those that are gone, notice unreadable ones."""
        paths = sorted(self.shard_folder.glob(f"*{SUFFIX}"))
        before = self._shards
        self._shards = {}
        self._unreadable = {path: reason for path, reason in self._unreadable.items() if path in paths}
        for path in paths:
            if path in self._unreadable:
                continue
            try:
                self._shards[path] = before[path] if path in before else Shard(path, self.kind)
            except FileNotFoundError:  # set aside by another process since the folder was listed
                continue
            except ForeignShardError as error:
                logger.warning("%s: not used: %s", path, error)
            except ShardError as error:
                self._unreadable[path] = str(error)
                logger.warning("%s: damaged, not used: %s", path, error)
        self._make_index()

    def writer(self, *, max_frames: int = 65_536, max_age_sec: float = 60.0) -> ShardWriter:
        """A writer into this store's folder; what it publishes is seen after `reload`."""
        return ShardWriter(self.shard_folder, self.kind, max_frames=max_frames, max_age_sec=max_age_sec)

    def check(self, keys: Keys, part: int = 0, num_parts: int = 1) -> Iterator[tuple[int, int]]:
        """Compare the frames of stored keys with their checksums, shard by shard, and repair the folder.

        A shard with a damaged entry is replaced by one with its good entries; call `reload` afterwards, and the
        damaged ones are missing. Several processes share the work by giving different parts.

        Args:
            keys: what will be read; entries of other keys are not looked at.
            part: which part of the shards, 0 … num_parts - 1.
            num_parts: into how many parts the shards are divided.

        Yields:
            For each shard, how many of its entries were checked and how many of all were damaged.

        Raises:
            UserError: a shard with the good entries cannot be written.
        """
        places, found = self._find_all(keys)
        places = np.unique(places[found])
        places = places[np.argsort(self._shard[places], kind="stable")]
        ends = np.searchsorted(self._shard[places], np.arange(len(self._numbered)), side="right")
        for number, shard in enumerate(self._numbered):
            if zlib.crc32(shard.path.name.encode()) % num_parts != part:  # processes may see different lists of shards
                continue
            entries = self._entry[places[ends[number - 1] if number else 0 : ends[number]]]
            damaged = any(_is_damaged(shard, int(entry)) for entry in entries)
            yield len(entries), self._set_aside(shard) if damaged else 0

    def clean(self) -> None:
        """Set unreadable shards aside and remove what killed writers have left. For one process at a time."""
        for path, reason in self._unreadable.items():
            _rename_bad(path)
            logger.warning("%s: set aside as %s: %s", path.name, path.name + BAD_SUFFIX, reason)
        self._unreadable = {}
        for folder in (self.folder, self.shard_folder):
            for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
                if time.time() - partial.stat().st_mtime > LEFTOVER_AGE_SEC:
                    partial.unlink(missing_ok=True)

    def _set_aside(self, shard: Shard) -> int:
        good = [entry for entry in range(len(shard)) if not _is_damaged(shard, entry)]
        num_bad = len(shard) - len(good)
        logger.warning("%s: %d of %d entries are damaged and will be encoded again", shard.path, num_bad, len(shard))
        if good:
            kept = [(shard.keys[entry].decode(), shard.read(entry)) for entry in good]
            write_shard(self.shard_folder, self.kind, kept)
        _rename_bad(shard.path)
        return num_bad

    def _make_index(self) -> None:
        """One row a key, sorted by key: which shard, which entry. Of equal keys one with semantic features is taken."""
        shards = list(self._shards.values())
        keys = np.concatenate([np.zeros(0, dtype=KEY_TYPE), *(shard.keys for shard in shards)])
        with_semantic = np.concatenate([np.zeros(0, dtype=bool), *(shard.with_semantic for shard in shards)])
        lengths = [len(shard) for shard in shards]
        shard_of = np.repeat(np.arange(len(shards), dtype=np.int32), lengths)
        entry_of = np.concatenate([np.zeros(0, dtype=np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])
        order = np.lexsort((~with_semantic, keys))
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = keys[order][1:] != keys[order][:-1]
        chosen = order[is_first]
        self._keys: Keys = keys[chosen]
        self._with_semantic: NDArray[np.bool_] = with_semantic[chosen]
        self._shard: NDArray[np.int32] = shard_of[chosen]
        self._entry: NDArray[np.int32] = entry_of[chosen]
        self._numbered = shards

    def _find(self, key: str) -> int | None:
        wanted = key.encode()
        place = int(self._keys.searchsorted(wanted))
        return place if place < len(self._keys) and self._keys[place] == wanted else None

    def _find_all(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        places = self._keys.searchsorted(keys)
        found = places < len(self._keys)
        found[found] = self._keys[places[found]] == keys[found]
        return places, found

    def _locate(self, key: str) -> tuple[Shard, int]:
        place = self._find(key)
        if place is None:
            raise KeyError(key)
        return self._numbered[self._shard[place]], int(self._entry[place])


def make_key(digest: str, segment: Segment) -> str:
    """The key of a segment whose audio has this digest."""
    cut = "whole"
    if segment.cut is not None:
        drawn = segment.cut.drawn(digest)
        cut = f"{drawn.length_draw.hex()} {drawn.start_draw.hex()}"
    text = f"{PROCESSING_VERSION} {digest} {'normalized' if segment.normalize else 'as it is'} {cut}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_LENGTH // 2).hexdigest()


def _is_damaged(shard: Shard, entry: int) -> bool:
    try:
        shard.read(entry)
    except DamagedEntryError:
        return True
    return False


def _rename_bad(path: Path) -> None:
    """Another process may have done it already."""
    try:
        path.rename(path.with_name(path.name + BAD_SUFFIX))
    except FileNotFoundError:
        return
