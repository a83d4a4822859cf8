"""Encoded audio becomes mono float32 samples at 24 kHz, in bounded memory.

In comes a file or its bytes, out go samples (N,). Everything runs through `Intake` block by block: it checks what it is
given, mixes to mono and resamples as it goes, so a header that promises ten hours, or a small file that truly unpacks
to ten hours, costs no more memory than `MAX_DURATION_SEC` at 24 kHz. A file that is cut short is refused: half of the
audio with all of its text would teach the model to skip words.

Shapes: N samples, C channels.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.audio.chunk_sizes import STREAMED_BYTES, unstated_audio_sec
from vibevoice_finetune.audio.span import Span
from vibevoice_finetune.errors import DataError, UserError, require, shown

SAMPLING_RATE_HZ = 24_000

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
"""Half the rate of telephony, and the fastest converters on sale. A header outside is damaged."""

MAX_DURATION_SEC = 3 * 3600
"""The longest context of the released models is 65,536 tokens, 2.4 hours: nothing longer can be trained on."""

MAX_PEAK = 100.0
"""Full scale of floating-point audio is 1. Forty decibels above it, the numbers are integers that were never scaled."""

CUT_SHORT_SEC = 0.1
"""How much of what a header promises may be missing. One MP3 frame, which encoders miscount by, is at most 0.072 s."""

M4A_CUT_SHORT_SEC = 0.5
"""The same for m4a, whose duration counts the encoder's run-in (up to 0.2 s in HE-AAC)."""

CANCELLED = 1e-4
"""Share of the channels' energy, −40 dB, below which a mix has lost what they held."""

INAUDIBLE_SQUARE = 1e-9
"""Mean square of what is silent anyway, −90 dBFS."""

SEEKABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
"""Formats in which libsndfile finds a sample exactly without decoding what lies before it."""

BLOCK_SAMPLES = 1 << 20
UNKNOWN_FRAMES = 1 << 62
"""libsndfile gives 2^63 − 1 frames for a FLAC stream of unstated length; the format itself ends at 2^36."""

OGG_PAGE_BYTES = 27 + 255 + 255 * 255
READABLE = "wav, flac, ogg, opus and mp3 can be read"

Floats = NDArray[np.float32]


