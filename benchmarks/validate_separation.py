"""How strong a fault of the sound has to be before `validate --deep` says so.

Each fault is made at several strengths from 24 clean sentences of three voices (`validate_planted.py` says how); the
share of the clips that are blamed for it is printed, with the median of what was estimated. The last column says how
many are blamed for anything else.

    python -m benchmarks.validate_separation --speech FOLDER --record
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.record import write
from benchmarks.validate_planted import VOICES, Audio, Maker, add, chords, coloured, in_a_room, loud_moment, through
from vibevoice_finetune.audio.measure import decay_time
from vibevoice_finetune.validation.audio_checks import check_sound
from vibevoice_finetune.validation.listen import Sound, measured

RATE = 24_000
Change = Callable[[Audio, np.random.Generator], Audio]


@dataclass(frozen=True)
class Condition:
    """A fault at one strength: its kind, the strength in words, how it is made, and what is estimated of it."""

    kind: str
    strength: str
    change: Change
    estimate: Callable[[Sound], float]


def clean(samples: Audio, _: np.random.Generator) -> Audio:
    """The recording as it is."""
    return samples


def noise_db(sound: Sound) -> float:
    """Decibels below the speech."""
    return -sound.noise_db


def t60(sound: Sound) -> float:
    """Seconds."""
    return decay_time(sound.fall_db) if sound.fall_db else 0.0


def conditions() -> Iterator[Condition]:
    """All faults at all strengths; the first of each is none."""
    yield Condition("noise", "none", clean, noise_db)
    for below in (30, 25, 22, 20, 18, 15, 10, 5):
        yield Condition("noise", f"white, {below} dB below", _noise(below, white=True), noise_db)
        yield Condition("noise", f"pink, {below} dB below", _noise(below, white=False), noise_db)
    yield Condition("music", "none", clean, lambda sound: sound.line_contrast_db)
    for below in (40, 35, 30, 25, 20, 10, 5):
        yield Condition("music", f"{below} dB below", _music(below), lambda sound: sound.line_contrast_db)
    yield Condition("reverberation", "none", clean, t60)
    for seconds in (0.3, 0.5, 0.6, 0.8, 1.0, 1.4):
        yield Condition("reverberation", f"T60 {seconds} s", _room(seconds), t60)
    yield Condition("clipped", "none", _loud(0), lambda sound: 100 * sound.clipped_share)
    for decibels in (1, 2, 3, 6, 12):
        yield Condition("clipped", f"by {decibels} dB", _loud(decibels), lambda sound: 100 * sound.clipped_share)
    for rate in (24_000, 22_050, 16_000, 11_025, 8_000):
        change = clean if rate == RATE else _narrow(rate)
        yield Condition("narrow-band", f"through {rate:,} Hz", change, lambda sound: sound.bandwidth_hz)
    yield Condition("cut-start", "none", clean, lambda sound: sound.start_db)
    yield Condition("cut-start", "in a loud sound", _cut(loud=True), lambda sound: sound.start_db)
    yield Condition("cut-start", "anywhere in the first half", _cut(loud=False), lambda sound: sound.start_db)


def _noise(below: float, *, white: bool) -> Change:
    return lambda samples, rng: add(samples, coloured(len(samples), rng, white), below)


def _music(below: float) -> Change:
    return lambda samples, rng: add(samples, chords(len(samples), rng), below)


def _room(seconds: float) -> Change:
    return lambda samples, rng: in_a_room(samples, rng, seconds, 0.0)


def _loud(decibels: float) -> Change:
    gain = 10 ** (decibels / 20)
    return lambda samples, _: np.clip(samples / np.abs(samples).max() * gain, -1, 1).astype(np.float32)


def _narrow(rate: int) -> Change:
    return lambda samples, _: through(samples, rate)


def _cut(*, loud: bool) -> Change:
    def cut(samples: Audio, rng: np.random.Generator) -> Audio:
        place = loud_moment(samples, rng, 0.05, 0.5) if loud else round(rng.uniform(0.1, 0.5) * len(samples))
        return samples[place:]

    return cut


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with speech.jsonl and the voices")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    chosen = parser.parse_args()
    maker = Maker(chosen.speech, 3)
    clips = [maker.clip(voice, sentence, 1.0) for voice in VOICES for sentence in range(0, 24, 3)]
    rows = []
    print("| kind | strength | blamed | estimate, median | blamed for something else |\n|---|---|---|---|---|")
    for one in conditions():
        sounds = [measured(changed, changed, RATE) for changed in (one.change(clip, maker.rng) for clip in clips)]
        kinds = [{finding.kind for finding in check_sound(sound, "")} for sound in sounds]
        row = {
            "kind": one.kind,
            "strength": one.strength,
            "blamed": round(float(np.mean([one.kind in found for found in kinds])), 3),
            "estimate": round(float(np.median([one.estimate(sound) for sound in sounds])), 3),
            "blamed_for_something_else": round(float(np.mean([bool(found - {one.kind}) for found in kinds])), 3),
        }
        rows.append(row)
        print(
            f"| {one.kind} | {one.strength} | {row['blamed']:.0%} | {row['estimate']:,g} | "
            f"{row['blamed_for_something_else']:.0%} |",
            flush=True,
        )
    if chosen.record:
        write("validate-separation", {"clips": len(clips), "conditions": rows})


if __name__ == "__main__":
    main()
