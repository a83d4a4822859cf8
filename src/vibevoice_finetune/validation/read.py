"""All rows and everything that is wrong with their form: unlike `train`, nothing ends at the first mistake.

In come a JSONL file or a data set, out go the rows that can be used and findings about the others. Texts are looked at
in every line that is JSON, so that a row with a missing file is also told about its speaker tag.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vibevoice_finetune.data.jsonl import read_dataset, read_jsonl
from vibevoice_finetune.data.rows import BadRows, Columns, Row
from vibevoice_finetune.data.script import check_voice_count, num_speakers, parse_script
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.validation.findings import Finding, counted
from vibevoice_finetune.validation.text_checks import check_letters, check_script, check_words

KIND_OF_REASON = {
    "missing file": "missing-file",
    "empty audio": "unreadable-audio",
    "undecodable audio": "unreadable-audio",
    "non-finite audio": "unreadable-audio",
    "silent audio": "silent",
    "channels cancel": "channels-cancel",
    "too long": "too-long",
    "too short": "too-short",
}
"""Kinds of the errors about audio, by their reason; everything else is a `bad-row`."""


class Collected(BadRows):
    """Keeps every bad row as a finding; neither the first nor the thousandth ends the reading."""

    def __init__(self) -> None:
        super().__init__("skip")
        self.findings: list[Finding] = []

    def report(self, error: DataError, reason: str) -> None:
        """Keep the error."""
        super().report(error, reason)
        self.findings.append(finding_of(error, reason))

    def check(self, total_rows: int, before: int = 0) -> None:
        """Any share of bad rows will do: they are what is looked for."""


@dataclass(frozen=True, eq=False)
class ReadRows:
    """Rows that can be used, and what is wrong with the form of the rest.

    Attributes:
        rows: with a script that can be parsed.
        findings: about all rows, their texts included.
        total: rows there were.
    """

    rows: Sequence[Row] = ()
    findings: list[Finding] = field(default_factory=list)
    total: int = 0


def finding_of(error: DataError, reason: str) -> Finding:
    """A row's error as a finding: its message begins with the place."""
    message = str(error)
    where = message.split(": ")[0]
    return Finding(KIND_OF_REASON.get(reason, "bad-row"), where, message.removeprefix(f"{where}: "))


def read_file(path: Path, columns: Columns = Columns()) -> ReadRows:  # noqa: B008  # frozen
    """Read a JSONL file.

    Raises:
        DataError: it cannot be read, or holds no rows.
    """
    collected = Collected()
    rows = read_jsonl(path, columns, collected)
    texts = list(_texts(path, columns.text))
    return _checked(rows, texts, collected)


def read_hub(
    name: str, config: str | None, split: str, columns: Columns, cache_dir: Path | None, *, ignore_verifications: bool
) -> ReadRows:
    """Read a Hugging Face data set, as `read_dataset` does.

    Raises:
        DataError: it cannot be found or read, or lacks the split or a column.
    """
    collected = Collected()
    rows = read_dataset(name, config, split, columns, cache_dir, collected, ignore_verifications)
    return _checked(list(rows), [(row.where, row.text) for row in rows], collected)


def check_rows(rows: Iterable[Row]) -> Iterator[Finding]:
    """What can be wrong with the words of scripts that `train` takes; what it refuses, it says itself."""
    texts = []
    for row in rows:
        texts.append((row.where, row.text))
        found = list(check_words(row.text, row.where))
        if found and _is_script(row):  # asked for few rows, because it takes longer
            yield from found
    yield from check_letters(texts)


def _is_script(row: Row) -> bool:
    try:
        parse_script(row.text, row.where)
    except DataError:
        return False
    return True


def _checked(rows: Sequence[Row], texts: Sequence[tuple[str, str]], collected: Collected) -> ReadRows:
    findings = [*collected.findings, *check_letters(texts)]
    for where, text in texts:
        findings += check_script(text, where)
    for row in rows:
        findings += _check_prompts(row)
    refused = {finding.row for finding in findings if finding.kind in ("speaker-tag", "empty-turn", "control-token")}
    usable = [row for row in rows if row.where not in refused]
    return ReadRows(usable, findings, len(rows) + len(collected.findings))


def _check_prompts(row: Row) -> Iterator[Finding]:
    if row.voice_prompts is None:
        return
    try:
        speakers = num_speakers(parse_script(row.text, row.where))
    except DataError:
        return
    try:
        check_voice_count(len(row.voice_prompts), speakers, row.where)
    except DataError:
        found = f"{counted(len(row.voice_prompts), 'prompt')}, {counted(speakers, 'speaker')}"
        yield Finding("prompt-count", row.where, found)


def _texts(path: Path, column: str) -> Iterator[tuple[str, str]]:
    """Place and text of every line that has one; `read_jsonl` has said what is wrong with the others."""
    for number, values in json_lines(path):
        if values is not None and isinstance(text := values.get(column), str) and text.strip():
            yield f"{path.name}:{number}", text


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, object] | None]]:
    """Each line that is not blank with its number from 1: its object, or None where it holds none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not content.strip():
                continue
            try:
                values = json.loads(content)
            except (ValueError, RecursionError):
                values = None
            yield number, values if isinstance(values, dict) else None
