"""What `validate` says of clips, said before they become rows.

The checks and their thresholds are those of `validate --deep` (`validation/audio_checks.py`, `text_checks.py`). An
error, which `train` would refuse, leaves the clip out. Warnings are kept with the clip, counted, and shown in the
report; `--reject` names those that leave it out, too.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from vibevoice_finetune.audio.measure import decay_time
from vibevoice_finetune.audio.source import SILENCE_RMS
from vibevoice_finetune.audio.stream import Piece
from vibevoice_finetune.data.script import TAG_AT_START
from vibevoice_finetune.preparation.recordings import Clip, Dialogue, Record
from vibevoice_finetune.validation.audio_checks import ClipInSet, check_set, check_sound
from vibevoice_finetune.validation.findings import KINDS, Finding, Severity
from vibevoice_finetune.validation.listen import Sound, measured
from vibevoice_finetune.validation.text_checks import check_letters, check_script, spoken_length

_TAG = re.compile(rf"^{TAG_AT_START}", re.IGNORECASE)

REJECTABLE = tuple(
    name
    for name, kind in KINDS.items()
    if kind.severity is Severity.WARNING
    and name
    in (
        *("speaking-rate", "two-people", "music", "noise", "reverberation", "clipped", "narrow-band", "cut-start"),
        *("cut-end", "short-clip", "dc-offset", "markup", "digits", "abbreviation", "foreign-script", "odd-character"),
    )
)
"""Warnings that can be given to a single clip here."""


def check_piece(piece: Piece) -> tuple[dict[str, float], list[Finding]]:
    """Listen to a clip as it was recorded, before its level is changed.

    Returns:
        Figures, and what was found.
    """
    if math.sqrt(float(np.var(piece.samples, dtype=np.float64))) < SILENCE_RMS:
        return {}, [Finding("silent", "", "nothing but silence")]
    sound = measured(piece.samples, piece.original, piece.rate_hz)
    return _figures(sound), list(check_sound(sound, ""))


def without_tag(text: str) -> str:
    """A text without the tag that it may begin with: its row gets one.

    >>> without_tag("Speaker 1: Well, no.")
    'Well, no.'
    """
    return _TAG.sub("", text, count=1).lstrip()


def check_text(text: str) -> list[Finding]:
    """Look at a clip's text, which has no speaker tag yet."""
    return list(check_script(f"Speaker 0: {text}", ""))


def with_findings(clip: Clip, findings: Iterable[Finding], figures: dict[str, float] | None = None) -> Clip:
    """Note what was found: an error leaves the clip out."""
    for found in findings:
        kind = KINDS[found.kind]
        if kind.severity is Severity.WARNING:
            clip = replace(clip, warnings=clip.warnings | {found.kind: found.found})
        elif clip.rejected is None:
            clip = replace(clip, rejected=f"{kind.title}: {found.found}")
    return replace(clip, figures=clip.figures | (figures or {}))


def compare_clips(records: Sequence[Record]) -> list[Record]:
    """Add the warnings that only the whole set can give: the pace of speech, and letters of another script."""
    clips = [clip for record in records for clip in record.clips if clip.audio]
    findings = list(
        check_set(
            [
                ClipInSet(
                    where=str(clip.audio),
                    speaker=clip.speaker,
                    level_dbfs=None,
                    speech_sec=clip.speech_end_sec - clip.speech_start_sec,
                    characters=spoken_length(f"Speaker 0: {clip.text}"),
                )
                for clip in clips
            ]
        )
    )
    findings += check_letters([(str(clip.audio), f"Speaker 0: {clip.text}") for clip in clips])
    by_clip: dict[str, list[Finding]] = {}
    for found in findings:
        by_clip.setdefault(found.where, []).append(found)
    return [
        replace(
            record,
            clips=tuple(with_findings(clip, by_clip.get(str(clip.audio), ())) for clip in record.clips),
        )
        for record in records
    ]


def leave_out(records: Sequence[Record], kinds: Collection[str]) -> list[Record]:
    """Leave out clips with a warning of these kinds, and dialogues that such a clip is part of."""
    return [_without(record, kinds) for record in records]


def _without(record: Record, kinds: Collection[str]) -> Record:
    clips = tuple(_rejected(clip, kinds) for clip in record.clips)
    gone = [one for one, before in zip(clips, record.clips, strict=True) if one is not before]

    def holds_one(dialogue: Dialogue) -> bool:
        return any(dialogue.start_sec <= clip.start_sec and clip.end_sec <= dialogue.end_sec for clip in gone)

    return replace(record, clips=clips, dialogues=tuple(one for one in record.dialogues if not holds_one(one)))


def _rejected(clip: Clip, kinds: Collection[str]) -> Clip:
    kind = next((kind for kind in clip.warnings if kind in kinds), None)
    if kind is None or clip.rejected is not None:
        return clip
    return replace(clip, rejected=f"{KINDS[kind].title}: {clip.warnings[kind]}")


def _figures(sound: Sound) -> dict[str, float]:
    figures = {
        "level_dbfs": sound.level_dbfs,
        "peak_dbfs": sound.peak_dbfs,
        "signal_to_noise_db": -sound.noise_db,
        "bandwidth_hz": sound.bandwidth_hz,
        "clipped_share": sound.clipped_share,
    }
    if sound.fall_db is not None:
        figures["decay_sec"] = decay_time(sound.fall_db)
    return {name: round(value, 6 if name == "clipped_share" else 2) for name, value in figures.items()}
