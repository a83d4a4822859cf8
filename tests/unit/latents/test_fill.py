import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tests.unit.latents import speech_encoders
from tests.unit.latents.speech_encoders import (
    HOP,
    SmallEncoder,
    VibeVoiceEncoder,
    array_source,
    check_store,
    fail_early,
    fill_slowly,
    fill_together,
    fill_with_small_disk,
    ignore,
    mixed_segments,
    noise,
    open_store,
    refuse,
    targets,
    wait_or_be_killed,
)
from vibevoice_finetune.audio.source import AudioSource, load_audio
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.latents import digests, hashing, merge, read_ahead
from vibevoice_finetune.latents import fill as fill_room
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.encode import BatchLimit, StartedBatch, start_within_memory
from vibevoice_finetune.latents.fill import decoding_threads, fill
from vibevoice_finetune.latents.processes import Processes
from vibevoice_finetune.latents.read_ahead import Clip, SourceWork, decode_ahead
from vibevoice_finetune.latents.shards import read_shard
from vibevoice_finetune.latents.store import CutNumber, LatentStore, Part, Segment

# The processes of these tests are forked from one that has imported everything and never computed.
processes = get_context("forkserver")
processes.set_forkserver_preload([speech_encoders.__name__])


def start(target: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = processes.Process(target=target, args=arguments)
    process.start()
    return process


def prompt(source: AudioSource, cut: CutNumber | None = None) -> Segment:
    return Segment(source, normalize=True, cut=cut, semantic=False)


# What is stored


def test_stored_equals_encoding_one_by_one_with_the_model_s_encoders(tmp_path: Path) -> None:
    encoder = VibeVoiceEncoder()
    sources = [
        array_source(noise(count, seed=count), f"row {count}") for count in (24, 25, 1_000, 2_400, 9_999, 24_001)
    ]
    cuts = [CutNumber(seed=0, number=number) for number in range(3)]
    segments = [Segment(source, normalize=True, cut=None, semantic=True) for source in sources]
    segments += [prompt(source, cut) for source in sources for cut in cuts]
    segments += [Segment(sources[2], normalize=False, cut=None, semantic=True)]
    report = fill(open_store(tmp_path, encoder), segments, encoder, refuse)
    store = open_store(tmp_path, encoder)
    check_store(store, segments, encoder)
    assert (report.encoded, report.reused, report.failed) == (len(store), 0, {})
    frames = [store.num_frames(store.key(segment)) for segment in segments[:6]]
    assert frames == [1, 2, 42, 100, 417, 1_001]
    assert report.keys.tolist() == [store.key(segment).encode() for segment in segments]


def test_a_clip_longer_than_a_batch_is_streamed_to_the_same_result(tmp_path: Path) -> None:
    streaming = VibeVoiceEncoder(chunk_samples=50 * 24)
    segments = [
        Segment(array_source(noise(24 * 400 + 5, seed=1)), normalize=True, cut=None, semantic=True),
        *(prompt(array_source(noise(24 * 3, seed=n))) for n in range(3)),
    ]
    store = open_store(tmp_path, streaming)
    fill(store, segments, streaming, refuse, batch_sec=24 * 30 / 24_000)
    check_store(store, segments, VibeVoiceEncoder(), atol=1e-5)


def test_audio_files_are_decoded_resampled_and_cut(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    path = tmp_path / "clip.flac"
    stereo = np.stack([noise(44_100, seed=1), noise(44_100, seed=2)], axis=1)
    soundfile.write(path, stereo, 44_100)
    source = AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where="row")
    segments = [Segment(source, normalize=True, cut=None, semantic=True), prompt(source, CutNumber(0, 0))]
    store = open_store(tmp_path / "store", encoder)
    report = fill(store, segments, encoder, refuse)
    check_store(store, segments, encoder)
    assert store.num_frames(store.key(segments[0])) == 24_000 // HOP
    # 1 s, and a cut between a quarter of it and a half.
    length_draw = CutNumber(0, 0).drawn(source.digest()).length_draw
    assert report.audio_sec == pytest.approx(1.25 + length_draw * 0.25, abs=2 * HOP / 24_000)


# What is encoded


def test_duplicates_are_encoded_once_and_prompts_without_semantic_features(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    clips = targets(6)
    both = [prompt(clip.source) for clip in clips[:3]]  # the same key as the target
    again = targets(6)  # equal audio in other objects
    only_prompts = [prompt(segment.source) for segment in targets(4, first=6)]
    report = fill(open_store(tmp_path, encoder), [*both, *clips, *again, *only_prompts, *only_prompts], encoder, refuse)
    assert report.encoded == encoder.num_rows == 10
    assert encoder.semantic_rows == 6


def test_a_filled_store_encodes_nothing(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    fill(open_store(tmp_path, encoder), targets(8), encoder, refuse)
    report = fill(open_store(tmp_path, encoder), targets(12), encoder, refuse)
    assert (report.encoded, report.reused) == (4, 8)
    assert encoder.num_rows == 12
    assert "4 segments encoded" in report.summary()
    assert "8 found in the store" in report.summary()


def test_a_prompt_in_the_store_is_encoded_again_as_a_target(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    store = open_store(tmp_path, encoder)
    (target,) = targets(1)
    fill(store, [prompt(target.source)], encoder, refuse)
    report = fill(store, [target, prompt(target.source)], encoder, refuse)
    assert (report.encoded, report.reused, encoder.semantic_rows) == (1, 0, 1)
    assert encoder.num_rows == 1  # its acoustic latents were there
    check_store(store, [target], encoder)


def test_each_encoder_is_asked_for_once(tmp_path: Path) -> None:
    """Both are large; only one is in memory, and they take turns once, however much audio there is."""
    encoder = SmallEncoder()
    segments = [*targets(30), *(prompt(target.source, CutNumber(0, 0)) for target in targets(30))]
    fill(open_store(tmp_path, encoder), segments, encoder, refuse, batch_sec=40 * HOP / 24_000)
    assert encoder.parts == [Part.ACOUSTIC, Part.SEMANTIC]
    assert (encoder.num_rows, encoder.semantic_rows) == (60, 30)


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    report = fill(open_store(tmp_path, encoder), [], encoder, refuse)
    assert (report.encoded, report.reused, report.failed, encoder.shapes) == (0, 0, {}, [])


class Lazy(Sequence[Segment]):
    """Builds a segment when it is asked for, and counts how many live at once."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Segment:  # type: ignore[override]
        return targets(1, first=number)[0]


def test_a_lazy_sequence_is_enough(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    store = open_store(tmp_path, encoder)
    report = fill(store, Lazy(150), encoder, refuse)
    assert report.encoded == 150
    check_store(store, targets(150), encoder)


def test_batches_respect_the_limit_and_waste_little(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    fill(open_store(tmp_path, encoder), targets(200), encoder, refuse, batch_sec=40 * HOP / 24_000)
    assert max(rows * length for rows, length in encoder.shapes) <= 40 * HOP
    padded = sum(rows * length for rows, length in encoder.shapes)
    assert padded < 1.15 * sum(HOP * (3 + n % 10) for n in range(200))


# Nobody waits for nothing


def test_the_first_windows_are_small_so_that_the_encoder_starts_early(tmp_path: Path) -> None:
    clip = prompt(array_source(noise(HOP, seed=1)))
    works = [SourceWork(clip.source, clip.source.digest(), ((number, clip),)) for number in range(40)]
    windows = list(
        decode_ahead(iter(works), HOP, DigestCache(tmp_path), first_samples=HOP, window_samples=8 * HOP, num_threads=3)
    )
    sizes = [len(window) for window in windows]
    assert sizes == [1, 2, 4, 8, 8, 8, 8, 1]
    # In order, whatever is finished first: batches, and the last bits of latents, are the same in every run.
    assert [decoded.work.numbers[0] for window in windows for decoded in window] == list(range(40))


@dataclass
class Copied:
    """Stands for a device's event; notes when somebody waits for it."""

    number: int
    events: list[str]

    def synchronize(self) -> None:
        self.events.append(f"waited for {self.number}")


def test_a_device_has_the_next_batch_before_the_last_one_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def start(encoder: SmallEncoder, part: Part, clips: list[Clip], limit: BatchLimit) -> list[StartedBatch]:
        number = len(encoder.shapes)
        events.append(f"started {number}")
        return [replace(one, copied=Copied(number, events)) for one in start_within_memory(encoder, part, clips, limit)]

    monkeypatch.setattr(fill_room, "start_within_memory", start)
    encoder = SmallEncoder()
    store = open_store(tmp_path, encoder)
    clips = [prompt(target.source) for target in targets(6)]
    fill(store, clips, encoder, refuse, batch_sec=1e-9)  # a clip a batch
    pairs = [f"started {n + 1} waited for {n}" for n in range(5)]
    assert " ".join(events) == " ".join(["started 0", *pairs, "waited for 5"])
    check_store(store, clips, SmallEncoder())


@pytest.mark.parametrize(("cores", "processes", "expected"), [(2, None, 2), (64, None, 8), (64, 16, 4), (4, 8, 1)])
def test_threads_are_this_process_s_share_of_the_cores(
    cores: int, processes: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert decoding_threads() == expected


# What cannot be encoded


def test_failures_are_told_once_a_source_and_every_segment_is_known(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    gone = AudioSource(path=tmp_path / "gone.wav", data=None, array=None, sampling_rate_hz=None, where="row gone")
    noise_bytes = AudioSource(path=None, data=b"no audio", array=None, sampling_rate_hz=None, where="row bytes")
    short = array_source(noise(HOP - 1, seed=1), "row short")
    silent = array_source(np.zeros(1_000, dtype=np.float32), "row silent")
    bad = [prompt(source) for source in (gone, noise_bytes, short, silent)]
    bad_cut = prompt(silent, CutNumber(0, 0))
    bad_again = prompt(array_source(np.zeros(1_000, dtype=np.float32), "row silent too"))
    told: list[tuple[str, str]] = []
    store = open_store(tmp_path, encoder)
    report = fill(
        store,
        [*bad, *targets(3), bad_cut, bad_again],
        encoder,
        lambda error, reason: told.append((str(error), reason)),
    )
    assert sorted(reason for _, reason in told) == ["missing file", "silent audio", "too short", "undecodable audio"]
    assert {number: error.reason for number, error in report.failed.items()} == {
        0: "missing file",
        1: "undecodable audio",
        2: "too short",
        3: "silent audio",
        7: "silent audio",
        8: "silent audio",
    }
    assert report.encoded == 3
    assert "6 cannot be encoded" in report.summary()
    assert any(
        message.startswith("row short: audio is 0.00 s (39 samples at 24 kHz); at least one frame (0.002 s) is needed")
        for message, _ in told
    )
    check_store(store, targets(3), encoder)


def test_the_first_failure_may_end_it_and_what_was_done_stays(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    silent = array_source(np.zeros(1_000, dtype=np.float32), "row silent")
    with pytest.raises(DataError, match="row silent"):
        fill(
            open_store(tmp_path, encoder),
            [*targets(40), prompt(silent)],
            encoder,
            refuse,
            batch_sec=HOP / 24_000,
            num_threads=1,
        )
    kept = len(open_store(tmp_path, encoder))
    assert 0 < kept == encoder.num_rows  # the windows before that of the silent clip


def test_what_the_encoder_makes_of_a_clip_must_be_finite(tmp_path: Path) -> None:
    class Overflowing(SmallEncoder):
        def encode(self, part: Part, waveform_BN: Tensor) -> Tensor:
            latents = super().encode(part, waveform_BN)
            too_loud = waveform_BN.abs().amax(1) > 5
            latents[too_loud, 0] = torch.inf
            return latents

    loud = Segment(array_source(noise(HOP * 5, seed=1) * 90, "row loud"), normalize=False, cut=None, semantic=True)
    encoder = Overflowing()
    store = open_store(tmp_path, encoder)
    report = fill(store, [*targets(4), loud], encoder, ignore)
    assert {number: error.reason for number, error in report.failed.items()} == {4: "not encodable"}
    assert "row loud" in str(report.failed[4])
    assert len(store) == 4


# Damage


def test_a_flipped_bit_costs_one_entry_and_a_torn_shard_its_entries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = SmallEncoder()
    segments = targets(24)
    for first in (0, 8, 16):
        fill(open_store(tmp_path, encoder), segments[first : first + 8], encoder, refuse)
    store = open_store(tmp_path, encoder)

    def shard_with(segment: Segment) -> tuple[Path, int]:
        """The shard with its acoustic latents, and where in it they are."""
        needle = store.read(store.key(segment)).acoustic_FC.tobytes()
        found = [(path, path.read_bytes().find(needle)) for path in store.shard_folder.glob("*.safetensors")]
        return next((path, place) for path, place in found if place >= 0)

    flipped, place = shard_with(segments[3])
    torn, _ = shard_with(segments[12])
    content = bytearray(flipped.read_bytes())
    content[place + 5] ^= 1
    flipped.write_bytes(content)
    os.truncate(torn, torn.stat().st_size - 1)
    encoder = SmallEncoder()
    report = fill(open_store(tmp_path, encoder), segments, encoder, refuse)
    assert (report.encoded, report.reused, report.damaged) == (9, 15, 1)
    assert (encoder.num_rows, encoder.semantic_rows) == (9, 0)
    assert "set aside" in caplog.text
    check_store(open_store(tmp_path, encoder), segments, SmallEncoder())
    assert fill(open_store(tmp_path, encoder), segments, encoder, refuse).encoded == 0


# Audio that changes


def write_wav(path: Path, seed: int) -> AudioSource:
    """A clip of 8 frames; all have the same size."""
    soundfile.write(path, noise(HOP * 8, seed), 24_000, subtype="PCM_16")
    return AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where=f"row {path.name}")


def replacing(monkeypatch: pytest.MonkeyPatch, replace_it: Callable[[AudioSource], None]) -> None:
    """Something is done to the file just before it is decoded: after it was hashed."""

    def load(source: AudioSource) -> object:
        replace_it(source)
        return load_audio(source)

    monkeypatch.setattr(read_ahead, "load_audio", load)


def test_audio_replaced_between_hashing_and_decoding_is_stored_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, store = SmallEncoder(), open_store(tmp_path / "store", SmallEncoder())
    sources = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(6)]
    segments = [Segment(source, normalize=True, cut=None, semantic=True) for source in sources]
    segments += [prompt(source, CutNumber(0, 0)) for source in sources]
    replaced: set[Path] = set()

    def once(source: AudioSource) -> None:
        assert source.path is not None
        if source.path not in replaced and source.path.name != "3.wav":
            replaced.add(source.path)
            write_wav(source.path, seed=100 + int(source.path.stem))

    replacing(monkeypatch, once)
    report = fill(store, segments, encoder, refuse)
    assert (report.failed, len(replaced)) == ({}, 5)
    assert report.keys.tolist() == [store.key(segment).encode() for segment in segments]
    check_store(store, segments, SmallEncoder())  # against the files as they are now
    again = open_store(tmp_path / "store", SmallEncoder())
    first = [write_wav(tmp_path / f"{n}.wav", seed=n) for n in range(6)]
    before = [Segment(source, normalize=True, cut=None, semantic=True) for source in first]
    found = [segment for segment in before if again.key(segment) in again]
    check_store(again, found, SmallEncoder())  # nothing stands under the digest of what was there first
    assert len(found) == 1


def test_audio_that_keeps_changing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, store = SmallEncoder(), open_store(tmp_path / "store", SmallEncoder())
    seeds = iter(range(100, 200))
    source = write_wav(tmp_path / "clip.wav", seed=0)
    replacing(monkeypatch, lambda one: one.path and write_wav(one.path, next(seeds)) and None)
    report = fill(store, [Segment(source, normalize=True, cut=None, semantic=True)], encoder, ignore)
    assert {number: error.reason for number, error in report.failed.items()} == {0: "changing audio"}
    assert "row clip.wav" in str(report.failed[0])
    assert len(store) == 0


def test_audio_removed_between_hashing_and_decoding_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_wav(tmp_path / "clip.wav", seed=0)
    replacing(monkeypatch, lambda one: one.path.unlink(missing_ok=True) if one.path else None)
    encoder = SmallEncoder()
    report = fill(open_store(tmp_path / "store", encoder), [prompt(source)], encoder, ignore)
    assert [error.reason for error in report.failed.values()] == ["missing file"]


# Small shards


def num_shards(folder: Path) -> int:
    return len(list(folder.glob("small/*.safetensors")))


def test_many_small_shards_are_merged_when_a_filling_ends(tmp_path: Path) -> None:
    reader = open_store(tmp_path, SmallEncoder())
    for first in range(0, 24, 2):  # 12 fillings
        fill(open_store(tmp_path, SmallEncoder()), targets(2, first), SmallEncoder(), refuse)
        if first == 2:
            reader.reload()
    assert num_shards(tmp_path) == 24
    fill(open_store(tmp_path, SmallEncoder()), targets(10, 24), SmallEncoder(), refuse, batch_sec=1e-9, max_age_sec=0.0)
    assert num_shards(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # no lock stays
    check_store(open_store(tmp_path, SmallEncoder()), targets(34), SmallEncoder())
    check_store(reader, targets(4), SmallEncoder())  # its shards are gone, their entries are not


def test_a_kill_while_shards_are_merged_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "FULL_SHARD_FRAMES", 200)  # so that what is merged counts as large
    fill_pieces = {"batch_sec": 1e-9, "max_age_sec": 0.0}
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", killed_at_shards)
        with pytest.raises(KeyboardInterrupt):
            fill(open_store(tmp_path, SmallEncoder()), targets(20), SmallEncoder(), refuse, **fill_pieces)  # type: ignore[arg-type]
    assert num_shards(tmp_path) > 40
    encoder = SmallEncoder()
    report = fill(open_store(tmp_path, encoder), targets(21), encoder, refuse)
    assert (report.encoded, report.reused) == (1, 20)
    check_store(open_store(tmp_path, encoder), targets(21), SmallEncoder())
    kind = open_store(tmp_path, encoder).kind
    shards = [read_shard(path, kind) for path in (tmp_path / "small").glob("*.safetensors")]
    assert sum(len(shard) for shard in shards) < 2 * 21 + 10


unlink = Path.unlink


def killed_at_shards(path: Path, missing_ok: bool = False) -> None:
    if path.suffix == ".safetensors":
        raise KeyboardInterrupt
    unlink(path, missing_ok)


# Kills, several processes, full disks


def wait_for_shards(folder: Path, count: int, process: ForkServerProcess) -> None:
    deadline_sec = time.monotonic() + 60
    while len(list(folder.glob("*.safetensors"))) < count:
        assert time.monotonic() < deadline_sec, "the process did not come so far"
        assert process.exitcode is None, "the process ended too early"
        time.sleep(0.005)


def test_a_kill_at_any_moment_loses_only_what_was_not_yet_published(tmp_path: Path) -> None:
    segments = targets(120)
    shard_folder = tmp_path / "small"
    rng = random.Random(0)
    published = 0
    for _ in range(4):
        process = start(fill_slowly, tmp_path, len(segments))
        wait_for_shards(shard_folder, published + 3, process)
        time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -9
        store = open_store(tmp_path, SmallEncoder())
        assert len(store) >= published + 3  # nothing that was published is lost, and the next start goes on from there
        published = len(store)
        kept = [prompt(segment.source) for segment in segments if store.key(segment) in store]
        check_store(store, kept, SmallEncoder())  # acoustic latents: the second pass has not begun
    assert published < len(segments)
    encoder = SmallEncoder()
    report = fill(open_store(tmp_path, encoder), segments, encoder, refuse)
    # What the kills left has acoustic latents: these are kept, and all is complete once its semantic features are.
    assert (report.reused, report.encoded) == (0, 120)
    assert (encoder.num_rows, encoder.semantic_rows) == (120 - published, 120)
    check_store(open_store(tmp_path, encoder), segments, SmallEncoder())


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    both = [start(fill_slowly, tmp_path, 40) for _ in range(2)]
    for process in both:
        process.join(240)  # a limit for one that hangs; on a busy machine starting takes a while
        assert process.exitcode == 0
    encoder = SmallEncoder()
    store = open_store(tmp_path, encoder)
    assert len(store) == 40
    assert fill(store, targets(40), encoder, refuse).encoded == 0
    check_store(store, targets(40), encoder)


def test_shards_that_are_merged_while_the_folder_is_read_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the first reading, another process replaces every shard that was listed."""
    encoder = SmallEncoder()
    store = open_store(tmp_path, encoder)
    fill(store, targets(5), encoder, refuse, batch_sec=1e-9, max_age_sec=0.0)
    small = sorted(store.shard_folder.glob("*.safetensors"))
    assert len(small) == 10
    monkeypatch.setattr(merge, "MERGE_FROM", 2)
    open_one = LatentStore._open

    def merged_first(self: LatentStore, path: Path) -> object:
        monkeypatch.setattr(LatentStore, "_open", open_one)
        merge.merge_small_shards(store)
        assert not any(one.exists() for one in small)
        return open_one(self, path)

    monkeypatch.setattr(LatentStore, "_open", merged_first)
    other = open_store(tmp_path, encoder)
    assert len(other) == 5
    check_store(other, targets(5), encoder)


def run_together(folder: Path, *, skip: bool) -> list[str]:
    """Three processes fill together; what each has to say."""
    answers = [folder / f"answer{index}" for index in range(3)]
    started = [start(fill_together, folder, index, 3, mixed_segments, skip, path) for index, path in enumerate(answers)]
    for process in started:
        process.join(240)  # a limit for one that hangs; on a busy machine starting takes a while
        assert process.exitcode == 0
    return [answer.read_text() for answer in answers]


def test_processes_encode_each_segment_once_and_all_know_of_all_failures(tmp_path: Path) -> None:
    answers = run_together(tmp_path, skip=True)
    # 19 segments: 16 different good ones, one of them twice, and two bad ones.
    expected = "encoded 16 reused 0 failed {8: 'too short', 17: 'silent audio'}"
    assert all(answer.startswith(expected) for answer in answers)
    assert all(answer.endswith("store 16") for answer in answers)
    own = [int(answer.split("own ")[1].split()[0]) for answer in answers]
    assert sum(own) == 16
    assert max(own) < 16


def test_the_error_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    answers = run_together(tmp_path, skip=False)
    assert answers[0].startswith(("row short: ", "row silent: "))
    assert len(set(answers)) == 1


def two(target: Callable[..., None], folder: Path) -> tuple[list[int | None], list[str]]:
    """Two processes; their exit codes, and what they had to say."""
    answers = [folder / f"answer{index}" for index in range(2)]
    both = [start(target, folder, index, answer) for index, answer in enumerate(answers)]
    for process in both:
        process.join(240)  # a limit for one that hangs; on a busy machine starting takes a while
    return [process.exitcode for process in both], [answer.read_text() for answer in answers if answer.exists()]


def test_a_killed_process_ends_the_other_with_a_message(tmp_path: Path) -> None:
    codes, said = two(wait_or_be_killed, tmp_path)
    assert codes == [0, -9]
    assert len(said) == 1
    assert "another of the processes that encode audio together has ended" in said[0]
    assert len(open_store(tmp_path, SmallEncoder())) > 0  # what the other one had done is kept


def test_a_process_that_fails_ends_the_other_before_its_part_is_done(tmp_path: Path) -> None:
    began = time.monotonic()
    codes, said = two(fail_early, tmp_path)
    assert codes == [0, 0]
    assert said == ["the second process has no memory"] * 2
    assert time.monotonic() - began < 25  # its part alone takes 50 s
    assert list(tmp_path.glob(".stop*")) == []


def test_machines_that_do_not_share_the_folder_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill_room, "VISIBLE_WITHIN_SEC", 0.0)
    meeting = threading.Barrier(2)
    said: list[list[object]] = [[], []]

    def fill_as(index: int) -> str:
        def gather(value: object) -> list[object]:
            said[index].append(value)
            meeting.wait(30)
            return [said[0][len(said[index]) - 1], said[1][len(said[index]) - 1]]

        encoder = SmallEncoder()
        try:
            processes = Processes(index, 2, gather)
            fill(open_store(tmp_path / str(index), encoder), targets(20), encoder, refuse, processes=processes)
        except UserError as error:
            return str(error)
        return "no error"

    with ThreadPoolExecutor(2) as pool:
        for message in pool.map(fill_as, range(2)):
            assert "one folder that all machines share" in message


def test_a_full_disk_is_said_clearly_and_costs_nothing_that_was_complete(tmp_path: Path) -> None:
    encoder = SmallEncoder()
    fill(open_store(tmp_path, encoder), targets(10), encoder, refuse)
    answer = tmp_path / "answer"
    process = start(fill_with_small_disk, tmp_path, 200, 8_192, answer)
    process.join(240)  # a limit for one that hangs; on a busy machine starting takes a while
    assert process.exitcode == 0
    said = answer.read_text()
    assert "cannot be written (File too large)" in said
    assert "free some space" in said
    assert "\n" not in said
    assert list(tmp_path.rglob("*.partial")) == []
    report = fill(open_store(tmp_path, encoder), targets(200), encoder, refuse)
    assert (report.reused, report.encoded) == (10, 190)
    check_store(open_store(tmp_path, encoder), targets(200), SmallEncoder())


def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    encoder = SmallEncoder()
    hashed: list[AudioSource] = []
    monkeypatch.setattr(AudioSource, "content_digest", hashed.append)
    with pytest.raises(UserError, match=r"store.*cannot be written.*choose another place with --latents_dir") as caught:
        fill(open_store(tmp_path / "store", encoder), targets(3), encoder, refuse)
    assert "\n" not in str(caught.value)
    assert (hashed, encoder.shapes) == ([], [])


def test_a_full_store_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SmallEncoder()
    fill(open_store(tmp_path, encoder), targets(5), encoder, refuse)

    def refused(path: Path, *_: object) -> None:
        raise WriteError(f"{path}: cannot be written (Permission denied)")

    for room in (fill_room, hashing):
        monkeypatch.setattr(room, "check_writable", refused)
    monkeypatch.setattr(digests, "write_file", refused)
    assert fill(open_store(tmp_path, encoder), targets(5), encoder, refuse).reused == 5
    with pytest.raises(UserError, match="Permission denied"):
        fill(open_store(tmp_path, encoder), targets(6), encoder, refuse)


# Progress


def test_a_log_gets_lines_and_only_from_the_first_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vibevoice_finetune.latents import progress

    monkeypatch.setattr(progress, "LINE_EVERY_SEC", 0.05)
    encoder = SmallEncoder(delay_sec=0.02)
    fill(open_store(tmp_path, encoder), targets(12), encoder, refuse, batch_sec=1e-9)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("encoding acoustic latents: ")]
    assert len(lines) >= 2
    assert " of 12, " in lines[0]
    assert " s of audio a second, about " in lines[0]
    assert lines[0].endswith(" left")
    with progress.FillProgress(shown=False) as silent:
        silent.start("encoding latents", 2)
        time.sleep(0.06)
        silent.update(1, 1.0)
    assert capsys.readouterr().err == ""
