"""Audio in any form becomes mono float32 at 24 kHz, or a message that says why not.

In comes what a row of training data may hold: a path, encoded bytes, an array with or without its sampling rate, or
what the Audio feature of `datasets` gives (`parse_audio`). Out go samples (N,), float32 (`load_audio`), brought to
−25 dBFS by the model's own rule (`normalize_rms`) and padded to whole frames (`pad_to_frames`). Nothing is guessed:
audio that is missing, empty, cut short, silent, not finite or not decodable is refused with its reason.

Shapes: N samples, C channels.
"""

import hashlib
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import BLOCK_SAMPLES, MAX_DURATION_SEC, SAMPLING_RATE_HZ, AudioError, Floats
from vibevoice_finetune.audio.intake import Intake, decode
from vibevoice_finetune.audio.span import Span, SpanError, check_stated_duration, parse_span, parse_stated_rate
from vibevoice_finetune.audio.waveform import mean_square, normalize_rms, num_frames, pad_to_frames, write_audio
from vibevoice_finetune.errors import shown
from vibevoice_finetune.files.names import near_miss

__all__ = [
    "SAMPLING_RATE_HZ",
    "AudioError",
    "AudioSource",
    "load_audio",
    "normalize_rms",
    "num_frames",
    "pad_to_frames",
    "parse_audio",
    "write_audio",
]

SILENCE_RMS = 1 / 32_768
"""One step of 16-bit audio, −90 dBFS. The dither of an otherwise empty 16-bit recording has half of that."""

MAX_ARRAY_CHANNELS = 64
"""A two-dimensional array has few channels and many samples; where neither side is small, which is which is unknown."""

FULL_SCALE = {"i1": 1 << 7, "i2": 1 << 15, "i4": 1 << 31, "u1": 1 << 7}
"""Of integer samples, by kind and width. 64-bit integers have none: what they were scaled by is unknown."""


class MissingFileError(AudioError):
    """A file that is not there. Similar names are only looked for when somebody reads the message.

    Thousands of rows may be skipped for this; searching folders for each would take hours.
    """

    def __init__(self, where: str, text: str, path: Path) -> None:
        super().__init__(where, "missing file")
        self.args = (where, text, path)

    def __str__(self) -> str:
        where, text, path = self.args
        similar = near_miss(text if text.startswith("file:") else str(path))
        relative = not (path.is_absolute() and Path(text).is_absolute())
        hint = " (relative paths start at the data's folder)" if relative and similar is None else ""
        advice = f'did you mean "{shown(similar)}"?' if similar else "correct the path or remove the row."
        name = text if text.startswith("file:") else path
        return f"{where}: {shown(name)} does not exist{hint}; {advice}"


@runtime_checkable
class _Decoder(Protocol):
    """What the Audio feature of `datasets` decodes to (an `AudioDecoder` of torchcodec)."""

    def get_all_samples(self) -> "_DecodedSamples": ...


class _DecodedSamples(Protocol):
    data: object
    sample_rate: int


@runtime_checkable
class _ArrayLike(Protocol):
    """A numpy array, a torch tensor, a column of arrow."""

    def __array__(self) -> NDArray[np.generic]: ...


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)  # there may be millions
class AudioSource:
    """Where one piece of audio comes from; nothing is decoded yet. Exactly one of path, data and array is set.

    Attributes:
        path: a file that existed when the row was read.
        data: the bytes of an encoded file; a memoryview if they lie in a memory-mapped data set.
        array: samples (N,), or (N, C) with the channels last; floats within ±1 or integers of up to 32 bits.
        sampling_rate_hz: of `array`.
        where: the row, as in ``train.jsonl:17``; messages begin with it.
        span: the part of the audio that is meant; None for all of it.
        stated_sec: how long its row says that the audio is, if it says so; not part of what the audio is.
    """

    path: Path | None
    data: bytes | memoryview | None
    array: NDArray[np.generic] | None
    sampling_rate_hz: int | None
    where: str
    span: Span | None = None
    stated_sec: float | None = None

    def __post_init__(self) -> None:
        assert sum(form is not None for form in (self.path, self.data, self.array)) == 1
        assert (self.array is None) == (self.sampling_rate_hz is None)

    def __reduce__(self) -> tuple[object, ...]:
        data = None if self.data is None else bytes(self.data)  # a memoryview cannot be pickled
        members = (self.path, data, self.array, self.sampling_rate_hz, self.where, self.span, self.stated_sec)
        return AudioSource, members

    @property
    def label(self) -> str:
        """How messages begin: the row and, if there is one, the file."""
        return f"{self.where}: {'audio' if self.path is None else shown(self.path)}"

    def digest(self) -> str:
        """What tells this audio from others, 64 hexadecimal digits: the digest of its content and the part of it.

        Raises:
            AudioError: the file cannot be read.
        """
        return self.part_of(self.content_digest())

    def part_of(self, content_digest: str) -> str:
        """The digest of this source's part of a content with that digest."""
        if self.span is None:
            return content_digest
        text = f"{content_digest} {self.span.start_sec!r} {self.span.end_sec!r}"
        return hashlib.sha256(text.encode()).hexdigest()

    def content_digest(self) -> str:
        """SHA-256 of the whole content, hexadecimal: a file and its bytes in memory have the same.

        Raises:
            AudioError: the file cannot be read.
        """
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        if self.array is not None:
            head = f"{self.array.dtype.str} {self.array.shape} {self.sampling_rate_hz}\n".encode()
            return hashlib.sha256(head + np.ascontiguousarray(self.array).tobytes()).hexdigest()
        assert self.path is not None
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(self.label, error) from error


