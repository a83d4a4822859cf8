import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.speechlike import RATE_HZ, speechlike

SENTENCES = (
    "The kettle was still warm when she came.",
    "Nobody noticed that a page was missing.",
    "We planted two apple trees behind the wall.",
    "His train leaves early, so please wake him.",
    "They painted the fence green and then blue.",
    "An empty bottle rolled across the floor.",
    "My sister learned to swim in a cold lake.",
    "The doctor smiled and said all was well.",
    "A thin layer of snow covered the roofs.",
    "Please leave your shoes beside the door.",
    "The market closes early in the winter.",
    "She whispered the answer to the class.",
)

Write = Callable[[str, Sequence[Mapping[str, object]]], Path]


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve recordings, 00.wav to 11.wav, 24 kHz."""
    folder = tmp_path_factory.mktemp("speech")
    for number in range(len(SENTENCES)):
        soundfile.write(folder / f"{number:02d}.wav", speechlike(number), RATE_HZ)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a list of rows, or of raw lines."""

    def write(name: str, rows: Sequence[Mapping[str, object] | str]) -> Path:
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def good_rows(speech: Path, numbers: Sequence[int] = range(12)) -> list[dict[str, object]]:
    """Rows without any fault."""
    return [
        {"audio": str(speech / f"{number:02d}.wav"), "text": f"Speaker 0: {SENTENCES[number]}", "speaker": "Anna"}
        for number in numbers
    ]


def save(folder: Path, name: str, samples: np.ndarray) -> str:
    """Write a recording and give its path."""
    soundfile.write(folder / name, samples, RATE_HZ)
    return str(folder / name)
