"""Where to cut a long recording: at pauses, never inside a word, never across a change of speaker.

In comes what was measured of the recording (`preparation/activity.py`), out go cuts: pieces of speech with a little of
the silence around them. Pure functions; times are seconds from the beginning of the recording.

The rule, in this order:

1. A *pause* is silence of at least `min_pause_sec`. Speech between two pauses is a *phrase*.
2. A phrase longer than `max_sec` is cut at the longest silence inside it that is at least `SHORTEST_GAP_SEC` long, and
   its parts again; where there is none, the phrase is given up.
3. A phrase shorter than `min_sec` is joined with the neighbour across the shorter pause, if the result is not too long,
   the pause is not longer than `LONGEST_JOINED_PAUSE_SEC` and the speaker is the same; where that cannot be, it is
   given up.
4. Each cut gets `lead_in_sec` of the recording before its speech and `run_out_sec` after it, but never more than its
   share of the pause, so that no neighbour is heard.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

SHORTEST_GAP_SEC = 0.12
"""The closure of a plosive, silent as it is, is shorter: 0.05 to 0.11 s."""

LONGEST_JOINED_PAUSE_SEC = 1.0
"""A clip with a longer hole in it teaches hesitation."""

GAP_MARGIN_SEC = 0.04
"""How much shorter a pause may be measured than it is: the blur of the windows that measure it."""

KEEP_CLEAR_SEC = 0.02
"""Distance that a cut keeps from its neighbour's speech."""


@dataclass(frozen=True)
class CutSettings:
    """How long clips are to be; see `prepare --help`."""

    min_sec: float = 2.0
    max_sec: float = 20.0
    min_pause_sec: float = 0.3
    lead_in_sec: float = 0.1
    run_out_sec: float = 0.3


@dataclass(frozen=True)
class Speech:
    """A stretch of speech without any silence of `SHORTEST_GAP_SEC` in it.

    Attributes:
        start_sec: where it begins.
        end_sec: where it ends.
        speaker: who speaks, if several people do and it is known.
    """

    start_sec: float
    end_sec: float
    speaker: str | None = None


@dataclass(frozen=True)
class Cut:
    """A piece of the recording.

    Attributes:
        start_sec: where the clip begins, lead-in included.
        end_sec: where it ends, run-out included.
        speech_start_sec: where its speech begins.
        speech_end_sec: where its speech ends.
        speaker: who speaks, if known.
        rejected: why it cannot be used; None if it can.
    """

    start_sec: float
    end_sec: float
    speech_start_sec: float
    speech_end_sec: float
    speaker: str | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class _Phrase:
    parts: tuple[Speech, ...]
    rejected: str | None = None

    @property
    def start_sec(self) -> float:
        return self.parts[0].start_sec

    @property
    def end_sec(self) -> float:
        return self.parts[-1].end_sec

    @property
    def duration_sec(self) -> float:
        return self.end_sec - self.start_sec


def cut(speech: Sequence[Speech], duration_sec: float, settings: CutSettings) -> list[Cut]:
    """Cut a recording into clips.

    Args:
        speech: in order, without overlap.
        duration_sec: of the recording.
        settings: how long clips are to be.

    Returns:
        All speech, in order: every stretch is in exactly one cut, used or rejected.

    >>> speech = [Speech(0.5, 3.0), Speech(3.2, 5.0), Speech(6.0, 9.0)]
    >>> [(c.start_sec, c.end_sec) for c in cut(speech, 10.0, CutSettings())]
    [(0.4, 5.3), (5.9, 9.3)]
    """
    phrases = [_Phrase((part,)) for part in speech]
    phrases = _join_across(phrases, settings.min_pause_sec - GAP_MARGIN_SEC)
    phrases = [piece for phrase in phrases for piece in _split(phrase, settings.max_sec)]
    phrases = _join_short(phrases, settings)
    return with_edges([_cut_of(phrase) for phrase in phrases], duration_sec, settings)


