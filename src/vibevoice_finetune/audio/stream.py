"""Audio of any length, block by block: a ten-hour recording or the sound of a film, in bounded memory.

`audio/decode.py` gives a whole clip and refuses what no model could be trained on; here a recording passes through that
is going to be cut. Blocks are mono float32 at 24 kHz.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import MAX_RATE_HZ, MIN_RATE_HZ, SAMPLING_RATE_HZ, AudioError
from vibevoice_finetune.errors import UserError, require, shown

Floats = NDArray[np.float32]

BLOCK_SEC = 20.0
MAX_RECORDING_SEC = 24 * 3600.0
BY_FFMPEG = (".m4a", ".aac", ".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".wma")
"""What libsndfile cannot open; FFmpeg's libraries do, through the extra `m4a`."""

CUT_SHORT_SEC = 1.0


def stream(path: Path) -> Iterator[Floats]:
    """Yield a recording's samples, about `BLOCK_SEC` at a time, (N,).

    Raises:
        AudioError: it cannot be opened or decoded, ends before its header says, or is longer than a day.
    """
    label = shown(path)
    blocks = _by_ffmpeg(path, label) if path.suffix.lower() in BY_FFMPEG else _by_libsndfile(path, label)
    resampler: soxr.ResampleStream | None = None
    total_sec, rate_before = 0.0, 0
    for rate_hz, block_NC in blocks:
        if not rate_before:
            if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
                raise AudioError(f"{label}: states a sampling rate of {rate_hz:,} Hz; convert it.", "undecodable audio")
            rate_before = rate_hz
            if rate_hz != SAMPLING_RATE_HZ:
                resampler = soxr.ResampleStream(rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="VHQ")
        total_sec += len(block_NC) / rate_hz
        if total_sec > MAX_RECORDING_SEC:
            raise AudioError(f"{label}: is longer than {MAX_RECORDING_SEC / 3600:.0f} hours; split it.", "too long")
        if not np.isfinite(block_NC).all():
            raise AudioError(f"{label}: holds numbers that are not finite (NaN or infinity).", "non-finite audio")
        mono = np.ascontiguousarray(block_NC.mean(axis=1), dtype=np.float32)
        yield mono if resampler is None else resampler.resample_chunk(mono)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)


def pieces(blocks: Iterator[Floats], spans_sec: Sequence[tuple[float, float]]) -> Iterator[tuple[int, Floats]]:
    """Take spans out of a stream; only the samples that a span still needs are kept.

    Args:
        blocks: mono at 24 kHz.
        spans_sec: begin and end of each, in seconds, in any order; they may overlap.

    Yields:
        The number of a span and its samples (N,), in the order in which they are complete.
    """
    spans = sorted(
        (round(start * SAMPLING_RATE_HZ), round(end * SAMPLING_RATE_HZ), number)
        for number, (start, end) in enumerate(spans_sec)
    )
    kept = np.zeros(0, dtype=np.float32)
    at = 0  # where `kept` begins
    for block in blocks:
        kept = np.concatenate([kept, block])
        until = at + len(kept)
        done = [span for span in spans if span[1] <= until]
        for start, end, number in sorted(done, key=lambda span: (span[1], span[2])):
            yield number, kept[start - at : end - at].copy()
        spans = [span for span in spans if span[1] > until]
        if not spans:
            return
        keep_from = min(max(spans[0][0], at), until)
        kept, at = kept[keep_from - at :], keep_from
    for start, end, number in spans:  # rounding may take the last span a few samples beyond the end
        yield number, kept[max(start - at, 0) : end - at].copy()


def _by_libsndfile(path: Path, label: str) -> Iterator[tuple[int, Floats]]:
    try:
        with soundfile.SoundFile(str(path)) as sound:
            rate_hz, found, promised = sound.samplerate, 0, sound.frames
            size = max(1, round(BLOCK_SEC * rate_hz))
            while True:
                block = sound.read(size, dtype="float32", always_2d=True)
                if not len(block):
                    break
                found += len(block)
                yield rate_hz, block
            if promised < 1 << 60 and (promised - found) / rate_hz > CUT_SHORT_SEC:
                raise AudioError(
                    f"{label}: ends after {found / rate_hz:,.1f} s, its header promises {promised / rate_hz:,.1f} s; "
                    "copy it again, or cut it to its good part.",
                    "undecodable audio",
                )
    except soundfile.LibsndfileError as error:
        raise AudioError(
            f"{label}: cannot be decoded ({error.error_string.strip(' .')}); convert it to wav or flac.",
            "undecodable audio",
        ) from error
    except OSError as error:
        raise AudioError(f"{label}: cannot be read ({error.strerror or error}).", "missing file") from error


def _by_ffmpeg(path: Path, label: str) -> Iterator[tuple[int, Floats]]:
    try:
        av = require("m4a", "av")
    except UserError as error:
        raise AudioError(f"{label}: {error}, or convert it to wav.", "undecodable audio") from error
    try:
        with path.open("rb") as file, av.open(file) as container:
            track = next((track for track in container.streams.audio if track.codec_context is not None), None)
            if track is None:
                raise AudioError(f"{label}: holds no sound.", "undecodable audio")
            rate_hz = track.rate
            to_float = av.AudioResampler(format="fltp")
            waiting: list[Floats] = []
            for frame in container.decode(track):
                waiting += [converted.to_ndarray().T for converted in to_float.resample(frame)]
                if sum(map(len, waiting)) >= BLOCK_SEC * rate_hz:
                    yield rate_hz, np.concatenate(waiting)
                    waiting = []
            if waiting:
                yield rate_hz, np.concatenate(waiting)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError(f"{label}: cannot be decoded ({shown(error)}).", "undecodable audio") from error
    except OSError as error:
        raise AudioError(f"{label}: cannot be read ({error.strerror or error}).", "missing file") from error
