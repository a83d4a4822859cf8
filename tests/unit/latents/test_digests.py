import hashlib
import os
from pathlib import Path

import pytest

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.errors import DataError, UserError
from vibevoice_finetune.latents import digests
from vibevoice_finetune.latents.digests import DigestCache


def file_source(path: Path, content: bytes | None = None, modified_sec: float = 1_000.0) -> AudioSource:
    if content is not None:
        path.write_bytes(content)
        os.utime(path, (modified_sec, modified_sec))
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
    """A clip whose digest is remembered, and whose content then changes unnoticed: size and time stay."""
    path = tmp_path / "clip.wav"
    learned(tmp_path, file_source(path, b"one"))
    file_source(path, b"two")
    return path


def test_a_known_file_is_not_read_again(tmp_path: Path, clip: Path) -> None:
    assert DigestCache(tmp_path).digest(file_source(clip)) == sha256(b"one")


@pytest.mark.parametrize(("content", "modified_sec"), [(b"two", 1_001.0), (b"longer", 1_000.0)])
def test_a_file_of_another_time_or_size_is_read(
    tmp_path: Path, clip: Path, content: bytes, modified_sec: float
) -> None:
    assert DigestCache(tmp_path).digest(file_source(clip, content, modified_sec)) == sha256(content)


def test_a_file_changed_just_now_is_read_again_next_time(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"one")
    times = path.stat().st_mtime_ns
    learned(tmp_path, file_source(path))
    path.write_bytes(b"two")
    os.utime(path, ns=(times, times))
    assert DigestCache(tmp_path).digest(file_source(path)) == sha256(b"two")


def test_damaged_lines_are_passed_over(tmp_path: Path, clip: Path) -> None:
    other = file_source(tmp_path / "name\twith\nodd “signs”.wav", b"three")
    learned(tmp_path, other)
    for path in tmp_path.glob(digests.PATTERN):
        if b"clip.wav" in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(sha256(b"one").encode()[:8], b"00000000") + b"torn\t1\t")
    cache = DigestCache(tmp_path)
    assert cache.digest(file_source(clip)) == sha256(b"two")
    os.truncate(other.path, 0)  # type: ignore[arg-type]
    file_source(other.path, b"THREE")  # type: ignore[arg-type]
    assert cache.digest(file_source(other.path)) == sha256(b"three")  # type: ignore[arg-type]


def test_two_writers_lose_nothing_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MANY_FILES", 1)
    paths = [tmp_path / f"{n}.wav" for n in range(6)]
    learned(tmp_path, file_source(paths[0], b"0"))
    caches = [DigestCache(tmp_path), DigestCache(tmp_path)]
    for round_ in (1, 3):  # both have read the same files, and both merge and remove them
        for number, cache in enumerate(caches):
            cache.digest(file_source(paths[round_ + number], b"%d" % (round_ + number)))
            cache.save()
    for path in paths[:5]:
        file_source(path, b"?")
    last = DigestCache(tmp_path)
    assert [last.digest(file_source(path)) for path in paths[:5]] == [sha256(b"%d" % n) for n in range(5)]


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


def test_a_folder_that_cannot_be_written_is_said_clearly(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    cache = DigestCache(tmp_path / "folder")
    cache.digest(file_source(tmp_path / "clip.wav", b"one"))
    with pytest.raises(UserError, match=r"digests cannot be written.*--latents_dir"):
        cache.save()
