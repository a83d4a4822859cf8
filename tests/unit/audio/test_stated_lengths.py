"""A file that holds more than it states, or less, is never shortened in silence: not for `train`, not for `prepare`."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vibevoice_finetune.audio.decode import AudioError
from vibevoice_finetune.audio.intake import decode
from vibevoice_finetune.audio.stream import pieces, stream

RATE_HZ = 24_000
SAMPLES = 2 * RATE_HZ
NOISE = (0.1 * np.random.default_rng(0).standard_normal(SAMPLES)).astype(np.float32)


def encoded(form: str, subtype: str | None = None) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, NOISE, RATE_HZ, format=form, subtype=subtype)
    return bytearray(file.getvalue())


def au(size: int) -> bytearray:
    data = encoded("AU", "PCM_16")
    struct.pack_into(">I", data, 8, size)
    return data


def caf(size: int) -> bytearray:
    data = encoded("CAF", "PCM_16")
    struct.pack_into(">q", data, data.index(b"data") + 4, size + 4)
    return data


def flac(total: int) -> bytearray:
    data = encoded("FLAC")
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    data[18:26] = packed.to_bytes(8, "big")
    return data


def mp3_with_frames(count: int) -> bytearray:
    data = encoded("MP3", "MPEG_LAYER_III")
    place = max(data.find(b"Xing"), data.find(b"Info"))
    struct.pack_into(">I", data, place + 8, count)
    return data


def by_stream(path: Path) -> int:
    return sum(map(len, stream(path)))


def by_decode(path: Path) -> int:
    return len(decode(path, "clip"))


READERS = pytest.mark.parametrize("read", [by_decode, by_stream])


@READERS
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(au(SAMPLES), id="au says half"),
        pytest.param(au(0), id="au says nothing"),
        pytest.param(caf(SAMPLES), id="caf says half"),
        pytest.param(caf(0), id="caf says nothing"),
        pytest.param(flac(SAMPLES // 2), id="flac says half"),
        pytest.param(flac(1), id="flac says one sample"),
        pytest.param(flac(SAMPLES) + flac(SAMPLES), id="two flac"),
        pytest.param(mp3_with_frames(20), id="mp3 says 20 frames"),
        pytest.param(mp3_with_frames(83) + mp3_with_frames(83), id="two mp3"),
        pytest.param(encoded("WAV") + encoded("WAV"), id="two wav"),
        pytest.param(encoded("OGG", "VORBIS") + encoded("OGG", "VORBIS"), id="two ogg"),
        pytest.param(encoded("OGG", "OPUS") + encoded("OGG", "OPUS"), id="two opus"),
    ],
)
def test_what_a_header_leaves_out_is_said(tmp_path: Path, read: Callable[[Path], int], data: bytearray) -> None:
    path = tmp_path / "talk.bin"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"more follow it|only the first can be read") as caught:
        read(path)
    assert "ffmpeg" in str(caught.value)
    assert "\n" not in str(caught.value)


@READERS
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(au(2 * SAMPLES), id="au"),
        pytest.param(au(0xFFFF_FFFF), id="au until the end"),
        pytest.param(caf(2 * SAMPLES), id="caf"),
        pytest.param(flac(SAMPLES), id="flac"),
        pytest.param(flac(0), id="flac until the end"),
        pytest.param(flac(SAMPLES) + b"TAG" + bytes(125), id="flac with a tag"),
        pytest.param(encoded("MP3", "MPEG_LAYER_III") + b"TAG" + bytes(125), id="mp3 with a tag"),
        pytest.param(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + encoded("MP3", "MPEG_LAYER_III"), id="mp3 behind a tag"),
        pytest.param(encoded("OGG", "VORBIS"), id="ogg"),
        pytest.param(encoded("W64"), id="w64"),
        pytest.param(encoded("CAF", "ALAC_16"), id="caf, compressed"),
        pytest.param(encoded("AU", "ULAW"), id="au, compressed"),
    ],
)
def test_truthful_files_are_read_to_their_end(tmp_path: Path, read: Callable[[Path], int], data: bytearray) -> None:
    path = tmp_path / "talk.bin"
    path.write_bytes(data)
    assert read(path) == SAMPLES


def test_an_mp3_without_a_stated_length_is_read_to_its_end(tmp_path: Path) -> None:
    """The first half is silence, so libsndfile's guess from the first frame is three times too long."""
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", RATE_HZ, 1, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.3
    ) as sound:
        sound.write(np.concatenate([np.zeros(5 * SAMPLES, dtype=np.float32), np.tile(NOISE, 5)]))
    data = file.getvalue()
    path = tmp_path / "talk.mp3"
    path.write_bytes(data[data.index(b"\xff\xf3", 4) :])  # without its Xing frame
    assert by_decode(path) / RATE_HZ == pytest.approx(20, abs=0.2)
    assert by_stream(path) / RATE_HZ == pytest.approx(20, abs=0.2)


@READERS
@pytest.mark.parametrize(("form", "says"), [("AU", "promises"), ("FLAC", "promises"), ("WAV", "promises")])
def test_files_that_end_in_the_middle_are_refused(
    tmp_path: Path, read: Callable[[Path], int], form: str, says: str
) -> None:
    data = encoded(form)
    path = tmp_path / "talk.bin"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(AudioError, match=rf"cut short: its header {says}|cannot be decoded"):
        read(path)


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "pcm_s16le"), ("mp4", "aac"), ("avi", "mp3"), ("mov", "aac")])
def test_films_are_sound_and_half_of_one_is_refused(tmp_path: Path, suffix: str, codec: str) -> None:
    av = pytest.importorskip("av")
    whole, half = tmp_path / f"whole.{suffix}", tmp_path / f"half.{suffix}"
    options = {"movflags": "faststart"} if suffix in ("mp4", "mov") else {}
    with av.open(str(whole), "w", options=options) as container:
        track = container.add_stream(codec, rate=RATE_HZ)
        frame = av.AudioFrame.from_ndarray((NOISE * 32_767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        for packet in [*track.encode(frame), *track.encode(None)]:
            container.mux(packet)
    assert by_stream(whole) / RATE_HZ == pytest.approx(2, abs=0.15)
    assert by_decode(whole) == by_stream(whole)
    data = whole.read_bytes()
    half.write_bytes(data[: len(data) // 2])
    for read in (by_decode, by_stream):
        with pytest.raises(AudioError, match=r"cut short|cannot be decoded"):
            read(half)


def test_what_a_file_is_does_not_depend_on_its_name(tmp_path: Path) -> None:
    path = tmp_path / "talk.m4a"
    path.write_bytes(encoded("WAV"))
    assert by_stream(path) == SAMPLES


def test_channels_that_cancel_each_other_are_said_for_recordings_too(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", np.stack([NOISE, -NOISE], axis=1), RATE_HZ)
    with pytest.raises(AudioError, match="channels cancel each other"):
        by_stream(tmp_path / "talk.wav")


def test_spans_of_a_stream_are_those_of_the_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", NOISE, RATE_HZ, subtype="FLOAT")
    spans = [(0.5, 1.0), (0.0, 0.25), (0.75, 2.0)]
    found = dict(pieces(stream(tmp_path / "talk.wav"), spans))
    for number, (start, end) in enumerate(spans):
        np.testing.assert_array_equal(found[number], NOISE[round(start * RATE_HZ) : round(end * RATE_HZ)])
