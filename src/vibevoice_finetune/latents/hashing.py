"""From audio to keys: which segment is which entry of the latent store.

In come segments, out go their keys and, of those that are missing in the store, this process's share of the work. Every
process hashes a block of the segments, then the blocks are put together, so all know all keys.
"""

import time
import zlib
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import AudioError, AudioSource
from vibevoice_finetune.files.atomic import check_writable
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.processes import Failed, Processes, Step, Together
from vibevoice_finetune.latents.segments import Segment, make_key
from vibevoice_finetune.latents.shards import KEY_TYPE, Keys, Part
from vibevoice_finetune.latents.store import LatentStore

HASH_AT_ONCE = 1024
SAVE_DIGESTS_EVERY_SEC = 60.0


@dataclass(frozen=True, eq=False)
class Asked:
    """All segments asked for, as arrays: 100 bytes each, where objects would take a kilobyte.

    Attributes:
        keys: of the segments; empty where the source could not be hashed.
        digests: of their sources.
        semantic: whether semantic features are needed.
    """

    keys: Keys
    digests: NDArray[np.bytes_]
    semantic: NDArray[np.bool_]

    def missing(self, store: LatentStore, part: Part) -> NDArray[np.bool_]:
        """Whether this part of a segment has to be encoded."""
        missing: NDArray[np.bool_] = (self.keys != b"") & store.missing(self.keys, part)
        return missing & self.semantic if part is Part.SEMANTIC else missing

    def work(self, missing: NDArray[np.bool_], processes: Processes) -> list[list[int]]:
        """This process's share of what is missing: numbers of segments, one per key, together if of one source."""
        numbers = np.flatnonzero(missing)
        _, first = np.unique(self.keys[numbers], return_index=True)
        by_source: dict[bytes, list[int]] = {}
        for number in np.sort(numbers[first]):
            digest = bytes(self.digests[number])
            if zlib.crc32(digest) % processes.count == processes.index:
                by_source.setdefault(digest, []).append(int(number))
        return list(by_source.values())

    def with_duplicates(self, failures: dict[int, AudioError]) -> dict[int, AudioError]:
        """Failures of all segments, from those of the ones that stood for their key."""
        by_key = {bytes(self.keys[number]): failure for number, failure in failures.items() if self.keys[number]}
        failed = dict(failures)
        for number in np.flatnonzero(np.isin(self.keys, np.array(list(by_key), dtype=KEY_TYPE))):
            failed[int(number)] = by_key[bytes(self.keys[number])]
        return dict(sorted(failed.items()))


def hash_all(store: LatentStore, segments: Sequence[Segment], together: Together, num_threads: int) -> Asked:
    """Keys of all segments.

    Raises:
        UserError: the store is empty and cannot be written to; better said now than after hours of hashing. A store
            that holds everything may be read-only.
        DataError: what the report of an unreadable file raises.
    """
    count, index = together.processes.count, together.processes.index
    borders = [len(segments) * number // count for number in range(count + 1)]
    block = range(borders[index], borders[index + 1])
    hashed = _Hashed.of_size(len(block))
    together.run("hashing audio", len(block), _hash_steps(store, segments, block, hashed, num_threads))
    parts = together.processes.gather((hashed.keys, hashed.digests, hashed.semantic))
    asked = Asked(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    for number in (*range(block.start), *range(block.stop, len(segments))):
        if asked.digests[number]:
            store.digests.remember(segments[number].source, asked.digests[number].decode())
    return asked


def _hash_steps(
    store: LatentStore, segments: Sequence[Segment], block: range, hashed: "_Hashed", num_threads: int
) -> Generator[Step, None, None]:
    if len(store) == 0 and len(block):
        check_writable(store.shard_folder, "--latents_dir")
    saved_sec = time.monotonic()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hash") as pool:
        for first in range(block.start, block.stop, HASH_AT_ONCE):
            numbers = range(first, min(first + HASH_AT_ONCE, block.stop))
            chunk = [segments[number] for number in numbers]
            sources = list(dict.fromkeys(segment.source for segment in chunk))
            shares = [sources[start::num_threads] for start in range(num_threads)]
            found: dict[AudioSource, str | AudioError] = {}
            for digests in pool.map(lambda share: _hash(store.digests, share), shares):
                found.update(digests)
            failures: dict[AudioSource, list[int]] = {}
            for number, segment in zip(numbers, chunk, strict=True):
                digest = found[segment.source]
                if isinstance(digest, AudioError):
                    failures.setdefault(segment.source, []).append(number)
                else:
                    hashed.set(number - block.start, segment, digest)
            if time.monotonic() - saved_sec > SAVE_DIGESTS_EVERY_SEC:
                store.digests.save()
                saved_sec = time.monotonic()
            yield Step(
                done=len(chunk),
                failures=tuple(
                    Failed(tuple(of_source), error)
                    for source, of_source in failures.items()
                    if isinstance(error := found[source], AudioError)
                ),
            )
    store.digests.save()


def _hash(digests: DigestCache, sources: Sequence[AudioSource]) -> dict[AudioSource, str | AudioError]:
    found: dict[AudioSource, str | AudioError] = {}
    for source in sources:
        try:
            found[source] = digests.digest(source)
        except AudioError as error:
            found[source] = error
    return found


@dataclass(frozen=True, eq=False)
class _Hashed:
    """What hashing a block of segments has found so far, in their order; as the fields of `Asked`."""

    keys: Keys
    digests: NDArray[np.bytes_]
    semantic: NDArray[np.bool_]

    @classmethod
    def of_size(cls, count: int) -> "_Hashed":
        return cls(np.zeros(count, KEY_TYPE), np.zeros(count, "S64"), np.zeros(count, np.bool_))

    def set(self, place: int, segment: Segment, digest: str) -> None:
        self.keys[place] = make_key(digest, segment)
        self.digests[place] = digest
        self.semantic[place] = segment.semantic
