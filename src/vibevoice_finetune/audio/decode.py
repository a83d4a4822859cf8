"""Encoded audio, block by block, as its file has it: any rate, any channels, in bounded memory.

In comes a file or its bytes, out go blocks (N, C); `intake.py` makes mono audio at 24 kHz of them. Clips for training
and recordings of ten hours are read by the same code. A file that is cut short, or that holds more than it states, is
refused: half of the audio with all of its text would teach the model to skip words.

Shapes: N samples, C channels.
"""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from vibevoice_finetune.audio.chunk_sizes import STREAMED_BYTES, unstated_audio_sec
from vibevoice_finetune.audio.frame_headers import Mp3, is_chained_ogg, read_mp3, unstated_flac_sec
from vibevoice_finetune.audio.span import Span
from vibevoice_finetune.errors import DataError, UserError, require, shown

SAMPLING_RATE_HZ = 24_000

MIN_RATE_HZ, MAX_RATE_HZ = 4_000, 768_000
"""Half the rate of telephony, and the fastest converters on sale. A header outside is damaged."""

MAX_DURATION_SEC = 3 * 3600
"""The longest context of the released models is 65,536 tokens, 2.4 hours: nothing longer can be trained on."""

CUT_SHORT_SEC = 0.1
"""How much of what a header promises may be missing. One MP3 frame, which encoders miscount by, is at most 0.072 s."""

M4A_CUT_SHORT_SEC = 0.5
"""The same for m4a, whose duration counts the encoder's run-in (up to 0.2 s in HE-AAC)."""

SEEKABLE = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")
"""Formats in which libsndfile finds a sample exactly without decoding what lies before it."""

BLOCK_SAMPLES = 1 << 20
UNKNOWN_FRAMES = 1 << 62
"""libsndfile gives 2^63 − 1 frames for a FLAC stream of unstated length; the format itself ends at 2^36."""

MP3_RUN_IN_SEC = 0.5
"""An MP3 has up to 2,300 samples more than were encoded, 0.29 s at 8 kHz."""

FFMPEG_FORMATS = (
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI LIST", "avi"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "asf"),
)
"""Where a mark stands in formats that FFmpeg's libraries open, through the extra `m4a`; and their names there."""

FFMPEG_KINDS = {"mp4": "m4a, mp4 or mov", "aac": "aac audio", "matroska": "mkv or webm", "asf": "wma"}

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


def decode_blocks(
    file: Path | bytes | memoryview, label: str, span: Span | None = None, max_sec: float = MAX_DURATION_SEC
) -> Iterator[tuple[int, Floats]]:
    """Decode a file or its bytes.

    Args:
        file: a path, or encoded bytes.
        label: how messages name it, as in ``train.jsonl:17: clips/a.wav``.
        span: the part that is wanted; None for all of it.
        max_sec: a header that promises more is not believed.

    Yields:
        The sampling rate and samples (N, C), float32, full scale at ±1; a block is only valid until the next one.

    Raises:
        AudioError: it cannot be opened or decoded, is cut short, or holds more than it states.
        SpanError: the part lies outside of the audio.
    """
    try:
        with _open(file) as stream:
            head = stream.read(64)
            if isinstance(file, Path) and file.suffix.lower() == ".raw":
                raise AudioError(
                    f"{label} has no header that states its sampling rate; convert it to wav.", "undecodable audio"
                )
            if head.startswith(b"version https://git-lfs"):
                raise AudioError(
                    f'{label} is only a pointer to the audio; run "git lfs pull" in its folder.', "undecodable audio"
                )
            container = _ffmpeg_format(head)
            if container is not None:
                if container == "avi" and int.from_bytes(head[4:8], "little") + 8 > stream.seek(0, io.SEEK_END):
                    raise AudioError(f"{label} is cut short; copy it again, or leave it out.", "undecodable audio")
                stream.seek(0)
                yield from _by_ffmpeg(stream, label, span, container)
                return
            _check_sizes(stream, head, label)
            may_be_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
            mp3 = read_mp3(stream) if may_be_mp3 else None
    except OSError as error:
        raise AudioError(
            f"{label} cannot be read ({error.strerror or error}); check the disk and the file's permissions.",
            "missing file",
        ) from error
    yield from _by_libsndfile(file, label, span, max_sec, mp3)


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """Read from front to back only.

    soundfile otherwise seeks after each read to where it already is; on a FLAC stream of unstated length that fails.
    """

    def seekable(self) -> bool:
        return False


