import os
import pickle
import resource
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.unit.latents.speech_encoders import array_source, noise
from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents.shards import KEY_TYPE, write_shard
from vibevoice_finetune.latents.store import CutNumber, Keys, Latents, LatentStore, Part, RandomCut, Segment


def new_store(folder: Path, fingerprint: str = "encoder") -> LatentStore:
    return LatentStore(folder, fingerprint, acoustic_dim=2, semantic_dim=3)


def latents(frames: int, seed: int, semantic: bool = True) -> Latents:
    rng = np.random.default_rng(seed)
    acoustic_FC = rng.normal(size=(frames, 2)).astype(np.float32)
    return Latents(acoustic_FC, rng.normal(size=(frames, 3)).astype(np.float32) if semantic else None)


def key(number: int) -> str:
    return f"{number:032x}"


def key_array(*numbers: int) -> Keys:
    return np.array([key(number) for number in numbers], dtype=KEY_TYPE)


def write(store: LatentStore, **entries: Latents) -> dict[Part, Path]:
    """A shard for each part; entries named k1, k2 … ."""
    before = set(store.shard_folder.glob("*"))
    with store.writer() as writer:
        for name, entry in entries.items():
            writer.add(key(int(name[1:])), entry)
    store.reload()
    return {part_of(path): path for path in set(store.shard_folder.glob("*")) - before}


def part_of(path: Path) -> Part:
    with safe_open(path, "numpy") as file:
        return Part(file.metadata()["part"])


def same(one: Latents, other: Latents) -> bool:
    if (one.semantic_FS is None) != (other.semantic_FS is None):
        return False
    semantic = one.semantic_FS is None or np.array_equal(one.semantic_FS, other.semantic_FS)  # type: ignore[arg-type]
    return semantic and np.array_equal(one.acoustic_FC, other.acoustic_FC)


def flip(path: Path, needle: bytes, bit: int = 3) -> None:
    """Flip one bit of the first byte of `needle` in the file."""
    content = bytearray(path.read_bytes())
    content[content.index(needle)] ^= 1 << bit
    path.write_bytes(content)


# Keys


def segment(**changes: object) -> Segment:
    source = array_source(noise(4_000, seed=0))
    return Segment(**({"source": source, "normalize": True, "cut": None, "semantic": True} | changes))  # type: ignore[arg-type]


def test_key_depends_on_audio_cut_and_normalisation_only(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    same_key = store.key(segment())
    assert len(same_key) == 32
    assert store.key(segment(source=array_source(noise(4_000, seed=0), "another row"))) == same_key
    assert store.key(segment(semantic=False)) == same_key
    others = [
        segment(source=array_source(noise(4_000, seed=1))),
        segment(normalize=False),
        segment(cut=CutNumber(1, 0)),
        segment(cut=CutNumber(1, 1)),
        segment(cut=CutNumber(2, 0)),
        segment(source=array_source(noise(4_000, seed=1)), cut=CutNumber(1, 0)),
    ]
    assert len({same_key, *map(store.key, others)}) == 7
    assert store.key(segment(cut=CutNumber(1, 0))) == store.key(segment(cut=CutNumber(1, 0)))


def test_another_encoder_finds_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, k1=latents(4, seed=1))
    assert key(1) in new_store(tmp_path)
    assert key(1) not in new_store(tmp_path, "retrained")


# Cuts


@pytest.mark.parametrize("duration_sec", [0.2, 1.0, 13.7, 40.0, 3_600.0])
def test_cut_is_between_5_s_or_a_quarter_and_15_s_or_a_half(duration_sec: float) -> None:
    num_samples = int(duration_sec * 24_000)
    draws = np.random.default_rng(0).random((200, 2))
    spans = np.array([RandomCut(*draw).span(num_samples, hop_length=400) for draw in draws.tolist()])
    lengths = np.diff(spans)[:, 0]
    assert (spans[:, 0] >= 0).all()
    assert (spans[:, 1] <= num_samples).all()
    shortest, longest = min(5 * 24_000, num_samples / 4), min(15 * 24_000, num_samples / 2)
    assert (lengths >= max(400, int(shortest))).all()
    assert (lengths <= max(400, longest)).all()
    # The whole range is used: the extremes of 200 draws come within a tenth of it.
    assert lengths.max() - lengths.min() > 0.9 * (longest - shortest) - 400
    assert spans[:, 0].min() < 0.1 * num_samples
    assert spans[:, 1].max() > 0.9 * num_samples


