"""Filling the latent store: only what is missing, each segment once, by one process or many.

`fill` goes through three phases, and in each every process takes its part: audio is hashed to keys; what the store
already holds is compared with its checksums; what is missing is decoded in threads (`latents/read_ahead.py`), encoded
in batches (`latents/encode.py`) and written. A kill at any moment costs what was not yet published, at most a minute;
the next call finds the rest in the store.
"""

import os
import time
import zlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioError, AudioSource
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents.encode import BatchLimit, SpeechEncoder, StartedBatch, make_batches, start_within_memory
from vibevoice_finetune.latents.processes import Failed, Ranks, Step, Together
from vibevoice_finetune.latents.progress import FillProgress
from vibevoice_finetune.latents.read_ahead import SourceWork, prepare_ahead
from vibevoice_finetune.latents.shards import KEY_TYPE, Latents, ShardWriter
from vibevoice_finetune.latents.store import Keys, LatentStore, Segment, make_key

__all__ = ["FillReport", "Ranks", "fill"]

BATCH_SEC = 60.0
"""Audio in one batch, padding included. At full size the encoders take 36 MB a second of it in float32 (measured)."""

BATCHES_A_WINDOW = 8
"""Clips are sorted by length within a window of so many batches, so that few samples are padding."""

HASH_AT_ONCE = 64
MOST_THREADS = 8
SAVE_DIGESTS_EVERY_SEC = 60.0
VISIBLE_WITHIN_SEC = 90.0
"""How long a network file system may take to show one machine the files of another; 60 s is the longest usual."""


@dataclass(frozen=True, eq=False)
class FillReport:
    """What filling came to, the same in every process.

    Attributes:
        keys: the key of every segment asked for, in order, as bytes; empty where the audio could not even be read.
        failed: by number of the segment, why it is not in the store. Every other segment is.
        encoded: different segments encoded now, by all processes.
        reused: different segments that the store already held.
        damaged: entries found damaged; those still needed are among the encoded.
        audio_sec: audio encoded now, in whole frames.
        seconds: time it took, everything included.
    """

    keys: Keys
    failed: dict[int, AudioError]
    encoded: int
    reused: int
    damaged: int
    audio_sec: float
    seconds: float

    @property
    def rate(self) -> float:
        """Seconds of audio encoded a second."""
        return self.audio_sec / self.seconds

    def summary(self) -> str:
        """One line for the log."""
        parts = [f"latents: {self.encoded:,} segments encoded"]
        if self.encoded:
            parts[0] += (
                f" ({self.audio_sec / 3600:,.2f} h of audio in {self.seconds:,.0f} s, {self.rate:,.1f} × real time)"
            )
        parts.append(f"{self.reused:,} found in the store")
        if self.damaged:
            parts.append(f"{self.damaged:,} were damaged")
        if self.failed:
            parts.append(f"{len(self.failed):,} cannot be encoded")
        return ", ".join(parts)


def fill(
    store: LatentStore,
    segments: Sequence[Segment],
    encoder: SpeechEncoder,
    on_failure: Callable[[DataError, str], None],
    *,
    ranks: Ranks | None = None,
    batch_sec: float = BATCH_SEC,
    num_threads: int | None = None,
    max_age_sec: float = 60.0,
) -> FillReport:
    """Encode what the store does not hold yet, and check what it does.

    Any number of other processes may fill the same folder at the same time; what two of them lack at once is encoded
    twice, and one copy is used.

    Args:
        store: may be empty; knows all segments but the failed ones afterwards.
        segments: the same in every process. They are looked at one by one, so a sequence that builds them when asked
            keeps memory small.
        encoder: has the store's fingerprint.
        on_failure: told of every source that cannot be encoded and its reason, once a source and in every process;
            what it raises ends the filling. `BadRows.report` fits.
        ranks: this process among those that fill together; None for one process.
        batch_sec: audio in one batch, padding included; a longer clip makes a batch of its own.
        num_threads: threads that hash and decode; None for `decoding_threads`.
        max_age_sec: the most work, in seconds, that a kill can cost.

    Raises:
        UserError: shards cannot be written, or what other machines wrote does not show here.
        DataError: what `on_failure` raises.
    """
    assert encoder.fingerprint == store.kind.fingerprint, "the store belongs to another encoder"
    started_sec = time.monotonic()
    ranks = ranks or Ranks()
    threads = num_threads or decoding_threads()
    if ranks.rank == 0:
        store.clean()
    with FillProgress(shown=ranks.rank == 0) as progress:
        together = Together(ranks, on_failure, progress)
        asked = _hash_all(store, segments, together, threads)
        store.reload()
        checks = _check_steps(store, asked.keys, ranks)
        damaged = together.run("checking latents", len(store), checks).damaged
        store.reload()
        missing = asked.missing(store)
        mine = asked.groups(missing, ranks)
        encoding = _encode_steps(store, segments, asked, mine, encoder, batch_sec, threads, max_age_sec)
        total = together.run("encoding latents", len(missing), encoding)
        failed = asked.with_duplicates(together.failures)
        together.run("opening what was written", 1, _wait_steps(store, asked, failed, ranks))
    num_different = len(np.unique(asked.keys[asked.keys != b""]))
    return FillReport(
        keys=asked.keys,
        failed=failed,
        encoded=total.encoded,
        reused=num_different - len(missing),
        damaged=damaged,
        audio_sec=total.audio_sec,
        seconds=time.monotonic() - started_sec,
    )