def _by_libsndfile(
    file: Path | bytes | memoryview, label: str, span: Span | None, max_sec: float, mp3: Mp3 | None
) -> Iterator[tuple[int, Floats]]:
    try:
        with _ForwardFile(str(file) if isinstance(file, Path) else io.BytesIO(file)) as sound:
            rate_hz = sound.samplerate
            check_rate(rate_hz, label)  # one that cannot be is refused before it is used
            known = sound.frames < UNKNOWN_FRAMES
            if mp3 is not None:
                _check_mp3(sound.frames / rate_hz, mp3, label)
            if span is not None:
                yield from _part(sound, label, span, known)
                return
            stated_sec = sound.frames / rate_hz if known and (mp3 is None or mp3.is_stated) else 0.0
            if stated_sec > max_sec:
                raise _too_long(label, "promises more than", max_sec)
            found = 0
            for block_NC in _blocks(sound, sound.frames):
                found += len(block_NC)
                yield rate_hz, block_NC
            found_sec = found / rate_hz
            check_complete(stated_sec, found_sec, CUT_SHORT_SEC, label)
            check_complete(found_sec * _stated_over_found(sound.extra_info), found_sec, CUT_SHORT_SEC, label)
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{label} cannot be decoded ({error.error_string.strip(' .')}); {READABLE}; convert it, or leave it out.",
            "undecodable audio",
        ) from error


def _part(sound: soundfile.SoundFile, label: str, span: Span, known: bool) -> Iterator[tuple[int, Floats]]:
    """Decode no more than what leads to the part."""
    rate_hz = sound.samplerate
    first, last = span.samples(sound.frames if known else UNKNOWN_FRAMES, rate_hz)
    if known and sound.format in SEEKABLE:
        sound.seek(first)
        found = 0
        for block_NC in _blocks(sound, last - first):
            found += len(block_NC)
            yield rate_hz, block_NC
        check_complete((last - first) / rate_hz, found / rate_hz, CUT_SHORT_SEC, label)
        return
    found = 0
    for block_NC in _blocks(sound, min(last, sound.frames)):
        yield rate_hz, block_NC[max(0, first - found) : max(0, last - found)]
        found += len(block_NC)
    span.samples(found, rate_hz)


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
    """How many times more audio a WAV, AIFF or AU header states than its file holds, by libsndfile's log of opening it.

    >>> _stated_over_found("data : 48000 (should be 24000)")
    2.0
    >>> _stated_over_found("data : 48000")
    1.0
    """
    match = re.search(r"(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", log)
    if match is None:
        return 1.0
    stated, found = int(match[1]), int(match[2])
    return 1.0 if found == 0 or stated >= STREAMED_BYTES else stated / found