def parse_audio(value: object, base_dir: Path | None, where: str, rate: object = None) -> AudioSource:
    """Take one piece of audio as a row gives it. Files are looked for, not opened.

    Args:
        value: a path; encoded bytes; ``{"bytes", "path"}`` of which one may be None; ``{"array", "sampling_rate"}``; an
            array (N,), (C, N) or (N, C) or a list of numbers, taken as 24 kHz; an audio decoder of `datasets`.
        base_dir: where relative paths start; None for the current folder.
        where: the row, for messages.
        rate: the sampling rate that stands beside a bare array, if one does.

    Raises:
        AudioError: it is none of these, or the file is not there or empty.
    """
    match value:
        case str() | Path():
            return _parse_path(value, base_dir, where)
        case bytes() | bytearray() | memoryview():
            return _parse_bytes(value, where)
        case Mapping():
            return _parse_mapping(value, base_dir, where, rate)
        case _Decoder():
            return _parse_decoder(value, where)
        case list() | tuple() | _ArrayLike():
            return _parse_array(value, rate, where)
    raise AudioError(
        f"{where}: audio is of type {type(value).__name__}; expected a path, the bytes of a file, an array, "
        '{"bytes", "path"} or {"array", "sampling_rate"}; correct the row.',
        "wrong type",
    )


def load_audio(source: AudioSource) -> Floats:
    """Decode a source, mix it to mono, resample it to 24 kHz (windowed sinc, soxr's VHQ).

    Returns:
        Samples (N,), float32, as loud as they were; N ≥ 1.

    Raises:
        AudioError: missing, empty, undecodable, cut short, non-finite, silent, or longer than three hours.
    """
    try:
        samples = _resample_array(source) if source.array is not None else _decode_source(source)
        check_stated_duration(source.stated_sec, len(samples) / SAMPLING_RATE_HZ)
    except SpanError as error:
        raise AudioError(f"{source.label}: {error}", "wrong segment") from error
    if len(samples) == 0:
        raise _empty(source.label)
    deviation = math.sqrt(mean_square(samples, float(samples.mean(dtype=np.float64))))
    if deviation < SILENCE_RMS:
        level = "all samples are equal" if deviation == 0 else f"{20 * math.log10(deviation):.0f} dBFS"
        raise AudioError(
            f"{source.label} is silent ({level}); speech above {20 * math.log10(SILENCE_RMS):.0f} dBFS is expected; "
            "remove the row or record it again.",
            "silent audio",
        )
    return samples


def _parse_path(value: str | Path, base_dir: Path | None, where: str) -> AudioSource:
    text = str(value)
    if not text.strip():
        raise AudioError(f"{where}: the path of the audio is empty; correct it or remove the row.", "missing file")
    if "://" in text and not text.startswith("file:"):
        raise AudioError(
            f"{where}: {shown(text)} is an address; a file on this machine is expected; download it first.",
            "missing file",
        )
    path = Path(text) if base_dir is None else base_dir / text
    label = f"{where}: {shown(path)}"
    try:
        text.encode()  # libsndfile takes no other names
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(where, text, path) from error
    except (OSError, ValueError) as error:  # ValueError: NUL or half a surrogate in the name
        raise _unreadable(label, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{label} is not a file; an audio file is expected; correct the path.", "missing file")
    if status.st_size == 0:
        raise _empty(label)
    return AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where=where)


def _parse_bytes(value: bytes | bytearray | memoryview, where: str) -> AudioSource:
    if len(value) == 0:
        raise _empty(f"{where}: audio")
    data = bytes(value) if isinstance(value, bytearray) else value
    return AudioSource(path=None, data=data, array=None, sampling_rate_hz=None, where=where)


def _parse_mapping(
    value: Mapping[object, object], base_dir: Path | None, where: str, rate_beside: object
) -> AudioSource:
    members = {str(key): member for key, member in value.items()}
    source = _parse_whole(members, base_dir, where, rate_beside)
    try:
        span, stated_sec = parse_span(members, where)
    except SpanError as error:
        raise AudioError(str(error), "bad segment") from error
    return source if span is None and stated_sec is None else replace(source, span=span, stated_sec=stated_sec)


