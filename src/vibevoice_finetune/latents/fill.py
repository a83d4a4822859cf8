"""Filling the latent store: only what is missing, each segment once, by one process or many.

`fill` goes through phases, and in each every process takes its part: audio is hashed to keys; what the store already
holds is compared with its checksums; what is missing is decoded in threads (`latents/read_ahead.py`), encoded in
batches (`latents/encode.py`) and written. Acoustic latents come first, semantic features in a second pass over the
audio: so only one encoder is in memory at a time, and decoding twice costs little beside encoding (1 % of it on a
processor). A kill at any moment costs what was not yet published, at most a minute; the next call finds the rest.
"""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioError, AudioSource
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.files.atomic import check_writable
from vibevoice_finetune.latents.encode import BatchLimit, SpeechEncoder, StartedBatch, make_batches, start_within_memory
from vibevoice_finetune.latents.hashing import Asked, hash_all
from vibevoice_finetune.latents.merge import merge_small_shards
from vibevoice_finetune.latents.processes import Failed, Processes, Step, Together
from vibevoice_finetune.latents.progress import FillProgress
from vibevoice_finetune.latents.read_ahead import SourceWork, decode_ahead
from vibevoice_finetune.latents.segments import Segment
from vibevoice_finetune.latents.shards import KEY_TYPE, Keys, Part, ShardWriter
from vibevoice_finetune.latents.store import LatentStore

__all__ = ["FillReport", "Processes", "fill"]

BATCH_SEC = 60.0
"""Audio in one batch, padding included. At full size an encoder takes 36 MB per second of it in float32 (measured); on
a processor it takes a batch in pieces (`base_model/load.py`)."""

BATCHES_PER_WINDOW = 8
"""Clips are sorted by length within a window of this many batches, so that little is padding."""

MOST_THREADS = 8
MOST_ROUNDS = 3
"""How often audio that changes while it is read is read again."""

VISIBLE_WITHIN_SEC = 90.0
"""How long a network file system may take to show one machine the files of another; 60 s is the longest usual."""

MERGED_WITHIN_SEC = 5.0
"""How long a process that is alone looks again: a folder that is listed while another job merges its shards may show
neither a shard nor what replaces it."""


