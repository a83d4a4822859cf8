"""The clips of a project: what is trained on, what is wrong with it, what was left out; and the user's corrections.

Corrections are kept in `edits.json`, by the clip's file, and put into the rows again when `prepare` writes them anew.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import write_file, write_json
from vibevoice_finetune.files.json_objects import object_or_empty
from vibevoice_finetune.preparation.run import REJECTED_FILE, TRAIN_FILE, VALIDATION_FILE
from vibevoice_finetune.tune.data_check import rows_of, seconds_of
from vibevoice_finetune.tune.words import DATA
from vibevoice_finetune.web.workspace import Project

EDITS_FILE, PROBLEMS_FILE = "edits.json", "problems.json"
LONGEST_TEXT = 2_000
_PROBLEM = re.compile(r"(train|validation)\.jsonl:(\d+)(?:: [\w\[\]]+)?: (.+)")
_TAG = "Speaker 0: "


@dataclass(frozen=True)
class Clip:
    """One clip.

    Attributes:
        audio: its file, relative to the data folder.
        text: what is said, without the speaker's tag.
        seconds: its length.
        held_out: whether it is for validation.
        problems: what `validate` found.
    """

    audio: str
    text: str
    seconds: float
    held_out: bool
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A piece that is not used."""

    recording: str
    from_sec: float
    to_sec: float
    text: str
    reason: str


def clips_of(project: Project) -> list[Clip]:
    """The clips that are used."""
    data = project.folder / DATA
    problems = object_or_empty(data / PROBLEMS_FILE)
    return [
        Clip(
            audio=str(row["audio"]),
            text=str(row["text"]).removeprefix(_TAG),
            seconds=seconds_of(data / str(row["audio"])),
            held_out=name == VALIDATION_FILE,
            problems=tuple(problems.get(str(row["audio"]), ())),
        )
        for name in (TRAIN_FILE, VALIDATION_FILE)
        for row in rows_of(data / name)
    ]


def rejected_of(project: Project) -> list[Rejected]:
    """The pieces that are not used, with the reason for each."""
    return [
        Rejected(
            str(row.get("recording", row.get("audio", ""))),
            float(row.get("from_sec", 0.0)),
            float(row.get("to_sec", 0.0)),
            str(row.get("text", "")),
            str(row.get("reason", "")),
        )
        for row in rows_of(project.folder / DATA / REJECTED_FILE)
    ]


def correct(project: Project, audio: str, text: str | None) -> None:
    """Change what a clip says, or leave the clip out.

    Args:
        project: of the clip.
        audio: its file, as `Clip.audio`.
        text: what is said; None leaves the clip out.

    Raises:
        UserError: there is no such clip, or nothing is said.
    """
    if audio not in {clip.audio for clip in clips_of(project)}:
        raise UserError("This clip is not there any more; load the table again.")
    if text is not None:
        text = " ".join(text.split())
        if not text:
            raise UserError("The text is empty; write what is said, or leave the clip out.")
        if len(text) > LONGEST_TEXT:
            raise UserError(f"The text is longer than {LONGEST_TEXT:,} letters; a clip says far less.")
    edits = object_or_empty(project.folder / EDITS_FILE) | {audio: text}
    write_json(project.folder / EDITS_FILE, edits)
    apply_edits(project)


def apply_edits(project: Project) -> None:
    """Put all corrections into the rows."""
    edits = object_or_empty(project.folder / EDITS_FILE)
    data = project.folder / DATA
    for name in (TRAIN_FILE, VALIDATION_FILE):
        rows = list(rows_of(data / name))
        changed = [_edited(row, edits) for row in rows]
        kept = [row for row in changed if row is not None]
        if kept != rows:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
            write_file(data / name, text)


def _edited(row: dict[str, Any], edits: Mapping[str, Any]) -> dict[str, Any] | None:
    audio = str(row["audio"])
    if audio not in edits:
        return row
    return None if edits[audio] is None else row | {"text": _TAG + str(edits[audio])}


def note_problems(project: Project, said: str) -> None:
    """Keep what `validate` said, by clip.

    Args:
        project: that it looked at.
        said: its output.
    """
    data = project.folder / DATA
    audio = {
        (name.removesuffix(".jsonl"), number): str(row["audio"])
        for name in (TRAIN_FILE, VALIDATION_FILE)
        for number, row in enumerate(rows_of(data / name), 1)
    }
    found: dict[str, list[str]] = defaultdict(list)
    for side, number, what in _PROBLEM.findall(said):
        clip = audio.get((side, int(number)))
        if clip is not None and what not in found[clip]:
            found[clip].append(what)
    write_json(data / PROBLEMS_FILE, found)
