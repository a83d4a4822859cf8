"""Hugging Face data sets as a source."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile

from vibevoice_finetune.audio.stream import stream
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.preparation.sources.hub import is_saved_dataset, read_dataset

RATE_HZ = 16_000


def tone(seconds: float) -> np.ndarray:
    return (0.1 * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.2)).astype(np.float32)


def flac(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds), RATE_HZ, format="FLAC")
    return file.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two rows with encoded audio, one of them with a name, and one whose audio is gone."""
    rows = {
        "Audio": [{"bytes": flac(1), "path": "book-01.flac"}, {"bytes": flac(2), "path": None}, None],
        "sentence": ["Hello  there.", "And so on.", "Gone."],
        "speaker_id": [7, None, 7],
    }
    datasets.Dataset.from_dict(rows).cast_column("Audio", datasets.Audio()).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_columns_are_known_by_their_usual_names(saved: Path, tmp_path: Path) -> None:
    assert is_saved_dataset(saved)
    assert not is_saved_dataset(tmp_path)
    source = read_dataset(str(saved), None, "train", {}, tmp_path / "files")
    assert [(r.name, r.speaker, r.text, r.group, r.is_clip) for r in source.recordings] == [
        ("train/000000", "7", "Hello there.", "7/book", True),
        ("train/000001", None, "And so on.", "000001", True),
    ]
    assert [recording.path.read_bytes() for recording in source.recordings] == [flac(1), flac(2)]
    assert [sum(map(len, stream(recording.path))) for recording in source.recordings] == [24_000, 48_000]
    assert [ignored.where for ignored in source.ignored] == [f"dataset {saved} row 2"]
    assert source.summary() == "found: 2 clips, 2 with a transcript, 1 speaker"


def test_files_that_are_there_are_not_written_again(saved: Path, tmp_path: Path) -> None:
    first = read_dataset(str(saved), None, "train", {}, tmp_path / "files").recordings[0].path
    before = first.stat().st_mtime_ns
    read_dataset(str(saved), None, "train", {}, tmp_path / "files")
    assert first.stat().st_mtime_ns == before
    first.write_bytes(b"half")
    read_dataset(str(saved), None, "train", {}, tmp_path / "files")
    assert first.read_bytes() == flac(1)


def test_arrays_without_text_are_recordings(tmp_path: Path) -> None:
    rows = {"audio": [{"array": tone(1).tolist(), "sampling_rate": RATE_HZ}]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    (recording,) = read_dataset(str(tmp_path / "saved"), None, "train", {}, tmp_path / "files").recordings
    samples, rate_hz = soundfile.read(recording.path)
    assert rate_hz == RATE_HZ
    np.testing.assert_allclose(samples, tone(1), atol=1e-6)
    assert (recording.text, recording.is_clip) == (None, False)


def test_what_is_not_there_is_said(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r'there is no split "test"; its splits are train'):
        read_dataset(str(saved), None, "test", {}, tmp_path / "files")
    with pytest.raises(DataError, match=r"has no column 'said'; it has Audio, sentence, speaker_id"):
        read_dataset(str(saved), None, "train", {"text": "said"}, tmp_path / "files")
    datasets.Dataset.from_dict({"sound": ["a"]}).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match=r"no column is called audio.*--audio_column_name"):
        read_dataset(str(tmp_path / "other"), None, "train", {}, tmp_path / "files")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"hf download --repo-type dataset me/nowhere .* give FOLDER in its place"):
        read_dataset("me/nowhere", None, "train", {}, tmp_path / "files")