def check_rate(rate_hz: int, label: str) -> None:
    """Refuse a sampling rate that no recording has."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioError(
            f"{label} states a sampling rate of {shown(f'{rate_hz:,}')} Hz; expected {MIN_RATE_HZ:,} to "
            f"{MAX_RATE_HZ:,} Hz; correct the rate, or leave the file out.",
            "undecodable audio",
        )


def check_complete(promised_sec: float, found_sec: float, tolerance_sec: float, label: str) -> None:
    """Refuse audio of which less was found than its header promises."""
    if promised_sec - found_sec > tolerance_sec:
        raise AudioError(
            f"{label} is cut short: its header promises {promised_sec:,.2f} s, {found_sec:,.2f} s could be decoded; "
            "copy it again, or leave it out.",
            "undecodable audio",
        )


def check_duration(duration_sec: float, max_sec: float, label: str) -> None:
    """Refuse what is longer than a limit."""
    if duration_sec > max_sec:
        raise _too_long(label, "is longer than", max_sec)


def _too_long(label: str, says: str, max_sec: float) -> AudioError:
    return AudioError(f"{label} {says} {max_sec / 3600:.0f} hours; split it.", "too long")


def _check_sizes(stream: BinaryIO, head: bytes, label: str) -> None:
    """Refuse what libsndfile would not read to its end."""
    if head.startswith(b"OggS"):
        if _last_ogg_page_is_torn(stream):
            raise AudioError(
                f"{label} is cut short: its last Ogg page is incomplete; copy it again, or leave it out.",
                "undecodable audio",
            )
        if is_chained_ogg(stream):
            raise AudioError(
                f"{label} holds several Ogg streams, one behind the other, of which only the first can be read; "
                'convert it, for example with "ffmpeg -i OLD NEW.flac".',
                "undecodable audio",
            )
        return
    is_flac = head.startswith(b"fLaC")
    stated_sec, unstated_sec = unstated_flac_sec(stream) if is_flac else unstated_audio_sec(stream)
    if unstated_sec > CUT_SHORT_SEC:
        how = "-i OLD NEW.flac" if is_flac else "-ignore_length 1 -i OLD NEW.wav"
        raise _unstated(label, stated_sec, unstated_sec, how)


def _check_mp3(read_sec: float, mp3: Mp3, label: str) -> None:
    """Compare what libsndfile is going to read with the frames that there are."""
    if mp3.duration_sec - read_sec > MP3_RUN_IN_SEC:
        raise _unstated(label, read_sec, mp3.duration_sec - read_sec, "-i OLD NEW.wav")


def _unstated(label: str, stated_sec: float, unstated_sec: float, how: str) -> AudioError:
    return AudioError(
        f"{label} states {stated_sec:,.2f} s of audio in its header, but {unstated_sec:,.2f} s more follow it (the "
        "recording was not finished, its size has overflowed, or files were joined); write the header again, for "
        f'example with "ffmpeg {how}".',
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


def _ffmpeg_format(head: bytes) -> str | None:
    """FFmpeg's name of a format that libsndfile cannot open; None for all others.

    The format is told to FFmpeg, or the file's content could make it open other files (playlists).
    """
    for place, mark, name in FFMPEG_FORMATS:
        if head[place : place + len(mark)] == mark:
            return name
    # AAC without a container: twelve set bits, then layer 0, which MP3 does not have (ISO 13818-7, 6.2)
    return "aac" if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 else None


def _by_ffmpeg(stream: BinaryIO, label: str, span: Span | None, container_name: str) -> Iterator[tuple[int, Floats]]:
    try:
        av = require("m4a", "av")
    except UserError as error:
        raise AudioError(
            f"{label} is {FFMPEG_KINDS.get(container_name, container_name)}; {error}, or convert it: {READABLE}.",
            "undecodable audio",
        ) from error
    try:
        with av.open(stream, format=container_name) as container:
            track = next((track for track in container.streams.audio if track.codec_context is not None), None)
            if track is None:
                raise AudioError(f"{label} holds no audio track; leave it out.", "undecodable audio")
            rate_hz = track.rate
            check_rate(rate_hz, label)
            first, last = (0, UNKNOWN_FRAMES) if span is None else span.samples(UNKNOWN_FRAMES, rate_hz)
            to_float = av.AudioResampler(format="fltp")
            found, waiting = 0, 0
            parts: list[Floats] = []
            for frame in container.decode(track):
                for converted in to_float.resample(frame):
                    part_NC = converted.to_ndarray().T
                    parts.append(part_NC[max(0, first - found) : max(0, last - found)])
                    found += len(part_NC)
                    waiting += parts[-1].size
                if waiting >= BLOCK_SAMPLES:
                    yield rate_hz, np.concatenate(parts)
                    parts, waiting = [], 0
            if parts:
                yield rate_hz, np.concatenate(parts)
            if span is not None:
                span.samples(found, rate_hz)
            if (stated_sec := _stated_sec(track)) is not None and container_name != "aac":
                check_complete(stated_sec, found / rate_hz, M4A_CUT_SHORT_SEC, label)
    except (av.error.FFmpegError, ValueError) as error:
        said = error.strerror if isinstance(error, av.error.FFmpegError) else error
        raise AudioError(
            f"{label} cannot be decoded ({said}); {READABLE}; convert it, or leave it out.", "undecodable audio"
        ) from error


def _stated_sec(track: Any) -> float | None:
    """How long an audio track is by its container; Matroska writes it as a tag, 00:01:02.5."""
    if track.duration is not None:
        return float(track.duration * track.time_base)
    parts = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", track.metadata.get("DURATION", ""))
    return None if parts is None else int(parts[1]) * 3600 + int(parts[2]) * 60 + float(parts[3])
