"""How much there is: hours, clips, minutes a speaker, lengths, frames, tokens, and steps an epoch.

Frames and tokens are those of the released models: 7.5 frames a second, about a token for four bytes of text.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FRAMES_A_SEC = 7.5
BYTES_A_TOKEN = 4.0
PROMPT_TOKENS = 40
"""Of the headings and tags around a row's text and audio."""

NO_SPEAKER = "(no speaker named)"
HISTOGRAM_EDGES_SEC = (0, 1, 2, 3, 5, 8, 12, 20, 30, 60, 120, math.inf)


@dataclass(frozen=True)
class ClipSize:
    """What is counted of one row."""

    duration_sec: float
    text_bytes: int
    speaker: str | None


@dataclass(frozen=True)
class Statistics:
    """Of the rows that can be used.

    Attributes:
        clips: rows with a known length.
        hours: of audio in them.
        minutes_by_speaker: most first.
        histogram: clips between two of `HISTOGRAM_EDGES_SEC`.
        shortest_sec, median_sec, longest_sec: lengths.
        median_frames, longest_frames: speech frames a row.
        median_tokens, longest_tokens: text and frames a row, about.
        steps_an_epoch: optimizer steps.
    """

    clips: int
    hours: float
    minutes_by_speaker: dict[str, float]
    histogram: tuple[int, ...]
    shortest_sec: float
    median_sec: float
    longest_sec: float
    median_frames: int
    longest_frames: int
    median_tokens: int
    longest_tokens: int
    steps_an_epoch: int


def count(clips: Sequence[ClipSize], rows_a_step: int) -> Statistics:
    """Count the clips.

    Args:
        clips: one for each row.
        rows_a_step: rows of an optimizer step: batch size × accumulation × processes.

    >>> one = count([ClipSize(4.0, 40, "Anna"), ClipSize(8.0, 80, "Anna")], rows_a_step=8)
    >>> one.clips, round(one.hours * 3600), one.minutes_by_speaker, one.longest_frames, one.steps_an_epoch
    (2, 12, {'Anna': 0.2}, 60, 1)
    """
    seconds = np.array([clip.duration_sec for clip in clips]) if clips else np.zeros(1)
    frames = np.ceil(seconds * FRAMES_A_SEC)
    tokens = frames + PROMPT_TOKENS + np.array([clip.text_bytes for clip in clips] or [0]) / BYTES_A_TOKEN
    minutes: Counter[str] = Counter()
    for clip in clips:
        minutes[clip.speaker or NO_SPEAKER] += clip.duration_sec / 60  # type: ignore[assignment]  # Counter of floats
    return Statistics(
        clips=len(clips),
        hours=float(sum(clip.duration_sec for clip in clips)) / 3600,
        minutes_by_speaker=dict(minutes.most_common()),
        histogram=tuple(np.histogram(seconds, HISTOGRAM_EDGES_SEC)[0].tolist()) if clips else (0,) * 11,
        shortest_sec=float(seconds.min()),
        median_sec=float(np.median(seconds)),
        longest_sec=float(seconds.max()),
        median_frames=round(float(np.median(frames))),
        longest_frames=round(float(frames.max())),
        median_tokens=round(float(np.median(tokens))),
        longest_tokens=round(float(tokens.max())),
        steps_an_epoch=math.ceil(len(clips) / rows_a_step),
    )
