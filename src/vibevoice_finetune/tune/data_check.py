"""What came of the recordings, and whether it is enough to train on.

In comes the folder that `prepare` wrote, out goes an account: how much audio is kept, how much is not and why.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from vibevoice_finetune.preparation.run import REJECTED_FILE, TRAIN_FILE, VALIDATION_FILE

LEAST_SEC = 180.0
"""Three minutes: with less, a voice is guessed rather than learned."""

MOST_REJECTED = 0.5
BETWEEN = "left out between training and validation"
"""A reason that says nothing about a clip's quality."""


@dataclass(frozen=True)
class DataAccount:
    """What a data set holds.

    Attributes:
        training_sec: audio for training.
        validation_sec: audio held out.
        rejected_sec: audio that is not used.
        num_training: rows.
        num_validation: rows.
        reasons: why pieces are not used, with how many, the most frequent first.
    """

    training_sec: float
    validation_sec: float
    rejected_sec: float
    num_training: int
    num_validation: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def kept_sec(self) -> float:
        """Audio that is used."""
        return self.training_sec + self.validation_sec

    def line(self) -> str:
        """The account in a line."""
        rejected = f"; not used: {duration(self.rejected_sec)}" if self.rejected_sec else ""
        return (
            f"{duration(self.kept_sec)} of speech in {self.num_training + self.num_validation:,} clips, "
            f"{self.num_validation:,} of them held out{rejected}"
        )

    def objections(self) -> list[str]:
        """Why this is not good enough to spend hours of a GPU on; empty if it is."""
        found = []
        if self.kept_sec < LEAST_SEC:
            found.append(
                f"only {duration(self.kept_sec)} of speech can be used; a voice needs at least "
                f"{duration(LEAST_SEC)}, better 10 min to 30 min"
            )
        if self.rejected_sec > MOST_REJECTED * (self.kept_sec + self.rejected_sec):
            worst = "; ".join(f"{count:,} × {reason}" for reason, count in self.reasons[:2])
            found.append(f"{duration(self.rejected_sec)} of the recordings, more than half, cannot be used: {worst}")
        return found


def account(data: Path) -> DataAccount:
    """Read what `prepare` wrote.

    Args:
        data: its output folder.
    """
    training, validation = (list(rows_of(data / name)) for name in (TRAIN_FILE, VALIDATION_FILE))
    rejected = [row for row in rows_of(data / REJECTED_FILE) if row.get("reason") != BETWEEN]
    reasons = Counter(str(row["reason"]).split(":")[0].split(" (")[0] for row in rejected)
    return DataAccount(
        training_sec=sum(seconds_of(data / row["audio"]) for row in training),
        validation_sec=sum(seconds_of(data / row["audio"]) for row in validation),
        rejected_sec=sum(max(row.get("to_sec", 0) - row.get("from_sec", 0), 0) for row in rejected),
        num_training=len(training),
        num_validation=len(validation),
        reasons=tuple(reasons.most_common()),
    )


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, none if it is not there."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                yield json.loads(line)


def seconds_of(path: Path) -> float:
    """The length of an audio file by its header; zero if that cannot be read."""
    try:
        return float(soundfile.info(str(path)).duration)
    except (soundfile.LibsndfileError, OSError):
        return 0.0


def duration(seconds: float) -> str:
    """A length as a person says it.

    >>> duration(42), duration(75), duration(7_260)
    ('42 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
