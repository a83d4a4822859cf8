"""From sources to waveforms ready for an encoder, in threads that keep ahead of it.

In come groups of segments that share a source; each source is decoded once, then cut, normalised and padded for every
segment. Out come windows: lists of waveforms whose audio adds up to about the same length each, small enough to hold
two in memory, large enough to be sorted into batches of equal lengths. Decoding (libsndfile) and resampling (soxr)
release Python's lock: two threads are twice as fast as one, and faster than two processes, which have to hand the
waveforms over (measured, `benchmarks/decode_ahead.py`).

A file may be replaced between hashing and decoding. Its latents would then stand in the store under the digest of other
audio, for good. So its digest is taken once more after it was decoded, without reading it if its stamp is the same:
only if that has not changed was the audio that was decoded the audio that the key names.

Shapes: N samples, a multiple of the encoder's hop.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import (
    SAMPLING_RATE_HZ,
    AudioError,
    AudioSource,
    load_audio,
    normalize_rms,
    pad_to_frames,
)
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.segments import Segment


@dataclass(frozen=True, eq=False)
class SourceWork:
    """One source and everything that is to be encoded of it.

    Attributes:
        source: the audio.
        digest: of the audio, as the keys were made with it.
        segments: the segments with their numbers in the request.
    """

    source: AudioSource
    digest: str
    segments: tuple[tuple[int, Segment], ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the segments."""
        return tuple(number for number, _ in self.segments)


@dataclass(frozen=True, eq=False)
class Clip:
    """A segment as an encoder takes it.

    Attributes:
        number: of the segment in the request.
        waveform_N: float32 at 24 kHz, zero-padded to whole frames.
    """

    number: int
    waveform_N: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class DecodedSource:
    """What became of one source: its clips, or the error that concerns them all, or the news that it has changed."""

    work: SourceWork
    clips: tuple[Clip, ...] = ()
    error: AudioError | None = None
    changed: bool = False

    @property
    def num_samples(self) -> int:
        """Samples of all clips together."""
        return sum(len(clip.waveform_N) for clip in self.clips)


def decode_source(work: SourceWork, hop_length: int, digests: DigestCache) -> DecodedSource:
    """Load a source and make the waveforms of its segments: cut, then normalise, then pad to whole frames."""
    samples, error = None, None
    try:
        samples = load_audio(work.source)
        if len(samples) < hop_length:
            error = _too_short(work.source, len(samples), hop_length)
    except AudioError as found:
        error = found
    try:
        if digests.current(work.source) != work.digest:
            return DecodedSource(work, changed=True)
    except AudioError as found:
        error = error or found
    if error is not None or samples is None:
        return DecodedSource(work, error=error)
    clips = []
    for number, segment in work.segments:
        piece = samples
        if segment.cut is not None:
            start, end = segment.cut.drawn(work.digest).span(len(samples), hop_length)
            piece = samples[start:end]
        if segment.normalize:
            piece = normalize_rms(piece)
        clips.append(Clip(number, pad_to_frames(piece, hop_length)))
    return DecodedSource(work, tuple(clips))


def _too_short(source: AudioSource, num_samples: int, hop_length: int) -> AudioError:
    return AudioError(
        f"{source.label} is {num_samples / SAMPLING_RATE_HZ:.2f} s ({num_samples:,} samples at 24 kHz); at least one "
        f"frame ({hop_length / SAMPLING_RATE_HZ:.3f} s) is needed; remove the row or merge it with its neighbour.",
        "too short",
    )


def decode_ahead(
    works: Iterator[SourceWork],
    hop_length: int,
    digests: DigestCache,
    *,
    first_samples: int,
    window_samples: int,
    num_threads: int,
) -> Generator[list[DecodedSource], None, None]:
    """Decode in threads and yield windows of at least `window_samples` samples (the last one: the rest).

    The first window has `first_samples`, so that the encoder starts early, and each has twice as many as the one before
    until they are full. While a window is worked on, about one more is decoded. How many sources make a window is
    judged by the mean of those seen so far, so memory stays at about two windows plus the longest source per thread,
    whatever the lengths. Sources are taken in their order, not as they are finished, so that batches, and with them
    the last bits of the latents, do not depend on the load of the machine.
    """
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")
    pending: deque[Future[DecodedSource]] = deque()
    window: list[DecodedSource] = []
    window_total, all_total, num_decoded = 0, 0, 0
    enough = min(first_samples, window_samples)
    try:
        while True:
            ahead = num_threads
            if all_total:
                ahead = max(ahead, window_samples * num_decoded // all_total)
            while len(pending) < ahead and (work := next(works, None)) is not None:
                pending.append(pool.submit(decode_source, work, hop_length, digests))
            if window_total >= enough or (window and not pending):
                yield window
                window, window_total = [], 0
                enough = min(2 * enough, window_samples)
            if not pending:
                return
            decoded = pending.popleft().result()
            window.append(decoded)
            window_total += decoded.num_samples
            all_total += decoded.num_samples
            num_decoded += 1
    finally:
        pool.shutdown(cancel_futures=True)