def with_edges(cuts: Sequence[Cut], duration_sec: float, settings: CutSettings) -> list[Cut]:
    """Give each cut its lead-in and its run-out, as far as the silence around it allows.

    A pause that is too short for both is shared in proportion; `KEEP_CLEAR_SEC` of it stays in between.
    """
    wanted = settings.lead_in_sec + settings.run_out_sec
    edged = []
    for number, one in enumerate(cuts):
        before = one.speech_start_sec - (cuts[number - 1].speech_end_sec if number else 0.0)
        after = (cuts[number + 1].speech_start_sec if number + 1 < len(cuts) else duration_sec) - one.speech_end_sec
        # The file's own ends are shared with nobody.
        lead_room = before if number == 0 else _share(before, settings.lead_in_sec, wanted)
        run_room = after if number + 1 == len(cuts) else _share(after, settings.run_out_sec, wanted)
        start = one.speech_start_sec - min(settings.lead_in_sec, lead_room)
        end = one.speech_end_sec + min(settings.run_out_sec, run_room)
        edged.append(replace(one, start_sec=round(max(start, 0.0), 4), end_sec=round(min(end, duration_sec), 4)))
    return edged


def _share(pause_sec: float, part_sec: float, wanted_sec: float) -> float:
    free = max(pause_sec - KEEP_CLEAR_SEC, 0.0)
    return part_sec if free >= wanted_sec else free * part_sec / wanted_sec if wanted_sec else 0.0


def _cut_of(phrase: _Phrase) -> Cut:
    start, end = phrase.start_sec, phrase.end_sec
    return Cut(start, end, start, end, phrase.parts[0].speaker, phrase.rejected)


def _may_join(one: _Phrase, other: _Phrase) -> bool:
    return one.parts[-1].speaker == other.parts[0].speaker and not one.rejected and not other.rejected


def _gap(one: _Phrase, other: _Phrase) -> float:
    return other.start_sec - one.end_sec


def _join_across(phrases: Sequence[_Phrase], shorter_than_sec: float) -> list[_Phrase]:
    joined: list[_Phrase] = []
    for phrase in phrases:
        if joined and _may_join(joined[-1], phrase) and _gap(joined[-1], phrase) < shorter_than_sec:
            joined[-1] = _Phrase((*joined[-1].parts, *phrase.parts))
        else:
            joined.append(phrase)
    return joined


def _split(phrase: _Phrase, max_sec: float) -> list[_Phrase]:
    """Parts that are not too long. Among silences of about the same length, the one nearest the middle is taken."""
    if phrase.duration_sec <= max_sec:
        return [phrase]
    middle = (phrase.start_sec + phrase.end_sec) / 2
    best, best_value = None, 0.0
    for number in range(1, len(phrase.parts)):
        gap = phrase.parts[number].start_sec - phrase.parts[number - 1].end_sec
        distance = abs(phrase.parts[number].start_sec - gap / 2 - middle) / phrase.duration_sec  # 0 to 0.5
        value = gap * (1 - distance)
        if gap >= SHORTEST_GAP_SEC and value > best_value:
            best, best_value = number, value
    if best is None:
        return [replace(phrase, rejected=f"{phrase.duration_sec:.1f} s of speech without a pause to cut at")]
    return [piece for half in (phrase.parts[:best], phrase.parts[best:]) for piece in _split(_Phrase(half), max_sec)]


def _join_short(phrases: Sequence[_Phrase], settings: CutSettings) -> list[_Phrase]:
    """Join phrases that are too short, the shortest pause first; what stays too short is rejected."""
    found = list(phrases)

    def length(phrase: _Phrase) -> float:
        return phrase.duration_sec + settings.lead_in_sec + settings.run_out_sec

    while True:
        candidates = [
            (_gap(found[number], found[number + 1]), number)
            for number in range(len(found) - 1)
            if min(length(found[number]), length(found[number + 1])) < settings.min_sec
            and _may_join(found[number], found[number + 1])
            and _gap(found[number], found[number + 1]) <= LONGEST_JOINED_PAUSE_SEC
            and found[number + 1].end_sec - found[number].start_sec <= settings.max_sec
        ]
        if not candidates:
            break
        _, number = min(candidates)
        found[number : number + 2] = [_Phrase((*found[number].parts, *found[number + 1].parts))]
    return [
        phrase
        if phrase.rejected or length(phrase) >= settings.min_sec
        else replace(
            phrase, rejected=f"{phrase.duration_sec:.2f} s of speech; at least {settings.min_sec:g} s is wanted"
        )
        for phrase in found
    ]
