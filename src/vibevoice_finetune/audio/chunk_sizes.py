"""WAV, AIFF, AU and CAF files that hold more audio than their header states.

A recorder that was killed leaves sizes of zero or from some time before; sizes above 4 GiB overflow. libsndfile reads
what the header states and drops the rest without a word, so the model would learn to skip words. (The opposite, a
header that states more than there is, is in libsndfile's log; see `decode.py`. Formats of frames: `frame_headers.py`.)
"""

import io
import struct
from typing import BinaryIO

LITTLE_ENDIAN = (b"RIFF", b"RF64", b"BW64")
BIG_ENDIAN = (b"RIFX", b"FORM")
AUDIO_CHUNKS = (b"data", b"SSND")
STREAMED_BYTES = 0x7F00_0000
"""Programs that write WAV into a pipe state a length from here up, because they do not know it yet."""

TAGS = (b"ID3", b"TAG", b"APETAGEX")
"""What other programs append behind the last chunk."""

MAX_CHUNKS = 10_000

AU_BYTES = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}
"""A sample's bytes by the code of its kind; the others are compressed."""


def unstated_audio_sec(stream: BinaryIO) -> tuple[float, float]:
    """Seconds that the header states, and seconds of what lies behind them and is neither a chunk nor zeros.

    (0, 0) for files of another kind, and for lengths that are meant as "until the end".
    """
    stream.seek(0)
    head = stream.read(24)
    if head[:4] in (b".snd", b"dns."):
        return _unstated_au_sec(stream, head)
    if head[:4] == b"caff":
        return _unstated_caf_sec(stream)
    if head[:4] not in (*LITTLE_ENDIAN, *BIG_ENDIAN) or head[8:12] not in (b"WAVE", b"AIFF", b"AIFC"):
        return 0.0, 0.0
    order = "big" if head[:4] in BIG_ENDIAN else "little"
    end = stream.seek(0, io.SEEK_END)
    place, bytes_a_sec, stated, long_size = 12, 0.0, None, None
    for _ in range(MAX_CHUNKS):
        stream.seek(place)
        chunk = stream.read(8)
        name, size = chunk[:4], int.from_bytes(chunk[4:8], order)  # type: ignore[arg-type]
        if len(chunk) < 8 or not _is_chunk(name, size, end - place - 8, stated is None):
            break
        if name == b"ds64":
            long_size = int.from_bytes(stream.read(16)[8:], "little")
        elif name == b"fmt ":
            form = stream.read(16)
            bytes_a_sec = float(int.from_bytes(form[4:8], order) * int.from_bytes(form[12:14], order))  # type: ignore[arg-type]
        elif name == b"COMM":
            form = stream.read(18)
            width = int.from_bytes(form[:2], "big") * -(-int.from_bytes(form[6:8], "big") // 8)
            bytes_a_sec = width * _extended(form[8:18])
        elif name in AUDIO_CHUNKS:
            stated = long_size if long_size is not None and size == 0xFFFF_FFFF else size
            size = stated
            if stated >= STREAMED_BYTES and place + 8 + stated > end:
                return 0.0, 0.0
        place += 8 + size
        stream.seek(place)
        if size % 2 and stream.read(1) == b"\0":  # chunks begin at even places, but some programs forget that
            place += 1
    if stated is None or place >= end or not bytes_a_sec or _is_harmless(stream, place):
        return 0.0, 0.0
    return stated / bytes_a_sec, (end - place) / bytes_a_sec


def _unstated_au_sec(stream: BinaryIO, head: bytes) -> tuple[float, float]:
    """One header, then samples up to the end of the file."""
    order = "big" if head[:4] == b".snd" else "little"
    offset, size, kind, rate_hz, channels = (
        int.from_bytes(head[at : at + 4], order)  # type: ignore[arg-type]
        for at in range(4, 24, 4)
    )
    bytes_a_sec = AU_BYTES.get(kind, 0) * rate_hz * channels
    end = stream.seek(0, io.SEEK_END)
    unknown = size == 0xFFFF_FFFF or not bytes_a_sec
    if unknown or offset + size >= end or _is_harmless(stream, offset + size):
        return 0.0, 0.0
    return size / bytes_a_sec, (end - offset - size) / bytes_a_sec


def _unstated_caf_sec(stream: BinaryIO) -> tuple[float, float]:
    """Chunks with lengths of eight bytes; that of the audio may be −1, "until the end", in the last chunk."""
    end = stream.seek(0, io.SEEK_END)
    place, bytes_a_sec, stated = 8, 0.0, None
    for _ in range(MAX_CHUNKS):
        stream.seek(place)
        chunk = stream.read(12)
        name, size = chunk[:4], int.from_bytes(chunk[4:12], "big", signed=True)
        if len(chunk) < 12 or size < 0 or not _is_chunk(name, size, end - place - 12, stated is None):
            break
        if name == b"desc":
            form = stream.read(24)
            rate_hz = struct.unpack(">d", form[:8])[0] if len(form) == 24 else 0.0
            packet, frames = (int.from_bytes(form[at : at + 4], "big") for at in (16, 20))
            bytes_a_sec = rate_hz * packet / frames if frames and 0 < rate_hz < 1e9 else 0.0
        elif name == b"data":
            stated = max(0, size - 4)
        place += 12 + size
    if stated is None or place >= end or not bytes_a_sec or _is_harmless(stream, place):
        return 0.0, 0.0
    return stated / bytes_a_sec, (end - place) / bytes_a_sec


def _is_chunk(name: bytes, size: int, room: int, before_audio: bool) -> bool:
    """Whether these eight bytes begin a chunk, and not audio that the sizes leave out."""
    if before_audio:
        return True
    printable = all(0x20 <= byte < 0x7F for byte in name)
    return printable and size <= room and name not in (*AUDIO_CHUNKS, *LITTLE_ENDIAN, *BIG_ENDIAN)


def _is_harmless(stream: BinaryIO, place: int) -> bool:
    """A tag, or nothing but zeros up to the end."""
    stream.seek(place)
    block = stream.read(1 << 20)
    if block.startswith(TAGS):
        return True
    while block:
        if block.strip(b"\0"):
            return False
        block = stream.read(1 << 20)
    return True


def _extended(number: bytes) -> float:
    """An 80-bit floating-point number, as AIFF states rates."""
    if len(number) < 10:
        return 0.0
    exponent = (int.from_bytes(number[:2], "big") & 0x7FFF) - 16_383 - 63
    return int.from_bytes(number[2:], "big") * 2.0**exponent if -1_000 < exponent < 900 else 0.0
