"""From the clips of all recordings to rows for `train`: speakers, voice prompts, and two sides that share nothing.

Pure functions over records; files are written by `preparation/run.py`.

- Training rows of one speaker carry `speaker`: `train` then shows each with another clip of the same speaker, drawn
  anew in every epoch. Validation rows carry a fixed `voice_prompts`, so that their curve moves only with the model.
- The split is by group (see `recordings.Recording`), so neighbouring cuts of one recording never stand on both sides.
  Where all groups of a speaker are long, the last clips of the longest go to validation and the one before them is left
  out.
- Rows of several speakers have a voice prompt for each, taken from outside the dialogue.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vibevoice_finetune.preparation.recordings import Clip, Dialogue, Record

PROMPT_SEC = (3.0, 15.0)
"""Lengths that make good voice prompts; the one nearest is taken where none is that long."""

MOST_TOO_MUCH = 2.0
"""A group is held out whole if it is at most so many times as long as what is wanted; else the end of one is."""

BOUNDARY_CLIPS = 1
"""Clips left out between the two sides where one recording is on both."""


@dataclass(frozen=True)
class Split:
    """The rows.

    Attributes:
        training: JSON objects for `train.jsonl`.
        validation: likewise.
        rejected: what was left out, with its reason.
        seconds: of audio in the two sides, by speaker.
    """

    training: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    seconds: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class _Placed:
    clip: Clip
    speaker: str
    group: str


def make_rows(records: Sequence[Record], default_speaker: str, validation_share: float, seed: int) -> Split:
    """Make the rows of all recordings.

    Args:
        records: in the order of the recordings.
        default_speaker: of clips whose speaker nobody knows.
        validation_share: of the audio, at least; 0: no validation.
        seed: of the choice of groups and prompts.
    """
    clips = [
        _Placed(clip, _speaker(record, clip.speaker, default_speaker), record.group)
        for record in records
        for clip in record.clips
        if clip.rejected is None
    ]
    held_out, between = _choose(clips, validation_share, seed)
    rejected = list(_rejected(records, between))
    sides: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    prompts = _Prompts([one for one in clips if id(one.clip) not in between], seed)
    for one in clips:
        if id(one.clip) in between:
            continue
        side = int(id(one.clip) in held_out)
        seconds[one.speaker][side] += one.clip.duration_sec
        row: dict[str, Any] = {"text": f"Speaker 0: {one.clip.text}", "audio": one.clip.audio, "speaker": one.speaker}
        if side:
            prompt = prompts.beside(one.speaker, {str(one.clip.audio)}, held_out, str(one.clip.audio))
            row |= {"voice_prompts": [prompt]} if prompt else {}
        sides[side].append(row)
    for record in records:
        for dialogue in record.dialogues:
            found = _dialogue_row(record, dialogue, prompts, default_speaker, held_out, between)
            if isinstance(found, str):
                rejected.append({"audio": dialogue.audio, "recording": record.recording, "reason": found})
            else:
                side, row = found
                sides[side].append(row)
    return Split(*sides, rejected, {speaker: (a, b) for speaker, (a, b) in sorted(seconds.items())})


def _speaker(record: Record, speaker: str | None, default: str) -> str:
    """Speakers that were told apart in a recording are known in it alone."""
    if speaker is None:
        return default
    return f"{record.recording}/{speaker}" if speaker.startswith("speaker") and speaker[7:].isdigit() else speaker


def _order(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def _choose(clips: Sequence[_Placed], share: float, seed: int) -> tuple[set[int], set[int]]:
    """Clips of the validation side, and those that are left out between the sides; by `id`."""
    held_out: set[int] = set()
    between: set[int] = set()
    if share <= 0:
        return held_out, between
    by_speaker: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    people: dict[str, set[str]] = defaultdict(set)
    for one in clips:
        by_speaker[one.speaker][one.group].append(one.clip)
        people[one.group].add(one.speaker)
    chosen: set[str] = set()
    for groups in (by_speaker[speaker] for speaker in sorted(by_speaker)):
        lengths = {group: sum(clip.duration_sec for clip in own) for group, own in groups.items()}
        wanted = share * sum(lengths.values())
        missing = wanted - sum(length for group, length in lengths.items() if group in chosen)
        for group in sorted(groups, key=lambda name: _order(seed, name)):
            some_left = len(chosen & set(groups)) + 1 < len(groups)
            if missing > 0 and group not in chosen and some_left and lengths[group] <= MOST_TOO_MUCH * wanted:
                chosen.add(group)
                missing -= lengths[group]
        alone = [group for group in groups if group not in chosen and len(people[group]) == 1]
        if missing > wanted / 2 and alone:
            longest = max(alone, key=lambda group: (lengths[group], group))
            _cut_off_the_end(groups[longest], missing, held_out, between)
    held_out |= {id(one.clip) for one in clips if one.group in chosen}
    return held_out, between


def _cut_off_the_end(clips: list[Clip], wanted_sec: float, held_out: set[int], between: set[int]) -> None:
    ordered = sorted(clips, key=lambda clip: clip.start_sec)
    first, found = len(ordered), 0.0
    while found < wanted_sec and first > BOUNDARY_CLIPS + 1:
        first -= 1
        found += ordered[first].duration_sec
    if first < len(ordered):
        held_out |= {id(clip) for clip in ordered[first:]}
        between |= {id(clip) for clip in ordered[first - BOUNDARY_CLIPS : first]}


class _Prompts:
    """Voice prompts by speaker."""

    def __init__(self, clips: Iterable[_Placed], seed: int) -> None:
        self._clips: dict[str, list[Clip]] = defaultdict(list)
        for one in clips:
            self._clips[one.speaker].append(one.clip)
        self._seed = seed

    def beside(self, speaker: str, without: set[str], side: set[int], key: str, *, held_out: bool = True) -> str | None:
        """Another clip of the speaker on the same side, of a good length if there is one."""
        own = [c for c in self._clips[speaker] if c.audio not in without and (id(c) in side) == held_out]
        low, high = PROMPT_SEC

        def badness(clip: Clip) -> tuple[float, str]:
            off = max(low - clip.duration_sec, clip.duration_sec - high, 0.0)
            return off, _order(self._seed, f"{key} {clip.audio}")

        return str(min(own, key=badness).audio) if own else None


def _dialogue_row(
    record: Record, dialogue: Dialogue, prompts: _Prompts, default: str, held_out: set[int], between: set[int]
) -> tuple[int, dict[str, Any]] | str:
    inside = [
        clip
        for clip in record.clips
        if clip.audio and dialogue.start_sec <= clip.start_sec and clip.end_sec <= dialogue.end_sec
    ]
    sides = {id(clip) in held_out for clip in inside}
    if len(sides) != 1 or any(id(clip) in between for clip in inside):
        return "reaches over the border between training and validation"
    side = sides.pop()
    numbers: dict[str, int] = {}
    lines = []
    for turn in dialogue.turns:
        number = numbers.setdefault(_speaker(record, turn.speaker, default), len(numbers))
        lines.append(f"Speaker {number}: {turn.text}")
    own = {str(clip.audio) for clip in inside}
    found = [prompts.beside(speaker, own, held_out, dialogue.audio, held_out=side) for speaker in numbers]
    if any(prompt is None for prompt in found):
        return "no voice prompt from elsewhere for each of its speakers"
    return int(side), {"text": "\n".join(lines), "audio": dialogue.audio, "voice_prompts": found}


def _rejected(records: Sequence[Record], between: set[int]) -> Iterable[dict[str, Any]]:
    for record in records:
        if record.failed is not None:
            yield {"recording": record.recording, "reason": record.failed}
        for clip in record.clips:
            reason = clip.rejected
            if id(clip) in between:
                reason = "left out between training and validation"
            if reason is not None:
                yield {
                    "recording": record.recording,
                    "from_sec": clip.start_sec,
                    "to_sec": clip.end_sec,
                    "text": clip.text,
                    "reason": reason,
                }
