"""The list as it should be: tags corrected, rows that `train` would refuse left out; and what was changed, by line.

Only what is certain is changed: the spelling of speaker tags. Rows with any other error are left out. Warnings change
nothing. Neither the original nor any other file is overwritten.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.data.rows import Columns
from vibevoice_finetune.errors import ArgumentError, shown
from vibevoice_finetune.files.atomic import check_writable, write_file
from vibevoice_finetune.validation.findings import KINDS, Finding, Severity
from vibevoice_finetune.validation.read import json_lines


@dataclass(frozen=True)
class Fixed:
    """What became of a list: rows as they were, corrected rows, rows left out."""

    kept: int
    corrected: int
    left_out: int
    changes: Path


def changes_path(fixed: Path) -> Path:
    """Where the changes to a list are written.

    >>> changes_path(Path("out/fixed.jsonl")).name
    'fixed.changes.jsonl'
    """
    return fixed.with_name(f"{fixed.stem}.changes.jsonl")


def check_targets(fixed: Path) -> None:
    """Refuse, before any work, to write where something stands.

    Raises:
        ArgumentError: it is not the name of a list, or a file is there already.
        WriteError: nothing can be written there.
    """
    if fixed.suffix.lower() not in (".jsonl", ".json"):
        raise ArgumentError(f"--fix {shown(fixed)}: expected is the file to write, such as fixed.jsonl.")
    for path in (fixed, changes_path(fixed)):
        if path.exists() or path.is_symlink():
            raise ArgumentError(
                f"--fix {shown(fixed)}: {shown(path)} exists already; nothing is overwritten; name another file."
            )
    check_writable(fixed.parent, "--fix")


def write_fixed(source: Path, fixed: Path, columns: Columns, findings: Sequence[Finding]) -> Fixed:
    """Write the corrected list and, beside it, one line for each row that was corrected or left out.

    Relative paths are rewritten if the new list lies in another folder, so that they lead to the same files.

    Args:
        source: the list that was validated.
        fixed: where to; nothing may be there.
        columns: the names of its keys.
        findings: what was found in it.

    Raises:
        ArgumentError: something is there already.
        WriteError: it cannot be written.
    """
    check_targets(fixed)
    errors: defaultdict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        if KINDS[finding.kind].severity is Severity.ERROR:
            errors[finding.row].append(finding)
    moved = os.path.relpath(source.parent.resolve(), fixed.parent.resolve())
    kept, changes, corrected = [], [], 0
    for number, values in json_lines(source):
        wrong = errors.get(f"{source.name}:{number}", [])
        change: dict[str, object] = {"line": number, "reasons": [f"{one.kind}: {one.found}" for one in wrong]}
        texts = [one.fixed for one in wrong if one.fixed is not None]
        if values is None or len(texts) != len(wrong):
            changes.append({**change, "action": "left out"})
            continue
        row = {**values, columns.text: texts[0]} if texts else values
        if texts:
            changes.append({**change, "action": "corrected", "before": values[columns.text], "after": texts[0]})
            corrected += 1
        kept.append(_moved(row, columns, moved) if moved != "." else row)
    write_file(fixed, _jsonl(kept))
    write_file(changes_path(fixed), _jsonl(changes))
    return Fixed(len(kept) - corrected, corrected, len(changes) - corrected, changes_path(fixed))


def _moved(values: dict[str, object], columns: Columns, folder: str) -> dict[str, object]:
    """The row with its relative paths as they are from another folder."""

    def move(value: object) -> object:
        if isinstance(value, str) and value and not os.path.isabs(value):  # noqa: PTH117 the text stays text
            return os.path.normpath(os.path.join(folder, value))  # noqa: PTH118
        if isinstance(value, list):
            return [move(one) for one in value]
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return {**value, "path": move(value["path"])}
        return value

    return {
        key: move(value) if key in (columns.audio, columns.voice_prompts) else value for key, value in values.items()
    }


def _jsonl(rows: Sequence[dict[str, object]]) -> str:
    return "".join(_line(row) + "\n" for row in rows)


def _line(row: dict[str, object]) -> str:
    """A row with its letters as they are; half characters, which UTF-8 has not, stay escaped."""
    text = json.dumps(row, ensure_ascii=False)
    return json.dumps(row) if re.search("[\ud800-\udfff]", text) else text