def _parse_whole(members: Mapping[str, object], base_dir: Path | None, where: str, rate_beside: object) -> AudioSource:
    if members.get("array") is not None:
        try:
            rate = parse_stated_rate(members, where)
        except SpanError as error:
            raise AudioError(str(error), "wrong type") from error
        if rate is not None and rate_beside is not None and str(rate) != str(rate_beside):
            raise AudioError(
                f"{where}: audio has a sampling rate of {shown(rate, 40)}, and the row one of "
                f"{shown(rate_beside, 40)}; one is expected; correct the row.",
                "wrong type",
            )
        return _parse_array(members["array"], rate if rate is not None else rate_beside, where)
    match members.get("bytes"), members.get("path"):
        case (bytes() | bytearray() | memoryview()) as data, _:
            return _parse_bytes(data, where)
        case None, (str() | Path()) as path:
            return _parse_path(path, base_dir, where)
    raise AudioError(
        f"{where}: audio is an object with {shown(', '.join(members) or 'nothing in it')}; expected "
        '{"bytes", "path"} with one of them, or {"array", "sampling_rate"}; correct the row.',
        "wrong type",
    )


def _parse_decoder(value: _Decoder, where: str) -> AudioSource:
    try:
        decoded = value.get_all_samples()
    except (RuntimeError, ValueError, OSError) as error:
        raise AudioError(
            f"{where}: audio cannot be decoded ({shown(error)}); remove the row.", "undecodable audio"
        ) from error
    return _parse_array(decoded.data, decoded.sample_rate, where)


def _parse_array(value: object, rate: object, where: str) -> AudioSource:
    label = f"{where}: audio"
    first = value
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if first is None or isinstance(first, str | bytes | Path | Mapping):
        kind = {str: "text", type(None): "null"}.get(type(first), type(first).__name__)
        raise AudioError(
            f"{label} is a list of {kind}; expected one path, or a list of numbers; write the path without brackets.",
            "wrong type",
        )
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # ragged lists, tensors of other devices
        raise AudioError(
            f"{label} is not an array of numbers ({shown(error)}); correct the row.", "wrong type"
        ) from error
    if array.size == 0:
        raise _empty(label)
    if array.dtype.kind != "f" and array.dtype.str[1:] not in FULL_SCALE:
        raise AudioError(
            f"{label} is an array of {array.dtype}; expected floats within ±1, or int8, int16, int32 or uint8; convert "
            "it first.",
            "wrong type",
        )
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    square = array.ndim == 2 and array.shape[0] == array.shape[1] > 1
    if array.ndim not in (1, 2) or square or (array.ndim == 2 and array.shape[1] > MAX_ARRAY_CHANNELS):
        raise AudioError(
            f"{label} is an array of shape {np.shape(array)}; expected (samples,), (channels, samples) or (samples, "
            f"channels) with at most {MAX_ARRAY_CHANNELS} channels; correct the row.",
            "wrong type",
        )
    return AudioSource(path=None, data=None, array=array, sampling_rate_hz=_parse_rate(rate, label), where=where)


def _parse_rate(rate: object, label: str) -> int:
    """Hertz; whether they are credible is checked where they are used."""
    if rate is None:
        return SAMPLING_RATE_HZ
    if isinstance(rate, float | np.floating) and float(rate).is_integer():
        return int(rate)
    if isinstance(rate, int | np.integer) and not isinstance(rate, bool):
        return int(rate)
    raise AudioError(
        f"{label} has a sampling rate of {shown(rate)}; a whole number of hertz is expected; correct the row.",
        "wrong type",
    )


def _decode_source(source: AudioSource) -> Floats:
    file = source.data if source.path is None else source.path
    assert file is not None
    return decode(file, source.label, source.span)


def _resample_array(source: AudioSource) -> Floats:
    assert source.array is not None
    assert source.sampling_rate_hz is not None
    array_NC = source.array if source.array.ndim == 2 else source.array[:, None]
    if source.span is not None:
        start, end = source.span.samples(len(array_NC), source.sampling_rate_hz)
        array_NC = array_NC[start:end]
    intake = Intake(source.sampling_rate_hz, source.label, MAX_DURATION_SEC)
    step = max(1, BLOCK_SAMPLES // array_NC.shape[1])
    parts = [intake.add(to_full_scale(array_NC[at : at + step])) for at in range(0, len(array_NC), step)]
    return np.concatenate([*parts, intake.finish()])


def to_full_scale(array_NC: NDArray[np.generic]) -> NDArray[np.floating]:
    """Integers become floats within ±1; unsigned bytes have their zero at 128, as in WAV."""
    if array_NC.dtype.kind == "f":
        return array_NC.astype(np.float64)  # float128 and float16 too; what overflows float32 is refused as a peak
    middle = 128 if array_NC.dtype.kind == "u" else 0
    return (array_NC.astype(np.float64) - middle) / FULL_SCALE[array_NC.dtype.str[1:]]


def _empty(label: str) -> AudioError:
    return AudioError(f"{label} is empty; speech is expected; remove the row or correct the file.", "empty audio")


def _unreadable(label: str, error: OSError | ValueError) -> AudioError:
    said = error.strerror if isinstance(error, OSError) else None
    return AudioError(
        f"{label} cannot be read ({said or shown(error)}); check the name and the permissions.", "missing file"
    )
