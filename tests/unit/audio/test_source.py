import io
import os
import pickle
import sys
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from safetensors.numpy import load_file

from vibevoice_finetune.audio import decode, intake
from vibevoice_finetune.audio.source import (
    SAMPLING_RATE_HZ,
    AudioError,
    AudioSource,
    load_audio,
    normalize_rms,
    num_frames,
    pad_to_frames,
    parse_audio,
    write_audio,
)
from vibevoice_finetune.errors import ArgumentError, DataError
from vibevoice_finetune.files.atomic import WriteError

WHERE = "train.jsonl:17"
GOLDEN = Path(__file__).parents[2] / "golden" / "tied" / "expected.safetensors"
FORMATS = [
    ("WAV", "PCM_16", 24_000),
    ("WAV", "PCM_16", 8_000),
    ("WAV", "PCM_24", 44_100),
    ("WAV", "FLOAT", 96_000),
    ("FLAC", "PCM_16", 22_050),
    ("OGG", "VORBIS", 32_000),
    ("OGG", "OPUS", 48_000),
    ("MP3", "MPEG_LAYER_III", 44_100),
    ("MP3", "MPEG_LAYER_III", 16_000),
]


def sine(rate_hz: int, duration_sec: float = 1.0, frequency_hz: float = 440.0) -> NDArray[np.float32]:
    time_sec = np.arange(int(rate_hz * duration_sec)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * frequency_hz * time_sec)).astype(np.float32)


def encoded(samples: NDArray[np.generic], rate_hz: int = 24_000, form: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=form, subtype=subtype)
    return file.getvalue()


def load(value: object, base_dir: Path | None = None) -> NDArray[np.float32]:
    return load_audio(parse_audio(value, base_dir, WHERE))


def refusal(value: object, base_dir: Path | None = None) -> AudioError:
    with pytest.raises(AudioError) as caught:
        load(value, base_dir)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert "\n" not in message
    return caught.value


class TestDecoding:
    @pytest.mark.parametrize("channels", [1, 2])
    @pytest.mark.parametrize(("form", "subtype", "rate_hz"), FORMATS)
    def test_every_format_rate_and_channel_count_gives_the_same_sine(
        self, tmp_path: Path, form: str, subtype: str, rate_hz: int, channels: int
    ) -> None:
        path = tmp_path / f"clip.{form.lower()}"
        path.write_bytes(encoded(np.repeat(sine(rate_hz)[:, None], channels, axis=1), rate_hz, form, subtype))
        samples = load("clip." + form.lower(), tmp_path)
        assert samples.dtype == np.float32
        assert samples.ndim == 1
        assert samples.flags.c_contiguous
        assert len(samples) == SAMPLING_RATE_HZ
        tolerance = 0.03 if subtype in ("VORBIS", "OPUS", "MPEG_LAYER_III") else 1e-4
        middle = slice(2_400, -2_400)  # the resampler and the lossy codecs ring at the ends of a cut sine
        assert np.abs(samples - sine(SAMPLING_RATE_HZ))[middle].max() < tolerance

    def test_what_24_khz_cannot_hold_is_filtered_out(self) -> None:
        audible, beyond = sine(48_000, frequency_hz=1_000), sine(48_000, frequency_hz=15_000)
        samples = load({"array": audible + beyond, "sampling_rate": 48_000})
        assert np.abs(samples - sine(24_000, frequency_hz=1_000))[2_400:-2_400].max() < 1e-4

    def test_channels_are_averaged(self) -> None:
        left = sine(24_000)
        mixed = load(encoded(np.stack([left, np.zeros_like(left)], axis=1), subtype="FLOAT"))
        np.testing.assert_array_equal(mixed, left / 2)

    def test_resampling_in_blocks_equals_resampling_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(np.stack([sine(44_100), sine(44_100, frequency_hz=97)], axis=1), 44_100)
        at_once = load(data)
        monkeypatch.setattr(decode, "BLOCK_SAMPLES", 1_000)
        np.testing.assert_array_equal(load(data), at_once)

    def test_blocks_are_not_overwritten_by_the_next_one_where_nothing_is_resampled(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "BLOCK_SAMPLES", 1_000)
        np.testing.assert_array_equal(load(encoded(sine(24_000), subtype="FLOAT")), sine(24_000))

    def test_a_flac_of_unstated_length_is_read_to_its_end(self) -> None:
        # As `flac -` writes it into a pipe: total samples 0.
        assert len(load(with_flac_length(encoded(sine(24_000), form="FLAC"), 0))) == 24_000

    @pytest.mark.parametrize(("form", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("WAV", "PCM_16")])
    def test_a_tag_behind_the_audio_does_no_harm(self, form: str, subtype: str) -> None:
        assert len(load(encoded(sine(24_000), form=form, subtype=subtype) + b"TAG" + b"title".ljust(125))) == 24_000

    def test_a_wav_written_into_a_pipe_states_no_length(self) -> None:
        data = bytearray(encoded(sine(24_000)))
        data[40:44] = b"\xff\xff\xff\xff"  # as ffmpeg writes it
        assert len(load(bytes(data))) == 24_000


