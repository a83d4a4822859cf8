"""FLAC, MP3 and Ogg files that hold more audio than libsndfile reads of them.

These formats are streams of frames. libsndfile takes the length from the head (FLAC's STREAMINFO, MP3's Xing frame or
an estimate where there is none, the first of several Ogg streams) and drops what follows without a word. Here the
frames themselves are asked: FLAC's last one has its number, MP3's are counted, and Ogg's pages say where a stream
begins.
"""

import io
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO

FLAC_BLOCK = {
    1: 192,
    **{code: 576 << code - 2 for code in range(2, 6)},
    **{code: 256 << code - 8 for code in range(8, 16)},
}
"""Samples of a frame by their code (RFC 9639, section 9.1.1); 6 and 7 are followed by the number itself."""

FLAC_HEADS = (b"fLaC\0\0\0\x22", b"fLaC\x80\0\0\x22")
"""The mark and the head of STREAMINFO, which has 34 bytes; its first bit is set where no other block follows."""

FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
FLAC_TAIL_BYTES = 1 << 18
ID3V1_BYTES = 128

MP3_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""By version: MPEG-1, MPEG-2, MPEG-2.5."""

MP3_KBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def unstated_flac_sec(stream: BinaryIO) -> tuple[float, float]:
    """Seconds that the header states, and seconds that follow them: by the number of the last frame, or in other files.

    (0, 0) if no length is stated, or the last frame cannot be found.
    """
    with _all_bytes(stream) as data:
        rate_hz, total = _flac_length(data, 0)
        if not rate_hz or not total:
            return 0.0, 0.0
        second = max(data.find(head, 1) for head in FLAC_HEADS)
        if second >= 0:
            return total / rate_hz, max(1, _flac_length(data, second)[1]) / rate_hz
        tail = data[-FLAC_TAIL_BYTES:]
        fixed_block = int.from_bytes(data[8:10], "big")
    if tail[-ID3V1_BYTES:].startswith(b"TAG"):
        tail = tail[:-ID3V1_BYTES]
    for found in reversed(list(FLAC_SYNC.finditer(tail))):
        last = _flac_frame_end(tail[found.start() : found.start() + 16], fixed_block)
        if last is None:
            continue
        if last <= total:
            break
        if _crc(tail[found.start() : -2], 16, 0x8005) == int.from_bytes(tail[-2:], "big"):
            return total / rate_hz, (last - total) / rate_hz
    return 0.0, 0.0


def _flac_length(data: bytes | mmap.mmap, place: int) -> tuple[int, int]:
    """Sampling rate and number of samples as STREAMINFO has them (RFC 9639, section 8.2)."""
    packed = int.from_bytes(data[place + 18 : place + 26], "big")
    return packed >> 44, packed & ((1 << 36) - 1)


def _flac_frame_end(head: bytes, fixed_block: int) -> int | None:
    """The number of the sample behind a frame; None if no frame begins here (RFC 9639, section 9.1)."""
    if len(head) < 16 or head[3] & 1:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    count = 1 if ones == 0 else ones  # a number coded like a character of UTF-8, of up to seven bytes
    if ones == 1 or count > 7:
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + count]:
        if byte >> 6 != 2:
            return None
        number = number << 6 | byte & 0x3F
    place = 4 + count
    code = head[2] >> 4
    extra = {6: 1, 7: 2}.get(code, 0)
    block = int.from_bytes(head[place : place + extra], "big") + 1 if extra else FLAC_BLOCK.get(code)
    place += extra + {12: 1, 13: 2, 14: 2}.get(head[2] & 0xF, 0)
    if block is None or _crc(head[:place], 8, 0x07) != head[place]:
        return None
    return (number if head[1] & 1 else number * fixed_block) + block


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    """A cyclic redundancy check that starts from zero, high bits first.

    >>> _crc(b"123456789", 8, 0x07), _crc(b"123456789", 16, 0x8005)
    (244, 65256)
    """
    mask = (1 << bits) - 1
    table = _crc_table(bits, polynomial)
    state = 0
    for byte in data:
        state = (state << 8 ^ table[state >> bits - 8 ^ byte]) & mask
    return state


@cache
def _crc_table(bits: int, polynomial: int) -> list[int]:
    mask, top = (1 << bits) - 1, 1 << bits - 1
    table = []
    for value in range(256):
        rest = value << bits - 8
        for _ in range(8):
            rest = (rest << 1 ^ polynomial if rest & top else rest << 1) & mask
        table.append(rest)
    return table


@dataclass(frozen=True)
class Mp3:
    """What the frames of an MP3 say.

    Attributes:
        duration_sec: of all frames.
        is_stated: whether a first frame without sound (Xing, Info, VBRI) states a length; if none does, libsndfile
            guesses one from the first frame and the file's size.
    """

    duration_sec: float
    is_stated: bool


def read_mp3(stream: BinaryIO) -> Mp3 | None:
    """Count the frames of an MP3 (layer III), 2 µs each; None if it is not one, or its bit rate is "free"."""
    with _all_bytes(stream) as data:
        return _count_mp3(data)


@contextmanager
def _all_bytes(stream: BinaryIO) -> Iterator[bytes | mmap.mmap]:
    """A file as bytes that are read when they are looked at: a day of MP3 has a gigabyte."""
    if isinstance(stream, io.BytesIO):
        yield stream.getvalue()
        return
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _count_mp3(data: bytes | mmap.mmap) -> Mp3 | None:
    place = _behind_id3(data, 0)
    first = _mp3_frame(data, place)
    if first is None:
        return None
    head = data[place : place + first[0]]
    is_stated = any(name in head[:200] for name in (b"Xing", b"Info", b"VBRI"))
    place += first[0] if is_stated else 0
    seconds = 0.0
    while place < len(data) - 4:
        frame = _mp3_frame(data, place)
        if frame is None:
            place = _next_mp3_frame(data, place)
            continue
        size, duration_sec = frame
        if place + size > len(data):
            break
        inner = data[place : place + min(size, 200)]
        seconds += 0.0 if b"Xing" in inner or b"Info" in inner else duration_sec
        place += size
    return Mp3(seconds, is_stated)


def _behind_id3(data: bytes | mmap.mmap, place: int) -> int:
    """The place behind a tag at the head: ten bytes and a length of four times seven bits."""
    if data[place : place + 3] != b"ID3" or len(data) < place + 10:
        return place
    size = 0
    for byte in data[place + 6 : place + 10]:
        size = size << 7 | byte & 0x7F
    return place + 10 + size


def _mp3_frame(data: bytes | mmap.mmap, place: int) -> tuple[int, float] | None:
    """Bytes and seconds of the frame that begins here (ISO 11172-3, 2.4.1.3)."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # layer III
        return None
    version, rate, kbits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or rate == 3 or kbits in (0, 15):
        return None
    rate_hz = MP3_RATES_HZ[version][rate]
    samples = 1_152 if version == 3 else 576
    size = samples * 125 * (MP3_KBITS_1 if version == 3 else MP3_KBITS_2)[kbits] // rate_hz + (head[2] >> 1 & 1)
    return size, samples / rate_hz


def _next_mp3_frame(data: bytes | mmap.mmap, place: int) -> int:
    """Where two frames follow each other next, behind a tag or damage."""
    if data[place : place + 3] == b"ID3":
        return max(place + 1, _behind_id3(data, place))
    while (place := data.find(b"\xff", place + 1)) >= 0:
        frame = _mp3_frame(data, place)
        if frame is not None and (_mp3_frame(data, place + frame[0]) is not None):
            return place
    return len(data)


def is_chained_ogg(stream: BinaryIO) -> bool:
    """Whether a second stream begins behind the first, as in files that were joined byte by byte (RFC 3533, 4)."""
    stream.seek(0)
    place, heads_are_over = 0, False
    while (head := stream.read(27))[:4] == b"OggS" and len(head) == 27:
        begins = bool(head[5] & 2)
        if begins and heads_are_over:
            return True
        heads_are_over |= not begins
        lengths = stream.read(head[26])
        place += 27 + len(lengths) + sum(lengths)
        stream.seek(place)
    return False
