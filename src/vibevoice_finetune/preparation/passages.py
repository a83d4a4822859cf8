"""Cuts where a source says what is spoken when: subtitles, labels, TextGrids.

Times of subtitles are made for the eye: they begin early, end late, and change in the middle of a pause. So a border
between two passages moves to the silence nearest to it; where there is none close by, both passages stay together.

In come passages and the speech that was found, out go cuts and their texts. Pure functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.preparation.cut import Cut, CutSettings, Speech, with_edges
from vibevoice_finetune.preparation.recordings import Passage

REACH_SEC = 0.6
"""How far a border may move to find a silence."""

STEP_SEC = 0.1
MAX_OFFSET_SEC = 120.0
SURE_GAIN = 0.15
"""How much more of the passages must fall on speech at another offset before it is believed."""


@dataclass(frozen=True)
class TextCut:
    """A cut with its text."""

    cut: Cut
    text: str


def cut_by_passages(
    passages: Sequence[Passage], speech: Sequence[Speech], duration_sec: float, settings: CutSettings
) -> list[TextCut]:
    """Cut a recording along its passages.

    Args:
        passages: in the order of time.
        speech: what was found, in order.
        duration_sec: of the recording.
        settings: how long clips are to be.
    """
    groups: list[tuple[list[Passage], list[Speech]]] = []
    left = list(speech)
    for number, passage in enumerate(passages):
        until = _border(passage, passages[number + 1] if number + 1 < len(passages) else None)
        own = [one for one in left if (one.start_sec + one.end_sec) / 2 <= until]
        own = [one for one in own if one.end_sec > passage.start_sec - REACH_SEC]
        left = [one for one in left if (one.start_sec + one.end_sec) / 2 > until]
        straddles = bool(own) and own[-1].end_sec > until + REACH_SEC
        before = groups[-1] if groups else None
        if before and _is_bound(before, passage):
            before[0].append(passage)
            before[1].extend(own)
        else:
            groups.append(([passage], own))
        if straddles and number + 1 < len(passages):
            groups[-1][0].append(replace(passages[number + 1], text=""))  # a mark: the next one belongs here
    return _finish(_join_short(groups, settings), duration_sec, settings)


def offset_of(passages: Sequence[Passage], speech: Sequence[Speech], duration_sec: float) -> float | None:
    """By how many seconds the passages are late (or, below zero, early), if they surely are.

    The share of the passages' time that falls on speech is compared over offsets of up to two minutes.
    """
    written_sec = max((one.end_sec for one in passages), default=0.0)
    # What lies further behind the end is not found in any case, and times can be anything.
    length = int(max(duration_sec, min(written_sec, duration_sec + MAX_OFFSET_SEC)) / STEP_SEC) + 1
    spoken = _track([(one.start_sec, one.end_sec) for one in speech], length)
    written = _track([(one.start_sec, one.end_sec) for one in passages], length)
    if not written.any() or not spoken.any():
        return None
    reach = int(MAX_OFFSET_SEC / STEP_SEC)
    padded = np.concatenate([np.zeros(reach), spoken, np.zeros(reach)])
    silent = 1.0 - padded
    # Both count: a passage that lies on speech, and speech that no passage covers.
    hits = np.correlate(padded, written, mode="valid") / written.sum()
    misses = np.correlate(silent, 1.0 - written, mode="valid") / max((1.0 - written).sum(), 1.0)
    scores = hits + 0.5 * misses
    best = int(np.argmax(scores))
    offset_sec = (reach - best) * STEP_SEC
    if scores[best] - scores[reach] < SURE_GAIN or abs(offset_sec) <= REACH_SEC:
        return None
    return offset_sec


def _track(spans: Sequence[tuple[float, float]], length: int) -> NDArray[np.float64]:
    track = np.zeros(length)
    for start, end in spans:
        track[max(int(start / STEP_SEC), 0) : max(int(end / STEP_SEC), 0)] = 1.0
    return track


def _border(passage: Passage, following: Passage | None) -> float:
    if following is None:
        return passage.end_sec + REACH_SEC
    if following.start_sec - passage.end_sec > 2 * REACH_SEC:
        return passage.end_sec + REACH_SEC
    return (passage.end_sec + following.start_sec) / 2


def _is_bound(group: tuple[list[Passage], list[Speech]], passage: Passage) -> bool:
    last = group[0][-1]
    return last.text == "" and last.start_sec == passage.start_sec


def _join_short(
    groups: list[tuple[list[Passage], list[Speech]]], settings: CutSettings
) -> list[tuple[list[Passage], list[Speech]]]:
    """Join passages that are too short with the next one of the same speaker, while the result is not too long."""
    joined: list[tuple[list[Passage], list[Speech]]] = []
    for passages, speech in groups:
        if joined and joined[-1][1] and speech:
            before_passages, before_speech = joined[-1]
            length = before_speech[-1].end_sec - before_speech[0].start_sec
            together = speech[-1].end_sec - before_speech[0].start_sec
            gap = speech[0].start_sec - before_speech[-1].end_sec
            edges = settings.lead_in_sec + settings.run_out_sec
            is_short = min(length, speech[-1].end_sec - speech[0].start_sec) + edges < settings.min_sec
            same = before_passages[0].speaker == passages[0].speaker
            if is_short and same and together + edges <= settings.max_sec and gap <= 1.0:
                joined[-1] = ([*before_passages, *passages], [*before_speech, *speech])
                continue
        joined.append((passages, speech))
    return joined


def _finish(
    groups: Sequence[tuple[list[Passage], list[Speech]]], duration_sec: float, settings: CutSettings
) -> list[TextCut]:
    cuts, texts = [], []
    edges = settings.lead_in_sec + settings.run_out_sec
    for passages, speech in groups:
        text = " ".join(" ".join(passage.text for passage in passages if passage.text).split())
        start = speech[0].start_sec if speech else passages[0].start_sec
        end = speech[-1].end_sec if speech else passages[-1].end_sec
        rejected = None
        if not speech:
            rejected = "no speech where the text has it"
        elif end - start + edges < settings.min_sec:
            rejected = f"{end - start:.2f} s of speech; at least {settings.min_sec:g} s is wanted"
        elif end - start > settings.max_sec:
            rejected = f"{end - start:.1f} s of speech under one text; at most {settings.max_sec:g} s is wanted"
        elif len({passage.speaker for passage in passages}) > 1:
            rejected = "two speakers without a pause between them"
        cuts.append(Cut(start, end, start, end, passages[0].speaker, rejected))
        texts.append(text)
    edged = with_edges(cuts, duration_sec, settings)
    return [TextCut(one, text) for one, text in zip(edged, texts, strict=True)]
