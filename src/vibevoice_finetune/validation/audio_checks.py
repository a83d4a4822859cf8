"""What is too much: from the numbers of a recording to findings.

`check_sound` looks at one recording, `check_set` at each among the others. The thresholds stand here, each with what it
was chosen on; how well they separate is measured by `benchmarks/validate_planted.py`, on voices and draws that they
were not chosen on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vibevoice_finetune.audio.measure import decay_time
from vibevoice_finetune.validation.findings import Finding
from vibevoice_finetune.validation.listen import Sound

MAX_NOISE_DB = -22.0
"""Relative to the speech. Clean speech, also without pauses: below −25; a quiet room, close microphone: below −35."""

MAX_MUSIC_DB = -32.0
MIN_LINE_CONTRAST_DB = 8.0
"""Noise has 5.6, clean speech's weakest parts up to 6.6, echoes up to 7.8, music 30 dB below the speech from 8.5 on."""

MAX_DECAY_SEC = 0.65
"""Dry speech: below 0.6. A living room has 0.4 to 0.6 s, a bathroom or hall 0.8 s and more."""

NOISE_LIMITED = 0.75
"""A fall of more than this share of the distance to the noise is ended by the noise, not by the room."""

MAX_CLIPPED_SHARE = 1e-4
MIN_BANDWIDTH_HZ = 10_000.0
ENOUGH_FOR_BANDWIDTH_SEC = 1.0
"""A single vowel has no high frequencies."""

MAX_EDGE_DB = -20.0
EDGE_ABOVE_NOISE_DB = 15.0
MAX_LEADING_SEC = 1.0
MAX_TRAILING_SEC = 1.5
MIN_CLIP_SEC = 1.0
MAX_CLIP_SEC = 60.0
"""Training on longer rows works, but takes memory; and a slip in the text spoils all of it."""

MAX_DC_RATIO = 0.1
"""Of the speech's RMS: −20 dB."""

MIN_TURNS_SHARE = 0.08
MAX_LEVEL_DISTANCE_DB = 12.0
ENOUGH_CLIPS = 10

MIN_SPEECH_SEC = 0.3
"""Of less speech, neither level nor rate can be told."""

RATE_FACTOR = 1.5
RATE_DEVIATIONS = 4.0
"""Robust standard deviations of the logarithm of characters a second."""


def check_sound(sound: Sound, where: str) -> Iterator[Finding]:
    """Everything that one recording says by itself."""
    if sound.cancels:  # what is left after mixing says nothing
        found = f"mixed to one channel, {-sound.mix_db:.0f} dB of the sound are lost"
        yield Finding("channels-cancel", where, found, -sound.mix_db)
        return
    yield from _check_background(sound, where)
    yield from _check_shape(sound, where)
    yield from check_length(sound.duration_sec, where)
    background = sound.noise_db + EDGE_ABOVE_NOISE_DB
    for kind, level_db in (("cut-start", sound.start_db), ("cut-end", sound.end_db)):
        if level_db > max(MAX_EDGE_DB, background):
            edge = "first" if kind == "cut-start" else "last"
            yield Finding(kind, where, f"the {edge} 0.03 s are {_relative(level_db)} the speech's level", level_db)
    if sound.leading_silence_sec > MAX_LEADING_SEC:
        found = f"{sound.leading_silence_sec:.2f} s before the first word"
        yield Finding("leading-silence", where, found, sound.leading_silence_sec)
    if sound.trailing_silence_sec > MAX_TRAILING_SEC:
        found = f"{sound.trailing_silence_sec:.2f} s after the last word"
        yield Finding("trailing-silence", where, found, sound.trailing_silence_sec)


def check_length(duration_sec: float, where: str) -> Iterator[Finding]:
    """Whether a clip has a length that can be learned from."""
    if duration_sec < MIN_CLIP_SEC:
        found = f"{duration_sec:.2f} s; clips of 3 to 20 s are best"
        yield Finding("short-clip", where, found, -duration_sec)
    elif duration_sec > MAX_CLIP_SEC:
        yield Finding("long-clip", where, f"{duration_sec:,.0f} s; clips of 3 to 20 s are best", duration_sec)


def _check_background(sound: Sound, where: str) -> Iterator[Finding]:
    """Music, echo or noise: one of them, because each raises the figures of the others."""
    fall_db = sound.fall_db
    echoes = fall_db is not None and decay_time(fall_db) > MAX_DECAY_SEC and fall_db < -NOISE_LIMITED * sound.noise_db
    if sound.noise_db > MAX_MUSIC_DB and sound.line_contrast_db > MIN_LINE_CONTRAST_DB:
        found = f"tones {-sound.noise_db:.0f} dB below the speech (spectral lines {sound.line_contrast_db:.1f} dB)"
        yield Finding("music", where, found, sound.noise_db)
    elif echoes and fall_db is not None:
        found = f"sound takes {decay_time(fall_db):.1f} s to fall by 60 dB; up to 0.5 s is good"
        yield Finding("reverberation", where, found, decay_time(fall_db))
    elif sound.noise_db > MAX_NOISE_DB:
        found = f"noise only {-sound.noise_db:.0f} dB below the speech; 30 dB or more are good"
        yield Finding("noise", where, found, sound.noise_db)