def decoding_threads() -> int:
    """This process's share of the cores that it may run on, at most eight.

    A GPU that encodes 500 times as fast as real time is fed by one or two (`benchmarks/decode_ahead.py`).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(MOST_THREADS, max(1, cores // processes_here))


@dataclass(frozen=True, eq=False)
class _Asked:
    """All segments asked for, as arrays: 100 bytes each, where objects would take a kilobyte.

    Attributes:
        keys: of the segments; empty where the source could not be hashed.
        digests: of their sources.
        semantic: whether semantic features are needed.
    """

    keys: Keys
    digests: NDArray[np.bytes_]
    semantic: NDArray[np.bool_]

    def missing(self, store: LatentStore) -> NDArray[np.int64]:
        """Numbers of the segments to encode, one a key, in order; of equal keys one that needs semantic features."""
        numbers = np.flatnonzero((self.keys != b"") & store.missing(self.keys, self.semantic))
        numbers = numbers[np.lexsort((~self.semantic[numbers], self.keys[numbers]))]
        _, first = np.unique(self.keys[numbers], return_index=True)
        return np.sort(numbers[first])

    def groups(self, missing: NDArray[np.int64], ranks: Ranks) -> list[list[int]]:
        """The part of `missing` that this process encodes, put together by source, so that each is decoded once."""
        by_source: dict[bytes, list[int]] = {}
        for number in missing:
            digest = bytes(self.digests[number])
            if zlib.crc32(digest) % ranks.world_size == ranks.rank:
                by_source.setdefault(digest, []).append(int(number))
        return list(by_source.values())

    def with_duplicates(self, failures: dict[int, AudioError]) -> dict[int, AudioError]:
        """Failures of all segments, from those of the ones that stood for their key."""
        by_key = {bytes(self.keys[number]): failure for number, failure in failures.items() if self.keys[number]}
        failed = dict(failures)
        for number in np.flatnonzero(np.isin(self.keys, np.array(list(by_key), dtype=KEY_TYPE))):
            failed[int(number)] = by_key[bytes(self.keys[number])]
        return dict(sorted(failed.items()))


def _hash_all(store: LatentStore, segments: Sequence[Segment], together: Together, num_threads: int) -> _Asked:
    """Keys of all segments; each process hashes a block of them, then the blocks are put together."""
    ranks = together.ranks
    borders = [len(segments) * rank // ranks.world_size for rank in range(ranks.world_size + 1)]
    block = range(borders[ranks.rank], borders[ranks.rank + 1])
    hashed = _Hashed()
    together.run("hashing audio", len(segments), _hash_steps(store, segments, block, hashed, num_threads))
    parts = ranks.gather(hashed.arrays())
    asked = _Asked(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    for number in (*range(block.start), *range(block.stop, len(segments))):
        if asked.digests[number]:
            store.digests.remember(segments[number].source, asked.digests[number].decode())
    return asked


@dataclass(eq=False)
class _Hashed:
    """What hashing a block of segments has found so far, in their order."""

    keys: list[bytes] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    semantic: list[bool] = field(default_factory=list)

    def add(self, segment: Segment, digest: str | AudioError) -> None:
        self.keys.append(b"" if isinstance(digest, AudioError) else make_key(digest, segment).encode())
        self.digests.append(b"" if isinstance(digest, AudioError) else digest.encode())
        self.semantic.append(segment.semantic)

    def arrays(self) -> tuple[Keys, NDArray[np.bytes_], NDArray[np.bool_]]:
        """In the order of `_Asked`'s fields."""
        return (
            np.array(self.keys, dtype=KEY_TYPE),
            np.array(self.digests, dtype=np.bytes_),
            np.array(self.semantic, dtype=np.bool_),
        )