@dataclass(frozen=True, eq=False)
class FillReport:
    """What filling came to, the same in every process.

    Attributes:
        keys: the key of every segment asked for, in order, as bytes; empty where the audio could not even be read.
        failed: by number of the segment, why it is not in the store. Every other segment is.
        encoded: different segments encoded now, by all processes.
        reused: different segments that the store already held.
        damaged: entries found damaged; those still needed are among the encoded.
        audio_sec: audio of what was encoded now, in whole frames.
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
        """Seconds of audio encoded per second."""
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
    processes: Processes | None = None,
    batch_sec: float = BATCH_SEC,
    num_threads: int | None = None,
    max_age_sec: float = 60.0,
) -> FillReport:
    """Encode what the store does not hold yet, and check what it does.

    Any number of other processes may fill the same folder at the same time; what two of them lack at once is encoded
    twice, and one copy is used.

    Args:
        store: may be empty; knows all segments but the failed ones afterwards. It belongs to these encoders.
        segments: the same in every process. They are looked at one by one, so a sequence that builds them when asked
            keeps memory small.
        encoder: both speech encoders; all that is missing of one is asked for before the first of the other.
        on_failure: told of every source that cannot be encoded and its reason, once per source and in every process;
            what it raises ends the filling. `BadRows.report` fits.
        processes: this process among those that fill together; None if it is alone.
        batch_sec: audio in one batch, padding included; a longer clip makes a batch of its own.
        num_threads: threads that hash and decode; None for `decoding_threads`.
        max_age_sec: the most work, in seconds, that a kill can cost.

    Raises:
        UserError: shards cannot be written, or what other machines wrote does not show here.
        DataError: what `on_failure` raises.
    """
    started_sec = time.monotonic()
    processes = processes or Processes()
    threads = num_threads or decoding_threads()
    if processes.index == 0:
        store.clean()
    with FillProgress(shown=processes.index == 0) as progress:
        together = Together(processes, on_failure, progress, store.folder)
        filling = _Filling(store, segments, encoder, together, batch_sec, threads, max_age_sec)
        damaged, lacking = 0, np.zeros(0, dtype=KEY_TYPE)
        for _ in range(MOST_ROUNDS):
            asked, found = filling.look()
            damaged += found
            lacking = np.union1d(lacking, asked.keys[filling.missing(asked)])
            changed = filling.encode(asked)
            if not changed.any():
                break
            for number in np.flatnonzero(changed).tolist():
                store.digests.forget(segments[number].source)
        together.report(_unsteady(segments, changed))
        failed = asked.with_duplicates(together.failures)
        filling.finish(asked, failed, merge=len(lacking) > 0)
    encoded = lacking[~store.missing(lacking, Part.ACOUSTIC)]
    return FillReport(
        keys=asked.keys,
        failed=failed,
        encoded=len(encoded),
        reused=len(np.setdiff1d(asked.keys[asked.keys != b""], lacking)),
        damaged=damaged,
        audio_sec=store.total_frames(encoded) * encoder.hop_length / SAMPLING_RATE_HZ,
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
class _Filling:
    """What stays the same during a call of `fill`."""

    store: LatentStore
    segments: Sequence[Segment]
    encoder: SpeechEncoder
    together: Together
    batch_sec: float
    num_threads: int
    max_age_sec: float

    @property
    def processes(self) -> Processes:
        return self.together.processes

    def look(self) -> tuple[Asked, int]:
        """Hash all audio and check what is stored; how many entries are damaged."""
        asked = hash_all(self.store, self.segments, self.together, self.num_threads)
        self.store.reload()
        damaged = self.together.run("checking latents", len(self.store), self._check_steps(asked.keys)).damaged
        self.store.reload()
        return asked, damaged

    def missing(self, asked: Asked) -> NDArray[np.bool_]:
        """Whether anything of a segment has to be encoded."""
        return asked.missing(self.store, Part.ACOUSTIC) | asked.missing(self.store, Part.SEMANTIC)

    def encode(self, asked: Asked) -> NDArray[np.bool_]:
        """Encode what is missing, one part after the other; whether a segment's audio has changed since."""
        changed = np.zeros(len(asked.keys), dtype=np.bool_)
        for part in Part:
            missing = asked.missing(self.store, part) & ~changed
            missing[list(asked.with_duplicates(self.together.failures))] = False
            work = asked.work(missing, self.processes)
            steps = self._encode_steps(part, asked, work)
            numbers = self.together.run(f"encoding {part} latents", sum(map(len, work)), steps).changed
            changed |= np.isin(asked.digests, asked.digests[list(numbers)])
        return changed

    def finish(self, asked: Asked, failed: dict[int, AudioError], *, merge: bool) -> None:
        """Merge what was written in small pieces, then wait until every process sees everything."""
        self.together.run("merging small files", 1, self._merge_steps(merge=merge))
        self.together.run("opening what was written", 1, self._wait_steps(asked, failed))

    def _check_steps(self, keys: Keys) -> Generator[Step, None, None]:
        for checked, damaged in self.store.check(keys[keys != b""], self.processes.index, self.processes.count):
            yield Step(done=checked, damaged=damaged)

    def _encode_steps(self, part: Part, asked: Asked, work: list[list[int]]) -> Generator[Step, None, None]:
        """Decode, encode and write this process's share; a step per batch."""
        if not work:
            return
        check_writable(self.store.shard_folder, "--latents_dir")
        limit = BatchLimit(int(self.batch_sec * SAMPLING_RATE_HZ))
        works = (
            SourceWork(
                self.segments[numbers[0]].source,
                asked.digests[numbers[0]].decode(),
                tuple((number, self.segments[number]) for number in numbers),
            )
            for numbers in work
        )
        windows = decode_ahead(
            works,
            self.encoder.hop_length,
            self.store.digests,
            first_samples=limit.samples,
            window_samples=limit.samples * BATCHES_PER_WINDOW,
            num_threads=self.num_threads,
        )
        started: list[StartedBatch] = []
        writer = self.store.writer(str(self.encoder.arithmetic), max_age_sec=self.max_age_sec)
        with writer, closing(windows):
            for window in windows:
                for decoded in window:
                    numbers = decoded.work.numbers
                    if decoded.changed:
                        yield Step(done=len(numbers), changed=numbers)
                    elif decoded.error is not None:
                        yield Step(done=len(numbers), failures=(Failed(numbers, decoded.error),))
                for batch in make_batches([clip for decoded in window for clip in decoded.clips], limit):
                    before, started = started, start_within_memory(self.encoder, part, batch, limit)
                    if started[0].copied is None:  # on the CPU there is nothing to wait for: write it at once
                        before, started = before + started, []
                    for one in before:  # while the device computes the batches just started
                        yield self._write(part, one, asked, writer)
            for one in started:
                yield self._write(part, one, asked, writer)

    def _write(self, part: Part, batch: StartedBatch, asked: Asked, writer: ShardWriter) -> Step:
        failures = []
        audio_samples = 0
        for clip, latents_FD in zip(batch.clips, batch.results(), strict=True):
            if np.isfinite(latents_FD).all():
                writer.add_part(part, asked.keys[clip.number].decode(), latents_FD)
                audio_samples += len(clip.waveform_N)
            else:
                failures.append(Failed((clip.number,), _not_finite(self.segments[clip.number].source)))
        return Step(done=len(batch.clips), audio_sec=audio_samples / SAMPLING_RATE_HZ, failures=tuple(failures))

    def _merge_steps(self, *, merge: bool) -> Generator[Step, None, None]:
        if merge and self.processes.index == 0:
            merge_small_shards(self.store)
        yield Step(done=1)

    def _wait_steps(self, asked: Asked, failed: dict[int, AudioError]) -> Generator[Step, None, None]:
        """Look at the folder until everything is there: a network file system shows others' files late."""
        needed = asked.keys != b""
        needed[list(failed)] = False
        deadline_sec = time.monotonic() + (VISIBLE_WITHIN_SEC if self.processes.count > 1 else MERGED_WITHIN_SEC)
        while True:
            self.store.reload()
            num_missing = int((self.missing(asked) & needed).sum())
            if not num_missing:
                yield Step(done=1)
                return
            if time.monotonic() > deadline_sec:
                raise UserError(
                    f"{self.store.shard_folder}: {num_missing:,} segments that were just encoded are not there; "
                    "--latents_dir must be one folder that all machines share, and nothing else may remove files from "
                    "it."
                )
            time.sleep(1.0)
            yield Step()


def _unsteady(segments: Sequence[Segment], changed: NDArray[np.bool_]) -> tuple[Failed, ...]:
    """What to say of audio that was another one each time it was read."""
    by_source: dict[AudioSource, list[int]] = {}
    for number in np.flatnonzero(changed).tolist():
        by_source.setdefault(segments[number].source, []).append(number)
    return tuple(
        Failed(
            tuple(numbers),
            AudioError(
                f"{source.label} keeps changing while it is read; wait until whatever writes it is done, then start "
                "the same command again.",
                "changing audio",
            ),
        )
        for source, numbers in by_source.items()
    )


def _not_finite(source: AudioSource) -> AudioError:
    message = (
        f"{source.label}: the speech encoder returned values that are not finite; listen to this audio, and remove the "
        "row if it is broken. If it happens to many rows, the checkpoint's encoders are damaged."
    )
    return AudioError(message, "not encodable")
