import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from vibevoice_finetune.tune.data_check import BETWEEN, DataAccount, account


def write_data(folder: Path, seconds: list[float], held_out: list[float], rejected: list[dict[str, Any]]) -> Path:
    (folder / "clips").mkdir(parents=True)
    for name, lengths in (("train", seconds), ("validation", held_out)):
        rows = []
        for number, length in enumerate(lengths):
            audio = f"clips/{name}-{number}.flac"
            soundfile.write(folder / audio, np.zeros(round(length * 1000), dtype=np.float32), 1000)
            rows.append({"text": "Speaker 0: Hm.", "audio": audio})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rejected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rejected))
    return folder


def test_what_is_kept_and_what_is_not_is_added_up(tmp_path: Path) -> None:
    rejected = [
        {"recording": "a", "from_sec": 1.0, "to_sec": 5.0, "reason": "noise (12 dB)"},
        {"recording": "a", "from_sec": 9.0, "to_sec": 10.0, "reason": BETWEEN},  # says nothing about the recording
        {"recording": "b", "reason": "cannot be decoded: cut off"},
    ]
    found = account(write_data(tmp_path, [10.0, 20.0], [5.0], rejected))
    assert (found.training_sec, found.validation_sec, found.rejected_sec) == (30.0, 5.0, 4.0)
    assert (found.num_training, found.num_validation) == (2, 1)
    assert dict(found.reasons) == {"noise": 1, "cannot be decoded": 1}
    assert found.line() == "35 s of speech in 3 clips, 1 of them held out; not used: 4 s"


def of(kept: float, rejected: float) -> DataAccount:
    return DataAccount(kept, 0.0, rejected, 1, 0, (("music", 3),))


@pytest.mark.parametrize(
    ("kept", "rejected", "objection"),
    [
        (180.0, 0.0, None),
        (179.0, 0.0, "only 2 min 59 s of speech can be used"),
        (200.0, 200.0, None),
        (200.0, 201.0, "3 min 21 s of the recordings, more than half, cannot be used: 3 × music"),
    ],
)
def test_too_little_or_too_bad_data_are_objected_to(kept: float, rejected: float, objection: str | None) -> None:
    found = of(kept, rejected).objections()
    assert found == [] if objection is None else objection in found[0]


def test_nothing_prepared_is_nothing(tmp_path: Path) -> None:
    assert account(tmp_path).kept_sec == 0
