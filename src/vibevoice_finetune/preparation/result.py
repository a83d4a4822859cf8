"""What came of `prepare`, and how it is told."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vibevoice_finetune.preparation.recordings import Record, Source
from vibevoice_finetune.preparation.rows import Split
from vibevoice_finetune.validation.findings import Finding, Kind, by_kind, counted

MAX_NAMED = 5
"""Recordings of which nothing can be used that are named on the terminal."""


@dataclass(frozen=True)
class Prepared:
    """What came of it.

    Attributes:
        source: what was found.
        records: of the recordings, in their order; of other shards too, if they are done.
        split: the rows; None while other shards are not done.
        missing: recordings that other shards have still to do.
        reused: recordings that an earlier run had done.
    """

    source: Source
    records: tuple[Record, ...]
    split: Split | None
    missing: int
    reused: int

    def lines(self) -> Iterator[str]:
        """What to tell the user."""
        audio = sum(record.duration_sec for record in self.records)
        kept = sum(clip.duration_sec for r in self.records for clip in r.clips if clip.rejected is None)
        again = f", {self.reused:,} of them done before" if self.reused else ""
        yield f"{counted(len(self.records), 'recording')} ({duration(audio)}){again}"
        if self.split is None:
            left = counted(self.missing, "recording")
            yield f"still to be done by other shards: {left}; the last one writes the rows"
            return
        rows, held_out = len(self.split.training), len(self.split.validation)
        yield f"clips: {duration(kept)} kept; rows: {rows:,} for training, {held_out:,} for validation"
        for speaker, (train_sec, validation_sec) in self.split.seconds.items():
            yield f"  {speaker}: {duration(train_sec)} for training, {duration(validation_sec)} for validation"
        failed = [record for record in self.records if record.failed is not None]
        for record in failed[:MAX_NAMED]:
            yield f"  not used: {record.recording}: {record.failed}"
        if len(failed) > MAX_NAMED:
            yield f"  not used: {counted(len(failed) - MAX_NAMED, 'recording')} more, see rejected.jsonl"
        for reason, count in reasons([row for row in self.split.rejected if "from_sec" in row or "audio" in row]):
            yield f"  not used: {count:,} × {reason}"
        for kind, group in self.warnings().items():
            yield f"  warning: {kind.name}, {counted(len(group), 'clip')}: {kind.title}. What to do: {kind.advice}."

    def warnings(self) -> dict[Kind, list[Finding]]:
        """What `validate` would warn of, of the clips that are used: by kind, each at its file."""
        return by_kind(
            Finding(name, clip.audio or "", found)
            for record in self.records
            for clip in record.clips
            if clip.rejected is None
            for name, found in clip.warnings.items()
        )


def reasons(rejected: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Reasons and how often there are, the most frequent first."""
    counts = Counter(map(reason_of, rejected))
    return sorted(counts.items(), key=lambda item: -item[1])


def reason_of(row: dict[str, Any]) -> str:
    """The reason of a rejected piece without its own figures and texts.

    >>> reason_of({"reason": "the text differs from what is heard (50%): heard 'so'"})
    'the text differs from what is heard'
    >>> reason_of({"reason": "3.0 s of speech without a pause to cut at"})
    'speech without a pause to cut at'
    """
    kind = str(row["reason"]).split(":")[0].split(" (")[0]
    return re.sub(r"^\d[\d.,]* s of ", "", kind)


def duration(seconds: float) -> str:
    """A length as a person says it.

    >>> duration(75), duration(7_260)
    ('1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
