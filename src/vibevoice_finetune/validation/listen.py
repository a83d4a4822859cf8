"""Every recording is decoded once and reduced to numbers, in threads, in bounded memory.

In come audio sources, out go `Heard`: what `audio/measure.py` and `audio/spectrum.py` say, the fingerprint, and the
decoding error if there was one. Samples are let go as soon as they are measured, so memory is that of the recordings
in flight. Decoding, resampling and the Fourier transform release Python's lock.
"""

import io
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import soundfile
from numpy.typing import NDArray

from vibevoice_finetune.audio import measure
from vibevoice_finetune.audio.decode import UNKNOWN_FRAMES
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioError, AudioSource, load_audio
from vibevoice_finetune.audio.span import SpanError
from vibevoice_finetune.audio.spectrum import bandwidth, line_contrast, power_spectrum
from vibevoice_finetune.validation.fingerprint import Fingerprint, fingerprint
from vibevoice_finetune.validation.words_and_voices import Embedding, Recogniser, SpeakerEncoder

MIN_HEARD_SEC = 0.5
"""Of less speech, neither words nor voice can be told."""

MAX_VOICE_SEC = 20
"""A voice is known by then."""

MIN_MIX_DB = -12.0
"""Two microphones of one recording lose 3 to 6 dB when mixed; where one is the other's negative, more than 12."""

MAX_ANALYSED_SEC = 600
"""Of a longer recording the first ten minutes are looked at; levels and silences are taken from all of it."""


@dataclass(frozen=True, eq=False)
class Sound:
    """What was measured of one recording. Decibels are to full scale, or to the speech where the name says so."""

    duration_sec: float
    speech_sec: float
    level_dbfs: float
    peak_dbfs: float
    leading_silence_sec: float
    trailing_silence_sec: float
    start_db: float
    end_db: float
    noise_db: float
    fall_db: float | None
    line_contrast_db: float
    bandwidth_hz: float
    clipped_share: float
    dc_offset: float
    turns_share: float
    mix_db: float
    fingerprint: Fingerprint

    @property
    def cancels(self) -> bool:
        """Whether the channels cancel each other when mixed."""
        return self.mix_db < MIN_MIX_DB


@dataclass(frozen=True)
class Ears:
    """What is listened with besides measuring: models, where they are wanted. One thread at a time uses them."""

    recogniser: Recogniser | None = None
    encoder: SpeakerEncoder | None = None
    lock: Lock = field(default_factory=Lock, compare=False)


@dataclass(frozen=True, eq=False)
class Job:
    """One recording, and whether it is a row's own audio or only a voice prompt."""

    source: AudioSource
    is_target: bool


@dataclass(frozen=True, eq=False)
class Heard:
    """One recording: what was measured, or why it could not be decoded.

    Attributes:
        source: the recording.
        sound: its numbers.
        error: why there are none.
        words: what a recogniser understood.
        voice: what a speaker encoder gave, a unit vector.
    """

    source: AudioSource
    sound: Sound | None = None
    error: AudioError | None = None
    words: str | None = None
    voice: Embedding | None = None


def listen(jobs: Iterable[Job], num_threads: int, ears: Ears) -> Iterator[Heard]:
    """Measure every recording, in order; at most two a thread are in flight."""
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="listen")
    pending: deque[Future[Heard]] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(hear, job, ears))
            if len(pending) >= 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def hear(job: Job, ears: Ears) -> Heard:
    """Decode and measure one recording."""
    try:
        samples = load_audio(job.source)
    except AudioError as error:
        return Heard(job.source, error=error)
    original, rate_hz = _original(job.source)
    sound = measured(samples, samples if original is None else original, rate_hz)
    words, voice = None, None
    if sound.speech_sec < MIN_HEARD_SEC or sound.cancels:
        return Heard(job.source, sound)
    with ears.lock:
        if ears.recogniser is not None and job.is_target:
            found = [ears.recogniser(piece, SAMPLING_RATE_HZ) for piece in pieces(samples)]
            words = " ".join(found)
        if ears.encoder is not None:
            voice = ears.encoder(samples[: MAX_VOICE_SEC * SAMPLING_RATE_HZ], SAMPLING_RATE_HZ)
    return Heard(job.source, sound, words=words, voice=voice)