def with_flac_length(data: bytes, num_samples: int) -> bytes:
    """STREAMINFO begins at byte 8; its total of samples is 36 bits, the last four of byte 13 and bytes 14 to 17."""
    changed = bytearray(data)
    changed[21] = (changed[21] & 0xF0) | num_samples >> 32
    changed[22:26] = (num_samples & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(changed)


class TestForms:
    def test_a_file_and_its_bytes_are_the_same_audio(self, tmp_path: Path) -> None:
        data = encoded(sine(24_000))
        (tmp_path / "a.wav").write_bytes(data)
        forms: list[object] = [
            tmp_path / "a.wav",
            str(tmp_path / "a.wav"),
            data,
            bytearray(data),
            memoryview(data),
            {"bytes": data, "path": None},
            {"bytes": data, "path": "not here.wav"},
            {"bytes": None, "path": str(tmp_path / "a.wav")},
            {"path": str(tmp_path / "a.wav")},
        ]
        assert len({parse_audio(form, None, WHERE).digest() for form in forms}) == 1
        for form in forms:
            np.testing.assert_array_equal(load(form), load(data))

    @pytest.mark.parametrize(
        ("array", "tolerance"),
        [
            (sine(24_000), 0),
            (sine(24_000).astype(np.float64), 0),
            (sine(24_000).astype(np.float16), 2e-4),
            (sine(24_000)[None], 0),
            (sine(24_000)[:, None], 0),
            (np.stack([sine(24_000)] * 2), 0),
            (np.stack([sine(24_000)] * 2, axis=1), 0),
            ((sine(24_000) * 128).round().astype(np.int8), 1 / 200),
            ((sine(24_000) * 128 + 128).round().astype(np.uint8), 1 / 200),
            ((sine(24_000) * 32_768).round().astype(np.int16), 2e-5),
            ((sine(24_000) * 2.0**31).astype(np.int32), 1e-7),
            (sine(24_000).tolist(), 0),
            ([sine(24_000), sine(24_000)], 0),
        ],
        ids=lambda value: f"{getattr(value, 'dtype', 'list')}{getattr(value, 'shape', '')}",
    )
    def test_arrays_of_every_kind_and_orientation_are_the_same_sine(self, array: object, tolerance: float) -> None:
        np.testing.assert_allclose(load(array), sine(24_000), rtol=0, atol=tolerance)

    def test_an_array_without_a_rate_is_taken_as_24_khz(self) -> None:
        for value in (sine(24_000), {"array": sine(24_000)}, {"array": sine(24_000), "sampling_rate": None}):
            np.testing.assert_array_equal(load(value), sine(24_000))
        assert len(load({"array": sine(48_000), "sampling_rate": 48_000.0})) == 24_000

    def test_torch_tensors_are_arrays(self) -> None:
        torch = pytest.importorskip("torch")
        np.testing.assert_array_equal(load(torch.from_numpy(sine(24_000))[None]), sine(24_000))

    def test_what_the_audio_feature_of_datasets_decodes_to(self) -> None:
        @dataclass
        class Samples:
            data: NDArray[np.float32]
            sample_rate: int

        class Decoder:
            def get_all_samples(self) -> Samples:
                return Samples(sine(48_000)[None], 48_000)

        class Broken:
            def get_all_samples(self) -> Samples:
                raise RuntimeError("no audio stream")

        assert np.abs(load(Decoder()) - sine(24_000))[2_400:-2_400].max() < 1e-4
        assert refusal(Broken()).reason == "undecodable audio"

    def test_the_digest_depends_on_all_that_changes_the_audio(self) -> None:
        array = sine(24_000)
        variants: list[object] = [
            array,
            array[:-1],
            array.astype(np.float64),
            {"array": array, "sampling_rate": 16_000},
            array.reshape(12_000, 2),
            encoded(array),
        ]
        digests = [parse_audio(variant, None, WHERE).digest() for variant in variants]
        assert len(set(digests)) == len(variants)
        assert digests[0] == parse_audio(array.copy(), None, "elsewhere:1").digest()

    def test_a_source_survives_pickling(self) -> None:
        source = parse_audio(memoryview(encoded(sine(24_000))), None, WHERE)
        again: AudioSource = pickle.loads(pickle.dumps(source))
        assert again.digest() == source.digest()
        assert again.where == WHERE

    def test_an_error_survives_pickling(self) -> None:
        error = refusal(b"")
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.reason, type(again)) == (str(error), error.reason, AudioError)
        assert isinstance(error, DataError)