class RowError(DataError):
    """A `DataError` about one row.

    Attributes:
        reason: what is wrong in two or three words, for counting bad rows by reason.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message, reason)  # both, or the error would not survive pickling between processes
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


class AudioError(RowError):
    """A `RowError` about one piece of audio."""


def decode(file: Path | bytes | memoryview, label: str, span: Span | None = None) -> Floats:
    """Decode a file or its bytes.

    Args:
        file: a path, or encoded bytes.
        label: how messages name it, as in ``train.jsonl:17: clips/a.wav``.
        span: the part that is wanted; None for all of it.

    Returns:
        Samples (N,), float32, mono, 24 kHz.

    Raises:
        AudioError: it cannot be opened or decoded, is cut short, too long, or holds numbers that are not audio.
        SpanError: the part lies outside of the audio.
    """
    try:
        with _open(file) as stream:
            head = stream.read(64)
            if isinstance(file, Path) and file.suffix.lower() == ".raw":
                raise AudioError(
                    f"{label} has no header that states its sampling rate; convert it to wav.", "undecodable audio"
                )
            if _is_mpeg4(head) or _is_adts(head):
                return _decode_aac(stream, label, span, in_container=_is_mpeg4(head))
            if head.startswith(b"version https://git-lfs"):
                raise AudioError(
                    f'{label} is only a pointer to the audio; run "git lfs pull" in its folder.', "undecodable audio"
                )
            if head.startswith(b"OggS") and _last_ogg_page_is_torn(stream):
                raise AudioError(
                    f"{label} is cut short: its last Ogg page is incomplete; copy it again or remove the row.",
                    "undecodable audio",
                )
            _check_sizes(stream, label)
    except OSError as error:
        raise AudioError(
            f"{label} cannot be read ({error.strerror or error}); check the disk and the file's permissions.",
            "missing file",
        ) from error
    return _decode_soundfile(file, label, span)


class Intake:
    """Takes audio in blocks, gives it back whole: mono, 24 kHz.

    Args:
        rate_hz: sampling rate of the blocks.
        label: how messages name the audio.
        first: how many samples of what comes are passed over.
        last: the one behind the last that is kept; None for all.
    """

    def __init__(self, rate_hz: int, label: str, first: int = 0, last: int | None = None) -> None:
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioError(
                f"{label} states a sampling rate of {shown(f'{rate_hz:,}')} Hz; expected {MIN_RATE_HZ:,} to "
                f"{MAX_RATE_HZ:,} Hz; correct the rate or remove the row.",
                "undecodable audio",
            )
        self.rate_hz = rate_hz
        self.label = label
        self.num_frames = 0
        self._first, self._last = first, last
        self._kept = 0
        self._energy, self._mono_energy = 0.0, 0.0
        self._parts: list[Floats] = []
        self._resampler: soxr.ResampleStream | None = None
        if rate_hz != SAMPLING_RATE_HZ:
            self._resampler = soxr.ResampleStream(rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="VHQ")

    @property
    def duration_sec(self) -> float:
        """How much was taken in so far."""
        return self.num_frames / self.rate_hz

    def add(self, block_NC: NDArray[np.floating]) -> None:
        """Take the next block, (N, C), full scale at ±1.

        Raises:
            AudioError: a number is not finite or no audio, or the whole has become too long.
        """
        before = self.num_frames
        self.num_frames += len(block_NC)
        block_NC = block_NC[max(0, self._first - before) : None if self._last is None else max(0, self._last - before)]
        self._kept += len(block_NC)
        self.check_duration(self._kept / self.rate_hz, "is longer than")
        if not np.isfinite(block_NC).all():
            raise AudioError(
                f"{self.label} holds numbers that are not finite (NaN or infinity); write the file again from its "
                "source or remove the row.",
                "non-finite audio",
            )
        peak = float(np.abs(block_NC).max(initial=0.0))
        if peak > MAX_PEAK:
            raise AudioError(
                f"{self.label} has samples of {peak:,.0f}; floating-point audio lies within ±1; divide integers by "
                "their full scale (int16: 32,768) or keep them as int16.",
                "undecodable audio",
            )
        mono = block_NC[:, 0] if block_NC.shape[1] == 1 else block_NC.mean(axis=1)
        samples = np.ascontiguousarray(mono, dtype=np.float32)
        if block_NC.shape[1] > 1:
            self._energy += float(np.square(block_NC, dtype=np.float32).mean(axis=1).sum(dtype=np.float64))
            self._mono_energy += float(np.square(samples).sum(dtype=np.float64))
        # A copy: the decoder may fill the same block again.
        self._parts.append(samples.copy() if self._resampler is None else self._resampler.resample_chunk(samples))

    def samples(self) -> Floats:
        """Everything that was added, (N,).

        Raises:
            AudioError: mixing the channels has left nothing.
        """
        if self._mono_energy < CANCELLED * self._energy and self._energy > self._kept * INAUDIBLE_SQUARE:
            raise AudioError(
                f"{self.label}: its channels cancel each other when they are mixed to mono (one is the other "
                "inverted); expected channels that add up; keep one of them, or invert one.",
                "channels cancel",
            )
        if self._resampler is not None:
            self._parts.append(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
        return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=np.float32)

    def check_duration(self, duration_sec: float, says: str) -> None:
        """Refuse what no model could be trained on."""
        if duration_sec > MAX_DURATION_SEC:
            raise AudioError(
                f"{self.label} {says} {MAX_DURATION_SEC // 3600} hours, more than any model's context; split it.",
                "too long",
            )

    def check_complete(self, promised_sec: float, tolerance_sec: float) -> None:
        """Refuse audio of which less was taken in than its header promised."""
        if promised_sec - self.duration_sec > tolerance_sec:
            raise AudioError(
                f"{self.label} is cut short: its header promises {promised_sec:,.2f} s, {self.duration_sec:,.2f} s "
                "could be decoded; copy it again or remove the row.",
                "undecodable audio",
            )


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """Read from front to back only.

    soundfile otherwise seeks after each read to where it already is; on a FLAC stream of unstated length that fails.
    """

    def seekable(self) -> bool:
        return False


def _decode_soundfile(file: Path | bytes | memoryview, label: str, span: Span | None) -> Floats:
    try:
        with _ForwardFile(str(file) if isinstance(file, Path) else io.BytesIO(file)) as sound:
            known = sound.frames < UNKNOWN_FRAMES
            if span is not None:
                return _read_part(sound, label, span, known)
            intake = Intake(sound.samplerate, label)
            if known:
                intake.check_duration(sound.frames / sound.samplerate, "promises more than")
            for block_NC in _blocks(sound, sound.frames):
                intake.add(block_NC)
            if known:
                intake.check_complete(sound.frames / sound.samplerate, CUT_SHORT_SEC)
            intake.check_complete(intake.duration_sec * _stated_over_found(sound.extra_info), CUT_SHORT_SEC)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{label} cannot be decoded ({error.error_string.strip(' .')}); {READABLE}; convert it or remove the row.",
            "undecodable audio",
        ) from error
    return intake.samples()


def _read_part(sound: soundfile.SoundFile, label: str, span: Span, known: bool) -> Floats:
    """Decode no more than what leads to the part, and keep no more than the part."""
    rate_hz = sound.samplerate
    Intake(rate_hz, label)  # a rate that cannot be is refused before it is used
    first, last = span.samples(sound.frames if known else UNKNOWN_FRAMES, rate_hz)
    if known and sound.format in SEEKABLE:
        sound.seek(first)
        intake = Intake(rate_hz, label)
        for block_NC in _blocks(sound, last - first):
            intake.add(block_NC)
        intake.check_complete((last - first) / rate_hz, CUT_SHORT_SEC)
        return intake.samples()
    intake = Intake(rate_hz, label, first, last)
    for block_NC in _blocks(sound, min(last, sound.frames)):
        intake.add(block_NC)
    span.samples(intake.num_frames, rate_hz)
    return intake.samples()


def _blocks(sound: soundfile.SoundFile, frames: int) -> Iterator[Floats]:
    """Blocks (N, C) up to the stated length; what follows it (a tag, say) would be a decoding error."""
    buffer = np.empty((max(1, BLOCK_SAMPLES // sound.channels), sound.channels), dtype=np.float32)
    while frames > 0:
        block_NC = sound.read(out=buffer[: min(frames, len(buffer))])
        if len(block_NC) == 0:
            return
        frames -= len(block_NC)
        yield block_NC


def _stated_over_found(log: str) -> float:
    """How many times more audio a WAV or AIFF header states than its file holds, by libsndfile's log of opening it.

    >>> _stated_over_found("data : 48000 (should be 24000)")
    2.0
    >>> _stated_over_found("data : 48000")
    1.0
    """
    match = re.search(r"(?:data|SSND)\s*: (\d+) \(should be (\d+)\)", log)
    if match is None:
        return 1.0
    stated, found = int(match[1]), int(match[2])
    return 1.0 if found == 0 or stated >= STREAMED_BYTES else stated / found


def _check_sizes(stream: BinaryIO, label: str) -> None:
    """Refuse WAV and AIFF that hold more than they state."""
    stated_sec, unstated_sec = unstated_audio_sec(stream)
    if unstated_sec > CUT_SHORT_SEC:
        raise AudioError(
            f"{label} states {stated_sec:,.2f} s of audio in its header, but {unstated_sec:,.2f} s more follow it "
            "(the recording was not finished, or its size has overflowed); write the header again, for example with "
            '"ffmpeg -ignore_length 1 -i OLD NEW.wav".',
            "undecodable audio",
        )


def _open(file: Path | bytes | memoryview) -> BinaryIO:
    return file.open("rb") if isinstance(file, Path) else io.BytesIO(file)


def _last_ogg_page_is_torn(stream: BinaryIO) -> bool:
    """Whether the file ends inside a page: libsndfile would silently drop that page.

    A page is a 27-byte header, which ends with a count, as many lengths of a byte each, and the bytes that they sum to
    (RFC 3533, section 6).
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - OGG_PAGE_BYTES))
    tail = stream.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    if len(page) < 27:
        return True
    lengths = page[27 : 27 + page[26]]
    return len(page) < 27 + page[26] + sum(lengths)