def pieces(samples: NDArray[np.float32], max_sec: float = 20.0) -> list[NDArray[np.float32]]:
    """A recording cut in the middle of pauses into pieces of up to `max_sec`, for recognisers that lose the thread.

    What has no pause for longer stays whole.
    """
    segments = measure.find_speech(measure.frame_levels(samples, SAMPLING_RATE_HZ)).segments_sec
    borders = [0.0]
    for (_, end), (start, _), (_, next_end) in zip(segments, segments[1:], segments[1:], strict=False):
        if next_end - borders[-1] > max_sec:
            borders.append((end + start) / 2)
    places = [round(border * SAMPLING_RATE_HZ) for border in borders] + [len(samples)]
    return [samples[start:end] for start, end in itertools.pairwise(places)]


def measured(samples: NDArray[np.float32], original: NDArray[np.float32], original_hz: int) -> Sound:
    """All numbers about a recording.

    Args:
        samples: (N,) mono, 24 kHz.
        original: (N,) or (N, C) as the file has it: clipping and channels cannot be told after conversion.
        original_hz: its sampling rate.
    """
    levels_L = measure.frame_levels(samples - samples.mean(), SAMPLING_RATE_HZ)  # an offset is no noise
    speech = measure.find_speech(levels_L)
    start_db, end_db = measure.edge_levels(levels_L, speech.level_dbfs)
    spectrum_TB = power_spectrum(samples[: MAX_ANALYSED_SEC * SAMPLING_RATE_HZ])
    turns_share, mix_db = measure.channel_difference(original, original_hz)
    return Sound(
        duration_sec=len(samples) / SAMPLING_RATE_HZ,
        speech_sec=speech.speech_sec,
        level_dbfs=speech.level_dbfs,
        peak_dbfs=measure.peak_dbfs(original),
        leading_silence_sec=speech.leading_silence_sec,
        trailing_silence_sec=speech.trailing_silence_sec,
        start_db=start_db,
        end_db=end_db,
        noise_db=measure.noise_floor(levels_L) - speech.level_dbfs,
        fall_db=measure.steepest_fall(levels_L, speech.level_dbfs),
        line_contrast_db=line_contrast(spectrum_TB, SAMPLING_RATE_HZ),
        bandwidth_hz=bandwidth(spectrum_TB, SAMPLING_RATE_HZ),
        clipped_share=measure.clipped_share(original),
        dc_offset=measure.dc_offset(original),
        turns_share=turns_share,
        mix_db=mix_db,
        fingerprint=fingerprint(spectrum_TB),
    )


def _original(source: AudioSource) -> tuple[NDArray[np.float32] | None, int]:
    """Up to ten minutes as the file has them; None if `load_audio` gives the same, or only it can read the file."""
    if source.array is not None:
        floating = source.array.dtype.kind == "f" and source.array.ndim == 2
        if not floating or source.sampling_rate_hz is None:
            return None, SAMPLING_RATE_HZ
        start, end = _part(source, len(source.array), source.sampling_rate_hz)
        return source.array[start:end].astype(np.float32), source.sampling_rate_hz
    place = str(source.path) if source.path is not None else io.BytesIO(source.data or b"")
    try:
        with closing(soundfile.SoundFile(place)) as file:
            if file.channels == 1 and file.samplerate == SAMPLING_RATE_HZ:
                return None, SAMPLING_RATE_HZ
            start, end = _part(source, file.frames, file.samplerate)
            if start:
                file.seek(start)
            return file.read(end - start, dtype="float32"), file.samplerate
    except soundfile.LibsndfileError:
        return None, SAMPLING_RATE_HZ


def _part(source: AudioSource, num_samples: int, rate_hz: int) -> tuple[int, int]:
    """The samples that are meant and looked at; `load_audio` has found the span to lie within the audio."""
    start, end = (0, num_samples) if source.span is None else source.span.samples(num_samples, rate_hz)
    return start, min(end, start + MAX_ANALYSED_SEC * rate_hz)


def header_seconds(source: AudioSource) -> float | None:
    """How long the meant part of a recording is by its header, without decoding; None if that cannot be told."""
    if source.array is not None:
        return _seconds_of(source, len(source.array), source.sampling_rate_hz or SAMPLING_RATE_HZ)
    place = str(source.path) if source.path is not None else io.BytesIO(source.data or b"")
    try:
        found = soundfile.info(place)
    except soundfile.LibsndfileError:
        return None
    return _seconds_of(source, found.frames, found.samplerate) if found.frames < UNKNOWN_FRAMES else None


def _seconds_of(source: AudioSource, num_samples: int, rate_hz: int) -> float | None:
    if source.span is None:
        return num_samples / rate_hz
    try:
        start, end = source.span.samples(num_samples, rate_hz)
    except SpanError:
        return None
    return (end - start) / rate_hz