def test_cuts_are_drawn_evenly_by_seed_number_and_content() -> None:
    cuts = [CutNumber(seed, number).drawn(digest) for seed in range(20) for number in range(10) for digest in "abcdef"]
    draws = np.array([(cut.length_draw, cut.start_draw) for cut in cuts])
    assert ((draws >= 0) & (draws < 1)).all()
    assert len(np.unique(draws)) == draws.size
    # 1,200 draws from [0, 1): the mean's standard deviation is 0.289 / sqrt(1,200) = 0.0083.
    np.testing.assert_allclose(draws.mean(axis=0), 0.5, atol=0.04)
    assert abs(np.corrcoef(draws.T)[0, 1]) < 0.15


def test_cut_of_a_clip_of_a_frame_or_two_is_a_frame() -> None:
    assert RandomCut(0.9, 0.9).span(num_samples=100, hop_length=100) == (0, 100)
    assert RandomCut(0.0, 0.5).span(num_samples=200, hop_length=100) == (50, 150)
    assert RandomCut(0.0, 0.5).span(num_samples=60, hop_length=100) == (0, 60)


# What is written is read


def test_entries_of_several_shards_are_read_as_written(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    entries = {f"k{n}": latents(1 + n % 4, seed=n, semantic=n % 3 > 0) for n in range(20)}
    write(store, **dict(list(entries.items())[:13]))
    write(store, **dict(list(entries.items())[13:]))
    again = new_store(tmp_path)
    assert len(again) == 20
    for name, entry in entries.items():
        assert same(again.read(key(int(name[1:]))), entry)
        assert again.num_frames(key(int(name[1:]))) == len(entry.acoustic_FC)
    assert key(20) not in again
    with pytest.raises(KeyError):
        again.read(key(20))
    with pytest.raises(KeyError):
        again.num_frames(key(20))


def test_shard_is_a_safetensors_file(tmp_path: Path) -> None:
    paths = write(new_store(tmp_path), k1=latents(4, seed=1), k2=latents(2, seed=2, semantic=False))
    with safe_open(paths[Part.ACOUSTIC], "numpy") as file:
        assert file.metadata()["fingerprint"] == "encoder"
        assert file.metadata()["arithmetic"] == "float32"
        np.testing.assert_array_equal(file.get_tensor("frames"), [4, 2])
        np.testing.assert_array_equal(file.get_tensor("latents")[4:], latents(2, seed=2).acoustic_FC)
    with safe_open(paths[Part.SEMANTIC], "numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("latents"), latents(4, seed=1).semantic_FS)


def test_the_arithmetic_is_recorded_and_makes_no_difference(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    entry = latents(3, seed=1)
    with store.writer("tf32") as writer:
        writer.add(key(1), entry)
    store.reload()
    write(store, k2=entry)
    assert same(store.read(key(1)), entry)
    assert same(store.read(key(2)), entry)
    kinds = []
    for path in store.shard_folder.iterdir():
        with safe_open(path, "numpy") as file:
            kinds.append(file.metadata()["arithmetic"])
    assert sorted(kinds) == ["float32", "float32", "tf32", "tf32"]


def test_an_entry_without_semantic_features_is_missing_for_a_target(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, k1=latents(4, seed=1, semantic=False))
    assert store.missing(key_array(1, 2), Part.ACOUSTIC).tolist() == [False, True]
    assert store.missing(key_array(1, 2), Part.SEMANTIC).tolist() == [True, True]
    full = latents(4, seed=1)
    write(store, k1=full)  # its acoustic latents a second time, as two jobs at once would
    for reader in (store, new_store(tmp_path)):  # whichever shard comes first by name
        assert not reader.missing(key_array(1), Part.SEMANTIC).any()
        assert same(reader.read(key(1)), full)
        assert len(reader) == 1


def test_an_empty_or_absent_folder_is_an_empty_store(tmp_path: Path) -> None:
    store = new_store(tmp_path / "absent")
    assert len(store) == 0
    assert key(1) not in store
    assert store.missing(key_array(1), Part.ACOUSTIC).tolist() == [True]
    assert list(store.check(key_array(1))) == []
    assert not (tmp_path / "absent").exists()


def test_reading_gives_arrays_that_torch_takes_and_the_file_never_feels(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    entry = latents(4, seed=1)
    path = write(store, k1=entry)[Part.ACOUSTIC]
    content = path.read_bytes()
    read = store.read(key(1))
    torch.from_numpy(read.acoustic_FC).mul_(0)  # no warning about read-only arrays, no write
    assert path.read_bytes() == content
    assert same(new_store(tmp_path).read(key(1)), entry)


def test_store_is_read_in_a_spawned_process_after_pickling(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    entry = latents(4, seed=1)
    write(store, k1=entry)
    assert same(pickle.loads(pickle.dumps(store)).read(key(1)), entry)


def _read_all(store: LatentStore, numbers: range) -> bool:
    return all(same(store.read(key(n)), latents(1 + n % 5, seed=n)) for n in numbers)


def test_store_is_read_by_forked_workers_at_once(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, **{f"k{n}": latents(1 + n % 5, seed=n) for n in range(100)})
    context = get_context("fork")
    pipes = []
    for _ in range(3):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda out=sender: out.send(_read_all(store, range(100))))
        process.start()
        pipes.append((receiver, process))
    assert [receiver.recv() for receiver, _ in pipes] == [True] * 3
    for _, process in pipes:
        process.join(10)


# Damage


def damaged_store(folder: Path, damage: Callable[[Path], None]) -> LatentStore:
    """Two shards of each part, k1 k2 k3 and k4; `damage` is done to both of the first."""
    store = new_store(folder)
    first = write(store, k1=latents(4, seed=1), k2=latents(5, seed=2), k3=latents(3, seed=3, semantic=False))
    write(store, k4=latents(2, seed=4))
    for path in first.values():
        damage(path)
    return new_store(folder)


@pytest.mark.parametrize("part", ["acoustic_FC", "semantic_FS"])
def test_a_flipped_bit_is_found_and_only_its_entry_is_lost(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    needle = getattr(latents(5, seed=2), part).tobytes()

    def damage(path: Path) -> None:
        if needle in path.read_bytes():
            flip(path, needle)

    store = damaged_store(tmp_path, damage)
    with pytest.raises(DataError, match=r"damaged.*start the same command again"):
        store.read(key(2))
    assert sum(damaged for _, damaged in store.check(key_array(1, 3, 4))) == 0  # what is not needed is not looked at
    assert sum(damaged for _, damaged in store.check(key_array(1, 2, 3, 4))) == 1
    assert f"1 of {3 if part == 'acoustic_FC' else 2} entries are damaged" in caplog.text
    store.reload()
    damaged = Part.ACOUSTIC if part == "acoustic_FC" else Part.SEMANTIC
    assert store.missing(key_array(1, 2), damaged).tolist() == [False, True]
    for number, semantic in ((1, True), (3, False)):
        assert same(store.read(key(number)), latents([0, 4, 0, 3][number], seed=number, semantic=semantic))
    assert len(list(store.shard_folder.glob("*.bad"))) == 1
    assert sum(damaged for _, damaged in new_store(tmp_path).check(key_array(1, 3, 4))) == 0


def test_every_single_bit_flip_is_found_or_changes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    entries = {1: latents(2, seed=1), 2: latents(1, seed=2, semantic=False)}
    paths = write(store, **{f"k{number}": entry for number, entry in entries.items()})
    rng = np.random.default_rng(0)
    for path in paths.values():
        good = path.read_bytes()
        for place in range(len(good)):
            path.write_bytes(good[:place] + bytes([good[place] ^ (1 << rng.integers(8))]) + good[place + 1 :])
            store = new_store(tmp_path)
            for number, entry in entries.items():
                if key(number) not in store:
                    continue
                try:
                    read = store.read(key(number))
                except DataError:
                    continue
                assert np.array_equal(read.acoustic_FC, entry.acoustic_FC), f"byte {place}"
                if read.semantic_FS is not None:
                    assert np.array_equal(read.semantic_FS, entry.semantic_FS), f"byte {place}"  # type: ignore[arg-type]
        path.write_bytes(good)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_shard_is_set_aside_and_the_others_are_used(
    tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture
) -> None:
    store = damaged_store(tmp_path, lambda path: os.truncate(path, int(path.stat().st_size * keep)))
    assert [key(n) in store for n in (1, 2, 3, 4)] == [False, False, False, True]
    assert "damaged, not used" in caplog.text
    store.clean()
    assert len(list(store.shard_folder.glob("*.bad"))) == 2
    caplog.clear()
    assert key(4) in new_store(tmp_path)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 8 + b"{}",  # a header of 2^64 - 1 bytes
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x02\0\0\0\0\0\0\0[]",
        b"\x04\0\0\0\0\0\0\0null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        b"hello, world, this is no shard",
    ],
)
def test_a_file_that_is_no_shard_does_no_harm(tmp_path: Path, content: bytes) -> None:
    store = new_store(tmp_path)
    write(store, k1=latents(4, seed=1))
    (store.shard_folder / "stray.safetensors").write_bytes(content)
    assert len(new_store(tmp_path)) == 1


def test_a_shard_of_another_encoder_is_neither_used_nor_set_aside(tmp_path: Path) -> None:
    other = new_store(tmp_path, "other")
    path = write(other, k1=latents(4, seed=1))[Part.ACOUSTIC]
    store = new_store(tmp_path)
    store.shard_folder.mkdir()
    (store.shard_folder / path.name).write_bytes(path.read_bytes())
    store.reload()
    store.clean()
    assert len(store) == 0
    assert (store.shard_folder / path.name).exists()


def test_a_shard_that_vanishes_is_forgotten(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, k1=latents(4, seed=1))[Part.ACOUSTIC].unlink()
    assert key(1) in store  # the folder has not been looked at
    with pytest.raises(KeyError):
        store.read(key(1))
    assert key(1) not in store


@pytest.mark.parametrize("how", ["cut to nothing", "cut", "zeroed"])
def test_a_shard_damaged_while_the_store_is_open_is_one_clear_error(tmp_path: Path, how: str) -> None:
    """With a mapped file, the first two end the process (SIGBUS), the last reads as latents of zeros."""
    store = new_store(tmp_path)
    path = write(store, k1=latents(4, seed=1), k2=latents(2_001, seed=2))[Part.ACOUSTIC]
    size = path.stat().st_size
    with path.open("r+b") as file:
        if how == "zeroed":
            file.write(b"\0" * size)
        else:
            file.truncate(0 if how == "cut to nothing" else size - 100)
    assert store.num_frames(key(2)) == 2_001  # the index is in memory
    with pytest.raises(DataError, match=r"do not match their checksum.*start the same command again"):
        store.read(key(2))
    assert sum(damaged for _, damaged in store.check(key_array(1, 2))) >= 1
    store.reload()
    assert key(2) not in store


def test_a_shard_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    path = write(store, k1=latents(4, seed=1))[Part.ACOUSTIC]
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        store.read(key(1))
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\).*--latents_dir"):
        new_store(tmp_path)


def test_shards_by_the_hundred_are_read_with_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    entries = {n: latents(1, seed=n, semantic=False) for n in range(500)}
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a power failure does not matter here
    for number, entry in entries.items():
        write_shard(store.shard_folder, store.kind, Part.ACOUSTIC, "float32", [(key(number), entry.acoustic_FC)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
    try:
        store = new_store(tmp_path)
        assert len(store) == 500
        assert all(same(store.read(key(n)), entry) for n, entry in entries.items())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# Writing


def test_nothing_is_published_before_its_time_and_all_at_the_end(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.writer(max_frames=8, max_age_sec=1_000) as writer:
        writer.add(key(1), latents(7, seed=1, semantic=False))
        assert list(tmp_path.rglob("*.safetensors")) == []
        writer.add(key(2), latents(1, seed=2, semantic=False))
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        writer.add(key(3), latents(1, seed=3, semantic=False))
    store.reload()
    assert len(store) == 3
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_an_entry_is_held_no_longer_than_the_age(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.writer(max_age_sec=0.05) as writer:
        writer.add(key(1), latents(1, seed=1, semantic=False))
        time.sleep(0.06)
        writer.add(key(2), latents(1, seed=2, semantic=False))
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_an_interrupt_publishes_what_is_held(tmp_path: Path) -> None:
    store = new_store(tmp_path)

    def interrupted() -> None:
        with store.writer() as writer:
            writer.add(key(1), latents(4, seed=1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    store.reload()
    assert key(1) in store


def test_a_folder_that_cannot_be_written_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "encoder").write_text("a file where the folder should be")
    store = new_store(tmp_path)
    with pytest.raises(UserError, match=r"cannot be written.*--latents_dir"), store.writer() as writer:
        writer.add(key(1), latents(4, seed=1))


def test_leftovers_of_killed_writers_go_once_they_are_old(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    write(store, k1=latents(4, seed=1))
    old, fresh = (store.shard_folder / f".{name}.safetensors.host-1-abc.partial" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7_200,) * 2)
    store.clean()
    assert not old.exists()
    assert fresh.exists()
    assert key(1) in new_store(tmp_path)


def test_audio_file_that_changed_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"one")
    os.utime(path, (1_000, 1_000))

    def current_key() -> str:
        source = AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where="row")
        return new_store(tmp_path).key(segment(source=source))

    first = current_key()
    path.write_bytes(b"two")
    assert current_key() != first
