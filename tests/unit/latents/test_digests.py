import hashlib
import os
from pathlib import Path

import pytest

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents import digests
from vibevoice_finetune.latents.digests import DigestCache


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are as good as old as soon as they are written; the time of an inode cannot be set."""
    monkeypatch.setattr(digests, "SETTLED_NS", -1)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be hashed."""
    names: list[str] = []
    digest = AudioSource.content_digest

    def watched(source: AudioSource) -> str:
        assert source.path is not None
        names.append(source.path.name)
        return digest(source)

    monkeypatch.setattr(AudioSource, "content_digest", watched)
    return names


def file_source(path: Path, content: bytes | None = None) -> AudioSource:
    if content is not None:
        path.write_bytes(content)
    return AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where="row")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def learned(folder: Path, *sources: AudioSource) -> None:
    cache = DigestCache(folder)
    for source in sources:
        cache.digest(source)
    cache.save()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip whose digest is remembered."""
    path = tmp_path / "clip.wav"
    learned(tmp_path, file_source(path, b"one"))
    return path


def test_a_known_file_is_not_read_again(tmp_path: Path, clip: Path, read: list[str]) -> None:
    read.clear()
    cache = DigestCache(tmp_path)
    assert [cache.digest(file_source(clip)) for _ in range(2)] == [sha256(b"one")] * 2
    assert read == []
    assert cache.digest(file_source(tmp_path / "new.wav", b"two")) == sha256(b"two")
    assert read == ["new.wav"]


def test_a_digest_that_ends_with_zeros_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "ab" + "00" * 31
    source = file_source(tmp_path / "clip.wav", b"one")
    monkeypatch.setattr(AudioSource, "content_digest", lambda _: digest)
    learned(tmp_path, source)
    monkeypatch.undo()
    assert DigestCache(tmp_path).digest(file_source(tmp_path / "clip.wav")) == digest


@pytest.mark.parametrize("content", [b"two", b"longer"])
def test_a_file_of_another_time_or_size_is_read(tmp_path: Path, clip: Path, content: bytes) -> None:
    assert DigestCache(tmp_path).digest(file_source(clip, content)) == sha256(content)


def test_a_file_replaced_by_one_of_its_size_and_time_is_read(tmp_path: Path, clip: Path) -> None:
    times = clip.stat().st_atime_ns, clip.stat().st_mtime_ns
    other = tmp_path / "other.wav"
    other.write_bytes(b"two")
    os.utime(other, ns=times)
    other.replace(clip)
    assert clip.stat().st_mtime_ns == times[1]
    assert DigestCache(tmp_path).digest(file_source(clip)) == sha256(b"two")


def test_a_file_changed_just_now_is_read_again_next_time(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may change once more within the same tick of the file system's clock."""
    monkeypatch.setattr(digests, "SETTLED_NS", 2_000_000_000)
    path = tmp_path / "clip.wav"
    learned(tmp_path, file_source(path, b"one"))
    DigestCache(tmp_path).digest(file_source(path))
    assert read == ["clip.wav"] * 2


def test_what_changed_is_hashed_anew_once_it_is_forgotten(tmp_path: Path, clip: Path) -> None:
    cache, source = DigestCache(tmp_path), file_source(clip)
    assert cache.digest(source) == sha256(b"one")
    clip.write_bytes(b"two")
    assert cache.digest(source) == sha256(b"one")  # one run, one answer
    cache.forget(source)
    assert cache.digest(source) == sha256(b"two")


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"\xff" + content[1:], lambda _: b""])
def test_a_damaged_file_is_passed_over(tmp_path: Path, clip: Path, damage, read: list[str]) -> None:
    (path,) = tmp_path.glob(digests.PATTERN)
    path.write_bytes(damage(path.read_bytes()))
    learned(tmp_path, file_source(tmp_path / "other.wav", b"three"))
    read.clear()
    cache = DigestCache(tmp_path)
    assert cache.digest(file_source(clip)) == sha256(b"one")
    assert cache.digest(file_source(tmp_path / "other.wav")) == sha256(b"three")
    assert read == ["clip.wav"]


def test_two_writers_lose_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    monkeypatch.setattr(digests, "MANY_FILES", 1)
    paths = [tmp_path / f"{n}.wav" for n in range(6)]
    learned(tmp_path, file_source(paths[0], b"0"))
    caches = [DigestCache(tmp_path), DigestCache(tmp_path)]
    for round_ in (1, 3):  # both have read the same files, and both merge and remove them
        for number, cache in enumerate(caches):
            cache.digest(file_source(paths[round_ + number], b"%d" % (round_ + number)))
            cache.save()
    read.clear()
    last = DigestCache(tmp_path)
    assert [last.digest(file_source(path)) for path in paths[:5]] == [sha256(b"%d" % n) for n in range(5)]
    assert read == []


def test_files_are_merged_when_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MANY_FILES", 3)
    for number in range(10):
        learned(tmp_path, file_source(tmp_path / f"{number}.wav", b"x"))
    assert len(list(tmp_path.glob(digests.PATTERN))) <= 4


def test_nothing_new_writes_nothing(tmp_path: Path, clip: Path) -> None:
    before = set(tmp_path.iterdir())
    learned(tmp_path, file_source(clip))
    assert set(tmp_path.iterdir()) == before


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row: .*gone\.wav cannot be read"):
        DigestCache(tmp_path).digest(file_source(tmp_path / "gone.wav"))


def test_a_folder_that_cannot_be_written_costs_only_the_next_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").write_text("a file")
    cache = DigestCache(tmp_path / "folder")
    cache.digest(file_source(tmp_path / "clip.wav", b"one"))
    cache.save()
    assert "the digests of audio files are not remembered" in caplog.text