def _hash_steps(
    store: LatentStore, segments: Sequence[Segment], block: range, hashed: _Hashed, num_threads: int
) -> Generator[Step, None, None]:
    def digest(source: AudioSource) -> str | AudioError:
        try:
            return store.digests.digest(source)
        except AudioError as error:
            return error

    saved_sec = time.monotonic()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="hash") as pool:
        for first in range(block.start, block.stop, HASH_AT_ONCE):
            chunk = [(number, segments[number]) for number in range(first, min(first + HASH_AT_ONCE, block.stop))]
            sources = list(dict.fromkeys(segment.source for _, segment in chunk))
            found = dict(zip(sources, pool.map(digest, sources), strict=True))
            for _, segment in chunk:
                hashed.add(segment, found[segment.source])
            failures = tuple(
                Failed(tuple(number for number, segment in chunk if segment.source is source), error)
                for source, error in found.items()
                if isinstance(error, AudioError)
            )
            if time.monotonic() - saved_sec > SAVE_DIGESTS_EVERY_SEC:
                store.digests.save()
                saved_sec = time.monotonic()
            yield Step(done=len(chunk), failures=failures)
    store.digests.save()


def _check_steps(store: LatentStore, keys: Keys, ranks: Ranks) -> Generator[Step, None, None]:
    for checked, damaged in store.check(keys[keys != b""], ranks.rank, ranks.world_size):
        yield Step(done=checked, damaged=damaged)


def _encode_steps(
    store: LatentStore,
    segments: Sequence[Segment],
    asked: _Asked,
    groups: list[list[int]],
    encoder: SpeechEncoder,
    batch_sec: float,
    num_threads: int,
    max_age_sec: float,
) -> Generator[Step, None, None]:
    """Decode, encode and write this process's part; a step a batch."""
    limit = BatchLimit(int(batch_sec * SAMPLING_RATE_HZ))
    works = (
        SourceWork(
            segments[numbers[0]].source,
            asked.digests[numbers[0]].decode(),
            tuple((number, segments[number]) for number in numbers),
        )
        for numbers in groups
    )
    windows = prepare_ahead(
        works,
        encoder.hop_length,
        first_samples=limit.samples,
        window_samples=limit.samples * BATCHES_A_WINDOW,
        num_threads=num_threads,
    )
    started: list[StartedBatch] = []
    with store.writer(max_age_sec=max_age_sec) as writer, closing(windows):
        for window in windows:
            for prepared in window:
                if prepared.error is not None:
                    numbers = tuple(number for number, _ in prepared.work.segments)
                    yield Step(done=len(numbers), failures=(Failed(numbers, prepared.error),))
            for batch in make_batches([clip for prepared in window for clip in prepared.clips], limit):
                before, started = started, start_within_memory(encoder, batch, limit)
                if started[0].copied is None:  # on the CPU there is nothing to wait for: write it at once
                    before, started = before + started, []
                for one in before:  # while the device computes the batches just started
                    yield _write(one, segments, asked, writer)
        for one in started:
            yield _write(one, segments, asked, writer)


def _write(batch: StartedBatch, segments: Sequence[Segment], asked: _Asked, writer: ShardWriter) -> Step:
    failures = []
    audio_samples = 0
    for clip, latents in zip(batch.clips, batch.results(), strict=True):
        if _is_finite(latents):
            writer.add(asked.keys[clip.number].decode(), latents)
            audio_samples += len(clip.waveform_N)
        else:
            failures.append(Failed((clip.number,), _not_finite(segments[clip.number].source)))
    return Step(
        done=len(batch.clips),
        encoded=len(batch.clips) - len(failures),
        audio_sec=audio_samples / SAMPLING_RATE_HZ,
        failures=tuple(failures),
    )


def _is_finite(latents: Latents) -> bool:
    parts = [latents.acoustic_FC] if latents.semantic_FS is None else [latents.acoustic_FC, latents.semantic_FS]
    return all(bool(np.isfinite(part).all()) for part in parts)


def _not_finite(source: AudioSource) -> AudioError:
    message = (
        f"{source.label}: the speech encoder returned values that are not finite; listen to this audio, and remove the "
        "row if it is broken. If it happens to many rows, the checkpoint's encoders are damaged."
    )
    return AudioError(message, "not encodable")


def _wait_steps(
    store: LatentStore, asked: _Asked, failed: dict[int, AudioError], ranks: Ranks
) -> Generator[Step, None, None]:
    """Look at the folder until everything is there: a network file system shows others' files late."""
    needed = asked.keys != b""
    needed[list(failed)] = False
    deadline_sec = time.monotonic() + (VISIBLE_WITHIN_SEC if ranks.world_size > 1 else 0.0)
    while True:
        store.reload()
        num_missing = int(store.missing(asked.keys[needed], asked.semantic[needed]).sum())
        if not num_missing:
            return
        if time.monotonic() > deadline_sec:
            raise UserError(
                f"{store.shard_folder}: {num_missing:,} segments that were just encoded are not there; --latents_dir "
                "must be one folder that all machines share, and nothing else may remove files from it."
            )
        time.sleep(1.0)
        yield Step(done=0)