def _is_mpeg4(head: bytes) -> bool:
    return head[4:8] == b"ftyp"


def _is_adts(head: bytes) -> bool:
    """AAC without a container: twelve set bits, then layer 0, which MP3 does not have (ISO 13818-7, 6.2)."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _decode_aac(stream: BinaryIO, label: str, span: Span | None, *, in_container: bool) -> Floats:
    try:
        av = require("m4a", "av")
    except UserError as error:
        raise AudioError(
            f"{label} is m4a or aac audio; {error}, or convert it: {READABLE}.", "undecodable audio"
        ) from error
    stream.seek(0)
    try:
        # The format is given, or the file's content could make FFmpeg open other files (playlists).
        with av.open(stream, format="mp4" if in_container else "aac") as container:
            track = next((track for track in container.streams.audio if track.codec_context is not None), None)
            if track is None:
                raise AudioError(f"{label} holds no audio track; remove the row.", "undecodable audio")
            first, last = (0, None) if span is None else span.samples(UNKNOWN_FRAMES, track.rate)
            intake = Intake(track.rate, label, first, last)
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(track):
                for converted in to_float.resample(frame):
                    intake.add(converted.to_ndarray().T)
            if span is not None:
                span.samples(intake.num_frames, track.rate)
            if in_container and track.duration is not None:
                intake.check_complete(float(track.duration * track.time_base), M4A_CUT_SHORT_SEC)
    except (av.error.FFmpegError, ValueError) as error:
        said = error.strerror if isinstance(error, av.error.FFmpegError) else error
        raise AudioError(
            f"{label} cannot be decoded ({said}); {READABLE}; convert it or remove the row.", "undecodable audio"
        ) from error
    return intake.samples()
