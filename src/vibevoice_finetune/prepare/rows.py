"""From the clips of all recordings to rows for `train`: a speaker for each, voice prompts, two sides that share nothing.

Pure functions over records; files are written by `prepare/run.py`.

- Training rows of one speaker carry `speaker`: `train` then shows each with another clip of the same speaker, drawn
  anew in every epoch. Validation rows carry a fixed `voice_prompts`, so that their curve moves only with the model.
- The split is by group (see `recordings.Recording`), so neighbouring cuts of one recording never stand on both sides.
  A speaker with a single group is split by time: the last clips go to validation, and the one before them is left out.
- Rows of several speakers have a voice prompt for each, taken from outside the dialogue.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vibevoice_finetune.prepare.job import Dialogue, Record
from vibevoice_finetune.prepare.recordings import Clip

PROMPT_SEC = (3.0, 15.0)
"""Lengths that make good voice prompts; the one nearest is taken where none is that long."""

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
    groups_of: dict[str, set[str]] = defaultdict(set)
    for one in clips:
        by_speaker[one.speaker][one.group].append(one.clip)
        groups_of[one.group].add(one.speaker)
    chosen_groups: set[str] = set()
    for speaker, groups in sorted(by_speaker.items()):
        total = sum(clip.duration_sec for own in groups.values() for clip in own)
        if len(groups) == 1:
            ((group, own),) = groups.items()
            if group not in chosen_groups and len(groups_of[group]) == 1:
                _cut_off_the_end(own, share * total, held_out, between)
            continue
        missing = share * total - sum(c.duration_sec for g, own in groups.items() if g in chosen_groups for c in own)
        for group in sorted(groups, key=lambda name: _order(seed, name)):
            rest = len(groups) - len(chosen_groups & set(groups))
            if missing <= 0 or rest <= 1:
                break
            if group not in chosen_groups:
                chosen_groups.add(group)
                missing -= sum(clip.duration_sec for clip in groups[group])
    held_out |= {id(one.clip) for one in clips if one.group in chosen_groups}
    return held_out, between


def _cut_off_the_end(clips: list[Clip], wanted_sec: float, held_out: set[int], between: set[int]) -> None:
    ordered = sorted(clips, key=lambda clip: clip.start_sec)
    found = 0.0
    for number in range(len(ordered) - 1, BOUNDARY_CLIPS, -1):
        if found >= wanted_sec:
            break
        held_out.add(id(ordered[number]))
        found += ordered[number].duration_sec
    last = len(ordered) - sum(id(clip) in held_out for clip in ordered)
    if held_out:
        between |= {id(clip) for clip in ordered[max(last - BOUNDARY_CLIPS, 0) : last]}


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