class TestRefusals:
    @pytest.mark.parametrize(
        ("value", "reason", "says"),
        [
            ("not here.wav", "missing file", "not here.wav does not exist"),
            ("", "missing file", "path of the audio is empty"),
            ("a\0b.wav", "missing file", "null"),
            ("half\ud800.wav", "missing file", "cannot be read"),
            ("x" * 5_000, "missing file", "name too long"),
            (".", "missing file", "is not a file"),
            (os.devnull, "missing file", "is not a file"),
            ("https://example.org/a.wav", "missing file", "download it first"),
            ("hf://datasets/a/b/c.wav", "missing file", "download it first"),
            ("empty.wav", "empty audio", "empty.wav is empty"),
            ("fifo.wav", "missing file", "is not a file"),
            ("samples.raw", "undecodable audio", "no header"),
            ("pointer.wav", "undecodable audio", "git lfs pull"),
            (b"", "empty audio", "is empty"),
            (b"hello, this is no audio", "undecodable audio", "cannot be decoded"),
            ([], "empty audio", "is empty"),
            (np.zeros(0, np.float32), "empty audio", "is empty"),
            (None, "wrong type", "NoneType"),
            (17, "wrong type", "of type int"),
            ({}, "wrong type", "nothing in it"),
            ({"bytes": None, "path": None}, "wrong type", "bytes, path"),
            ({"bytes": 5, "path": "a.wav"}, "wrong type", "bytes, path"),
            (["a.wav"], "wrong type", "audio is a list of text; expected one path"),
            ([["a.wav"]], "wrong type", "audio is a list of text"),
            ([None], "wrong type", "audio is a list of null"),
            ([[0.1, 0.2], [0.3]], "wrong type", "not an array of numbers"),
            ([1, 2, 3], "wrong type", "array of int64"),
            ([10**400, 1], "wrong type", "array of object"),
            (np.ones(100, bool), "wrong type", "array of bool"),
            (np.ones(100, complex), "wrong type", "array of complex"),
            (np.ones((4, 4), np.float32), "wrong type", "shape (4, 4)"),
            (np.ones((2, 2, 900), np.float32), "wrong type", "shape (2, 2, 900)"),
            (np.ones((65, 900), np.float32), "wrong type", "at most 64 channels"),
            (np.float32(0.5), "wrong type", "shape ()"),
            ({"array": [0.5], "sampling_rate": "24k"}, "wrong type", "sampling rate of 24k"),
            ({"array": [0.5], "sampling_rate": float("nan")}, "wrong type", "sampling rate of nan"),
            ({"array": [0.5], "sampling_rate": True}, "wrong type", "sampling rate of True"),
            ({"array": [0.5], "sampling_rate": 0}, "undecodable audio", "rate of 0 Hz"),
            ({"array": [0.5], "sampling_rate": -24_000}, "undecodable audio", "rate of -24,000 Hz"),
            ({"array": [0.5], "sampling_rate": 10**400}, "undecodable audio", "expected 4,000 to 768,000 Hz"),
            ([0.1, float("nan"), 0.2], "non-finite audio", "not finite"),
            ([0.1, float("inf"), 0.2], "non-finite audio", "not finite"),
            (sine(24_000) * 32_768, "undecodable audio", "divide integers by their full scale"),
            (sine(24_000).astype(np.float64) * 1e300, "undecodable audio", "within ±1"),
        ],
        ids=lambda value: repr(value)[:30],
    )
    def test_each_has_a_reason_and_one_clear_line(self, tmp_path: Path, value: object, reason: str, says: str) -> None:
        (tmp_path / "empty.wav").touch()
        (tmp_path / "samples.raw").write_bytes(b"\1\2" * 900)
        (tmp_path / "pointer.wav").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        os.mkfifo(tmp_path / "fifo.wav")
        error = refusal(value, tmp_path)
        assert error.reason == reason
        assert says in str(error)
        assert len(str(error)) < 700

    def test_a_file_that_vanishes_after_the_row_was_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").write_bytes(encoded(sine(24_000)))
        source = parse_audio("a.wav", tmp_path, WHERE)
        (tmp_path / "a.wav").unlink()
        for use in (lambda: load_audio(source), source.digest):
            with pytest.raises(AudioError, match=r"^train.jsonl:17: .*a.wav cannot be read \(No such file") as caught:
                use()
            assert caught.value.reason == "missing file"

    def test_numbers_that_are_not_finite_in_a_file(self) -> None:
        samples = sine(24_000)
        samples[12_345] = np.nan
        assert refusal(encoded(samples, subtype="FLOAT")).reason == "non-finite audio"

    @pytest.mark.parametrize(
        "samples",
        [
            np.zeros(24_000, np.float32),
            np.full(24_000, 0.25, np.float32),
            np.random.default_rng(0).integers(-1, 2, 24_000).astype(np.int16),  # dither: 0.8 of one step
        ],
        ids=["zeros", "an offset", "dither"],
    )
    def test_silence_is_refused(self, samples: NDArray[np.generic]) -> None:
        error = refusal(samples)
        assert error.reason == "silent audio"
        assert "is silent" in str(error)

    def test_a_whisper_is_not_silence(self) -> None:
        assert len(load(sine(24_000) * 1e-3)) == 24_000  # −74 dBFS

    @pytest.mark.parametrize(("form", "subtype", "rate_hz"), FORMATS)
    def test_a_file_that_is_cut_short_is_refused(self, form: str, subtype: str, rate_hz: int) -> None:
        noise = 0.1 * np.random.default_rng(0).standard_normal(2 * rate_hz)
        data = encoded(noise, rate_hz, form, subtype)
        assert len(load(data)) == 48_000
        assert refusal(data[: len(data) // 2]).reason == "undecodable audio"

    def test_the_stated_length_and_the_found_one_are_told(self) -> None:
        data = encoded(sine(24_000, duration_sec=2.0))
        assert "promises 2.00 s, 0.50 s could be decoded" in str(refusal(data[: 44 + 24_000]))
        aiff = encoded(sine(24_000, duration_sec=2.0), form="AIFF")
        assert "promises 2.00 s" in str(refusal(aiff[: len(aiff) // 2]))


class TestHostileHeaders:
    def test_a_promise_of_ten_hours_allocates_nothing(self) -> None:
        ten_hours = 10 * 3600 * 24_000
        wav = bytearray(encoded(sine(24_000)))
        wav[40:44] = (2 * ten_hours).to_bytes(4, "little")
        flac = with_flac_length(encoded(sine(24_000), form="FLAC"), ten_hours)
        tracemalloc.start()
        try:
            assert refusal(bytes(wav)).reason == "undecodable audio"  # libsndfile believes the file's size
            assert "promises more than 3 hours" in str(refusal(flac))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 20_000_000  # ten hours of float32 are 3.5 GB

    def test_a_promise_of_two_hours_allocates_a_block(self) -> None:
        flac = with_flac_length(encoded(sine(24_000), form="FLAC"), 2 * 3600 * 24_000)
        tracemalloc.start()
        try:
            assert "is cut short: its header promises 7,200.00 s, 1.00 s could" in str(refusal(flac))
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < 20_000_000

    def test_a_stream_of_unstated_length_ends_at_the_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(intake, "MAX_DURATION_SEC", 2)
        monkeypatch.setattr(decode, "BLOCK_SAMPLES", 1_000)
        taken = []
        add = intake.Intake.add
        monkeypatch.setattr(intake.Intake, "add", lambda self, block: (taken.append(len(block)), add(self, block))[1])
        flac = with_flac_length(encoded(sine(24_000, duration_sec=9.0), form="FLAC"), 0)
        assert refusal(flac).reason == "too long"
        assert sum(taken) <= 2 * 24_000 + 1_000

    @pytest.mark.parametrize("rate_hz", [1, 3_999, 768_001, 2**31 - 1])
    def test_absurd_sampling_rates_in_a_header(self, rate_hz: int) -> None:
        data = bytearray(encoded(sine(24_000)))
        data[24:28] = rate_hz.to_bytes(4, "little")
        assert refusal(bytes(data)).reason == "undecodable audio"

    @pytest.mark.parametrize(("form", "subtype", "rate_hz"), FORMATS)
    def test_damaged_files_give_audio_or_a_reason(self, form: str, subtype: str, rate_hz: int) -> None:
        rng = np.random.default_rng(0)
        whole = encoded(sine(rate_hz, duration_sec=0.25), rate_hz, form, subtype)
        refused = kept = 0
        for _ in range(60):
            data = bytearray(whole)
            reach = len(data) if rng.random() < 0.3 else min(len(data), 120)  # mostly the header
            for place in rng.integers(0, reach, rng.integers(1, 9)):
                data[place] = rng.choice([0, 255, 127, 128, rng.integers(256)])
            try:
                samples = load(bytes(data[: rng.integers(1, len(data))]) if rng.random() < 0.2 else bytes(data))
            except AudioError as error:
                refused += str(error).startswith(f"{WHERE}: ")
            else:
                assert samples.dtype == np.float32
                assert np.isfinite(samples).all()
                assert 0 < len(samples) <= 10 * SAMPLING_RATE_HZ
                kept += 1
        assert refused + kept == 60
        assert refused > 0


class TestM4a:
    def test_without_av_the_message_names_the_extra(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x1cftypM4A \0\0\2\0isomiso2")
        error = refusal("a.m4a", tmp_path)
        assert 'pip install "vibevoice-finetune[m4a]"' in str(error)
        assert error.reason == "undecodable audio"
        assert 'vibevoice-finetune[m4a]"' in str(refusal(b"\xff\xf1\x50\x80\x02\x1f\xfc"))  # bare AAC

    @pytest.mark.parametrize(("form", "rate_hz", "layout"), [("ipod", 44_100, "stereo"), ("adts", 16_000, "mono")])
    def test_with_av_it_is_decoded(self, tmp_path: Path, form: str, rate_hz: int, layout: str) -> None:
        pytest.importorskip("av")
        path = tmp_path / "clip"
        encode_aac(path, form, rate_hz, layout)
        samples = load(path)
        assert abs(len(samples) - 2 * SAMPLING_RATE_HZ) < 0.15 * SAMPLING_RATE_HZ  # whole AAC frames, and the run-in
        assert np.abs(samples[12_000:36_000]).max() == pytest.approx(0.3, abs=0.02)
        data = path.read_bytes()
        assert refusal(data[: len(data) // 2]).reason == "undecodable audio"

    def test_damaged_m4a_gives_audio_or_a_reason(self, tmp_path: Path) -> None:
        pytest.importorskip("av")
        encode_aac(tmp_path / "clip", "ipod", 44_100, "mono")
        whole = (tmp_path / "clip").read_bytes()
        rng = np.random.default_rng(0)
        refused = 0
        for _ in range(100):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), rng.integers(1, 20)):
                data[place] = rng.integers(256)
            try:
                assert np.isfinite(load(bytes(data))).all()
            except AudioError:
                refused += 1
        assert refused > 0


def encode_aac(path: Path, form: str, rate_hz: int, layout: str) -> None:
    import av

    channels = 2 if layout == "stereo" else 1
    samples = np.ascontiguousarray(np.tile(sine(rate_hz, duration_sec=2.0), (channels, 1)))
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream("aac", rate=rate_hz)
        stream.layout = layout
        for start in range(0, samples.shape[1], 1_024):
            frame = av.AudioFrame.from_ndarray(samples[:, start : start + 1_024].copy(), format="fltp", layout=layout)
            frame.rate, frame.pts = rate_hz, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


class TestNormalize:
    @pytest.mark.parametrize("case", ["0", "1"])
    def test_golden(self, case: str) -> None:
        golden = load_file(GOLDEN)
        found = normalize_rms(golden[f"normalize.{case}.in"])
        expected = golden[f"normalize.{case}.out"]
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

    def test_the_result_has_the_target_loudness(self) -> None:
        rms = float(np.sqrt(np.mean(normalize_rms(sine(24_000)).astype(np.float64) ** 2)))
        assert 20 * np.log10(rms) == pytest.approx(-25, abs=1e-3)

    def test_a_peak_above_full_scale_is_brought_down(self) -> None:
        # 1 sample in 100,000 at 1: rms 0.00316, gain 17.8, peak 17.8 → 1.
        samples = np.zeros(100_000, np.float32)
        samples[7] = 1
        found = normalize_rms(samples)
        assert found[7] == pytest.approx(1, abs=1e-6)
        assert found[7] <= 1

    def test_the_input_is_left_as_it_was(self) -> None:
        samples = sine(24_000)
        normalize_rms(samples)
        np.testing.assert_array_equal(samples, sine(24_000))

    def test_the_sum_keeps_its_digits_over_many_samples(self) -> None:
        samples = np.full(5_000_000, 0.1, np.float32)  # more than one block; a float32 sum misses by 1e-5
        expected = 10 ** (-25 / 20) * 0.1 / (0.1 + 1e-6)
        np.testing.assert_allclose(normalize_rms(samples)[[0, -1]], expected, rtol=1e-6)


class TestFrames:
    @pytest.mark.parametrize(("num_samples", "frames"), [(0, 0), (1, 1), (3_199, 1), (3_200, 1), (3_201, 2)])
    def test_partial_frames_count(self, num_samples: int, frames: int) -> None:
        assert num_frames(num_samples, 3_200) == frames
        padded = pad_to_frames(np.ones(num_samples, np.float32), 3_200)
        assert len(padded) == frames * 3_200
        assert padded.sum() == num_samples  # ones, then zeros
        assert padded.dtype == np.float32


class TestWriting:
    @pytest.mark.parametrize(("name", "tolerance"), [("a.wav", 1e-4), ("a.flac", 1e-4), ("A.OGG", 0.02)])
    def test_what_is_written_reads_back(self, tmp_path: Path, name: str, tolerance: float) -> None:
        write_audio(tmp_path / name, sine(24_000), 24_000)
        assert np.abs(load(tmp_path / name) - sine(24_000))[100:-100].max() < tolerance
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_peaks_are_clipped_and_do_not_wrap_around(self, tmp_path: Path) -> None:
        write_audio(tmp_path / "a.wav", np.array([0.5, 1.5, -1.5, 0.5], np.float32), 24_000)
        np.testing.assert_allclose(load(tmp_path / "a.wav"), [0.5, 1, -1, 0.5], atol=1e-4)

    def test_minutes_of_ogg(self, tmp_path: Path) -> None:
        # libsndfile's Vorbis encoder crashes the process on 2.1 million samples at once (8 MB of stack).
        write_audio(tmp_path / "a.ogg", np.tile(sine(8_000), 280), 8_000)
        assert soundfile.info(tmp_path / "a.ogg").frames == 280 * 8_000

    def test_another_suffix_is_refused(self, tmp_path: Path) -> None:
        for name in ("a.m4a", "a"):
            with pytest.raises(ArgumentError, match=r"\.wav, \.flac, \.ogg"):
                write_audio(tmp_path / name, sine(24_000), 24_000)
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").mkdir()  # what stands there cannot be replaced
        with pytest.raises(WriteError, match=r"a\.wav"):
            write_audio(tmp_path / "a.wav", sine(24_000), 24_000)
        assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


class TestParts:
    """A row that means a part of its recording: 1.5 s, one tone for each half second."""

    RATE = 16_000
    TONES = np.concatenate([sine(16_000, 0.5, frequency) for frequency in (300, 600, 900)])

    def of(self, value: object, **keys: object) -> NDArray[np.float32]:
        return load({"bytes": value, **keys} if isinstance(value, bytes) else {"array": value, **keys})

    @pytest.mark.parametrize(
        ("keys", "start_sec", "end_sec"),
        [
            ({"offset": 0.5, "duration": 0.5}, 0.5, 1.0),
            ({"start": 0.5, "end": 1.0}, 0.5, 1.0),
            ({"start_time": 0.25, "end_time": 0.75, "duration": 0.5}, 0.25, 0.75),
            ({"begin": 1.0}, 1.0, 1.5),
            ({"end": 0.5}, 0.0, 0.5),
            ({"start": 0}, 0.0, 1.5),
            ({"offset": 1.0, "duration": 0.55}, 1.0, 1.5),  # manifests round
            ({"start": None, "end": None}, 0.0, 1.5),
            # other ways to write the same keys
            ({"Offset": 0.5, "Duration": 0.5}, 0.5, 1.0),
            ({"start_ms": 500, "end_ms": 1_000}, 0.5, 1.0),
            ({"segmentStart": 0.5, "segmentEnd": 1.0}, 0.5, 1.0),
            ({"audio_offset": 0.5, "audio_duration": 0.5}, 0.5, 1.0),
            ({"start": 0.5, "length": 0.5}, 0.5, 1.0),
            ({"length": 12}, 0.0, 1.5),  # alone, of the text as well as of the audio
            ({"onset": 0.5, "offset": 1.0}, 0.5, 1.0),  # lists of sound events: the offset is the end
            ({"timestamp": [0.5, 1.0]}, 0.5, 1.0),
            ({"timestamp": "2024-01-01", "clip_id": 3, "start_date": "x", "num_samples": 7}, 0.0, 1.5),
        ],
    )
    def test_the_part_and_nothing_else_in_every_format(
        self, keys: dict[str, object], start_sec: float, end_sec: float
    ) -> None:
        expected = self.TONES[round(start_sec * self.RATE) : round(end_sec * self.RATE)]
        whole = load_audio(parse_audio({"array": expected, "sampling_rate": self.RATE}, None, WHERE))
        for form, subtype, tolerance in [
            ("WAV", "FLOAT", 1e-6),
            ("FLAC", "PCM_16", 1e-4),
            ("AIFF", "PCM_24", 1e-5),
            ("OGG", "VORBIS", 0.1),
        ]:
            part = self.of(encoded(self.TONES, self.RATE, form, subtype), **keys)
            np.testing.assert_allclose(part, whole, rtol=0, atol=tolerance, err_msg=form)
        np.testing.assert_array_equal(self.of(self.TONES, sampling_rate=self.RATE, **keys), whole)

    @pytest.mark.parametrize("keys", [{"start": 2.0}, {"start": 1.0, "end": 3.0}, {"offset": 1_000, "duration": 500}])
    def test_a_part_outside_of_the_audio_is_refused(self, keys: dict[str, float]) -> None:
        for form in ("WAV", "MP3"):
            data = {"bytes": encoded(self.TONES, self.RATE, form, "PCM_16" if form == "WAV" else "MPEG_LAYER_III")}
            assert "1.5" in (message := str(refusal({**data, **keys})))
            assert "seconds within the audio" in message
        assert "seconds within the audio" in str(refusal({"array": self.TONES, "sampling_rate": self.RATE, **keys}))

    @pytest.mark.parametrize(
        ("keys", "says"),
        [
            ({"start": "0:30"}, "a number of seconds is expected"),
            ({"start": -1}, "a number of seconds is expected"),
            ({"start": True}, "a number of seconds is expected"),
            ({"start": float("nan")}, "a number of seconds is expected"),
            ({"start": 1, "end": 1}, "starts at 1 s"),
            ({"start": 1, "end": 2, "duration": 3}, "do not agree"),
            ({"start": 1, "offset": 2}, '"start" is 1 s and "offset" 2 s'),
            ({"start": 1, "start_ms": 2_000}, '"start" is 1 s and "start_ms" 2 s'),
            ({"frame_offset": 8_000, "num_frames": 8_000}, '"frame_offset" chooses a part of the audio in samples'),
            ({"start_sample": 0}, '"start_sample" chooses a part of the audio in samples'),
        ],
    )
    def test_keys_that_make_no_sense_are_refused(self, keys: dict[str, float], says: str) -> None:
        assert says in str(refusal({"bytes": encoded(self.TONES), **keys}))

    def test_a_duration_alone_states_how_long_the_audio_is(self) -> None:
        data = encoded(self.TONES, self.RATE)
        assert len(self.of(data, duration=1.45)) == len(self.of(data)) == 36_000
        assert "states a duration of 0.50 s" in str(refusal({"bytes": data, "duration": 0.5}))

    def test_each_part_has_a_digest_of_its_own_and_the_whole_keeps_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "a.wav").write_bytes(encoded(self.TONES))
        sources = [
            parse_audio({"path": "a.wav", **keys}, tmp_path, WHERE)
            for keys in ({}, {"start": 0.5}, {"end": 0.5}, {"start": 0.5, "end": 0.9}, {"duration": 1.0})
        ]
        digests = [source.digest() for source in sources]
        assert len(set(digests)) == 4
        assert digests[0] == digests[4] == sources[1].content_digest()
        assert {len(digest) for digest in digests} == {64}
        assert pickle.loads(pickle.dumps(sources[3])).digest() == digests[3]

    def test_a_part_of_a_long_recording_costs_no_more_than_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encoded(sine(8_000, 60), 8_000)
        monkeypatch.setattr(intake, "MAX_DURATION_SEC", 30)
        assert len(load({"bytes": data, "start": 40, "end": 41})) == 24_000
        assert refusal({"bytes": data}).reason == "too long"


def test_channels_that_cancel_each_other_are_refused() -> None:
    left = sine(24_000)
    assert "channels cancel each other" in str(refusal(encoded(np.stack([left, -left], axis=1))))
    assert "channels cancel each other" in str(refusal({"array": np.stack([left, -left]), "sampling_rate": 24_000}))
    np.testing.assert_allclose(load(np.stack([left, -0.5 * left])), left / 4, atol=1e-7)  # faint, but there


class TestSizes:
    """WAV and AIFF whose header states less than they hold."""

    TONE = sine(24_000, 2.0)

    @staticmethod
    def with_size(data: bytes, size: int, chunk: bytes = b"data") -> bytes:
        place = data.index(chunk) + 4
        return data[:place] + size.to_bytes(4, "big" if chunk == b"SSND" else "little") + data[place + 4 :]

    @pytest.mark.parametrize("size", [0, 2, 24_000, 48_001])
    def test_what_the_header_leaves_out_is_not_dropped_in_silence(self, size: int) -> None:
        message = str(refusal(self.with_size(encoded(self.TONE), size)))
        assert "more follow it" in message
        assert "ffmpeg -ignore_length 1" in message

    def test_aiff(self) -> None:
        data = encoded(self.TONE, form="AIFF")
        assert len(load(data)) == 48_000
        assert "more follow it" in str(refusal(self.with_size(data, 24_008, b"SSND")))

    @pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF])
    def test_a_length_that_means_until_the_end(self, size: int) -> None:
        np.testing.assert_allclose(load(self.with_size(encoded(self.TONE), size)), self.TONE, atol=1e-4)

    def test_a_second_recording_behind_the_first_is_not_dropped(self) -> None:
        assert "more follow it" in str(refusal(encoded(self.TONE) + encoded(self.TONE)))

    @pytest.mark.parametrize(
        "tail",
        [
            b"LIST" + (400_000).to_bytes(4, "little") + bytes(range(256)) * 1_563,
            b"TAG" + b"x" * 125,
            b"ID3\x03" + b"x" * 100_000,
            bytes(100_000),
            b"xy",
        ],
    )
    def test_tags_chunks_and_zeros_behind_the_audio_are_harmless(self, tail: bytes) -> None:
        np.testing.assert_allclose(load(encoded(self.TONE) + tail), self.TONE, atol=1e-4)

    @pytest.mark.parametrize(
        ("form", "subtype"),
        [
            ("WAV", "ULAW"),
            ("WAV", "PCM_24"),
            ("WAV", "DOUBLE"),
            ("WAVEX", "PCM_16"),
            ("RF64", "PCM_16"),
            ("AIFF", "PCM_24"),
        ],
    )
    def test_truthful_headers_of_every_kind(self, form: str, subtype: str) -> None:
        assert len(load(encoded(self.TONE, form=form, subtype=subtype))) == 48_000
