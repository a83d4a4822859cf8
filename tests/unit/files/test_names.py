"""Names that look right and are not: what is proposed instead."""

from pathlib import Path

import pytest

from vibevoice_finetune.files.names import near_miss


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    folder = tmp_path / "My Voices"
    folder.mkdir()
    (folder / "Zoe\u0308.wav").write_bytes(b"")  # e and a combining diaeresis, as macOS stores it
    return folder


@pytest.mark.parametrize(
    "typed",
    [
        "My Voices/Zo\u00eb.wav",  # one character
        "my voices/ZO\u00cb.WAV",
        "My  Voices//Zo\u00eb.wav ",
        "MyVoices/Zo\u00eb.wav",
        "My Voices\\Zo\u00eb.wav",
        "My Voices/./Zo\u00eb.wav/",
    ],
)
def test_the_file_that_looks_the_same_is_found(voices: Path, typed: str) -> None:
    assert near_miss(f"{voices.parent}/{typed}") == voices / "Zoe\u0308.wav"


def test_an_address_of_a_browser_is_a_path(voices: Path) -> None:
    assert near_miss(f"file://{voices.parent}/My%20Voices") == voices
    assert near_miss(f"file:{voices.parent}/My%20Voices") == voices


@pytest.mark.parametrize("typed", ["zoe.wav", "other/Zoe.wav", "x" * 5000, "a\x00b", "", " "])
def test_another_name_is_not(voices: Path, typed: str) -> None:
    assert near_miss(f"{voices}/{typed}" if typed.strip() else typed) is None