def _check_shape(sound: Sound, where: str) -> Iterator[Finding]:
    if sound.clipped_share > MAX_CLIPPED_SHARE:
        found = f"{sound.clipped_share:.2%} of the samples lie in flat tops"
        yield Finding("clipped", where, found, sound.clipped_share)
    if sound.bandwidth_hz < MIN_BANDWIDTH_HZ and sound.speech_sec >= ENOUGH_FOR_BANDWIDTH_SEC:
        found = f"nothing above {sound.bandwidth_hz / 1000:.1f} kHz; 12 kHz are expected"
        yield Finding("narrow-band", where, found, -sound.bandwidth_hz)
    ratio = abs(sound.dc_offset) / 10 ** (sound.level_dbfs / 20)
    if ratio > MAX_DC_RATIO:
        yield Finding("dc-offset", where, f"a mean of {sound.dc_offset:+.3f} of full scale", ratio)
    if sound.turns_share > MIN_TURNS_SHARE:
        found = f"left and right sound alone in turns, each at least {sound.turns_share:.0%} of the time"
        yield Finding("two-people", where, found, sound.turns_share)


@dataclass(frozen=True)
class ClipInSet:
    """What is compared between rows.

    Attributes:
        where: file and line.
        speaker: who speaks, if it is known.
        level_dbfs: of the speech; None if it was not measured.
        speech_sec: seconds of speech, or of audio where it was not decoded.
        characters: letters and digits of the text.
    """

    where: str
    speaker: str | None
    level_dbfs: float | None
    speech_sec: float
    characters: int


def check_set(clips: Sequence[ClipInSet]) -> Iterator[Finding]:
    """Each clip against the others: its level, and how many characters it has for a second of speech.

    Rates are compared within a speaker of ten clips or more, else within the whole set: people differ by a factor of
    1.5, one person's clips by far less.
    """
    clips = [clip for clip in clips if clip.speech_sec >= MIN_SPEECH_SEC]
    measured = [clip for clip in clips if clip.level_dbfs is not None]
    if len(measured) >= ENOUGH_CLIPS:
        median = float(np.median([clip.level_dbfs for clip in measured if clip.level_dbfs is not None]))
        for clip in measured:
            distance = (clip.level_dbfs or 0.0) - median
            if abs(distance) > MAX_LEVEL_DISTANCE_DB:
                found = (
                    f"{clip.level_dbfs:.0f} dBFS, {abs(distance):.0f} dB {'above' if distance > 0 else 'below'} the set"
                )
                yield Finding("level", clip.where, found, abs(distance))
    groups: dict[str | None, list[ClipInSet]] = {}
    for clip in clips:
        if clip.characters > 0:
            groups.setdefault(clip.speaker, []).append(clip)
    everybody = [clip for group in groups.values() for clip in group]
    for group in groups.values():
        yield from _check_rates(group, group if len(group) >= ENOUGH_CLIPS else everybody)


def _check_rates(group: Sequence[ClipInSet], reference: Sequence[ClipInSet]) -> Iterator[Finding]:
    if len(reference) < ENOUGH_CLIPS:
        return
    usual = np.log([clip.characters / clip.speech_sec for clip in reference])
    median = float(np.median(usual))
    deviation = 1.4826 * float(np.median(np.abs(usual - median)))  # of a normal distribution, the standard deviation
    limit = max(np.log(RATE_FACTOR), RATE_DEVIATIONS * deviation)
    for clip in group:
        rate = clip.characters / clip.speech_sec
        distance = abs(np.log(rate) - median)
        if distance > limit:
            found = f"{rate:.0f} characters a second of speech; {np.exp(median):.0f} are usual here"
            yield Finding("speaking-rate", clip.where, found, float(distance))


def describe(sound: Sound) -> Mapping[str, str]:
    """A recording's figures for a reader, in the report."""
    return {
        "length": f"{sound.duration_sec:.1f} s",
        "level": f"{sound.level_dbfs:.0f} dBFS",
        "peak": f"{sound.peak_dbfs:.0f} dBFS",
        "noise": f"{sound.noise_db:.0f} dB",
        "bandwidth": f"{sound.bandwidth_hz / 1000:.1f} kHz",
    }


def _relative(level_db: float) -> str:
    return f"{abs(level_db):.0f} dB {'above' if level_db > 0 else 'below'}"
