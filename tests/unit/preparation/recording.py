"""Recordings for tests, made of the bundled clips with known pauses, so that the truth of every cut is known."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

import vibevoice_finetune

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech"
RATE_HZ = 24_000
EDGE = 0.02
"""Share of a clip's peak below which its head and tail are silence."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a recording: its text and when it is said."""

    text: str
    start_sec: float
    end_sec: float


def sentences(speaker: str) -> list[tuple[str, Path]]:
    """Texts, without tag, and files of a bundled speaker."""
    lines = (SPEECH / "speech.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        (row["text"].removeprefix("Speaker 0: "), SPEECH / row["audio"]) for row in rows if row["speaker"] == speaker
    ]


def record(
    path: Path, speakers: list[str], count: int, *, seed: int = 0, rate_hz: int = RATE_HZ, noise: float = 0.0
) -> list[Sentence]:
    """Write a recording of sentences, the speakers in turn, with pauses of 0.3 to 2 s."""
    rng = np.random.default_rng(seed)
    pools = [sentences(speaker) for speaker in speakers]
    parts, truth, at = [], [], 0
    for number in range(count):
        text, file = pools[number % len(pools)][number // len(pools)]
        samples, rate = soundfile.read(file, dtype="float32")
        assert rate == RATE_HZ
        loud = np.flatnonzero(np.abs(samples) > EDGE * np.abs(samples).max())
        samples = samples[loud[0] : loud[-1] + 1]
        pause = np.zeros(round(rng.uniform(0.3, 2.0) * RATE_HZ), dtype=np.float32)
        at += len(pause)
        truth.append(Sentence(text, at / RATE_HZ, (at + len(samples)) / RATE_HZ))
        at += len(samples)
        parts += [pause, samples]
    whole = np.concatenate([*parts, np.zeros(RATE_HZ, dtype=np.float32)])
    whole = whole + noise * rng.standard_normal(len(whole)).astype(np.float32)
    soundfile.write(path, soxr.resample(whole, RATE_HZ, rate_hz), rate_hz)
    return truth
