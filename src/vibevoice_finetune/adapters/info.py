"""`vibevoice_finetune.json`: what an adapter folder says of itself.

Why: tensors alone do not say which model they belong to, whether a voice prompt is expected, and whether they are all
still there. The file is written last, so it also marks a folder as complete.

In: facts of a run. Out: the file, and back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vibevoice_finetune.adapters.files import read_json
from vibevoice_finetune.errors import AdapterError

INFO_FILE = "vibevoice_finetune.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class AdapterInfo:
    """What is known of an adapter beside its tensors."""

    base_model: str  # as the user named it: a Hub id or a folder
    base_fingerprint: str  # `model_fingerprint` of the base; equal for both layouts of the same weights
    expects_voice_prompt: bool  # whether the rows it was trained on had voice prompts
    versions: Mapping[str, str] = field(default_factory=dict)  # package to version
    settings: Mapping[str, Any] = field(default_factory=dict)  # the flags of the run, as JSON


@dataclass(frozen=True)
class FileRecord:
    """One file of the folder as it was written."""

    sha256: str
    size_bytes: int


def write_info(folder: Path, info: AdapterInfo, trained: Mapping[str, Any], contents: Mapping[str, FileRecord]) -> None:
    """Write the file.

    Args:
        folder: where.
        info: the facts.
        trained: what was trained and how, as JSON.
        contents: files by their name relative to the folder.
    """
    value = {
        "format_version": FORMAT_VERSION,
        "base_model": info.base_model,
        "base_fingerprint": info.base_fingerprint,
        "expects_voice_prompt": info.expects_voice_prompt,
        "trained": dict(trained),
        "contents": {
            name: {"sha256": record.sha256, "size_bytes": record.size_bytes} for name, record in contents.items()
        },
        "versions": dict(info.versions),
        "settings": dict(info.settings),
    }
    (folder / INFO_FILE).write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_info(path: Path) -> tuple[AdapterInfo, dict[str, FileRecord]]:
    """Read the file.

    Returns:
        The facts, and the record of each file by its name relative to the folder. The names are checked to lie inside.

    Raises:
        AdapterError: no JSON, written by a later version, or a value of the wrong kind.
    """
    raw = read_json(path)
    version = raw.get("format_version")
    if version != FORMAT_VERSION:
        raise AdapterError(
            f"{path}: format_version is {version!r:.200}; this version of vibevoice-finetune reads {FORMAT_VERSION}; "
            "install the version that wrote the adapter"
        )
    info = AdapterInfo(
        base_model=_value(path, raw, "base_model", str),
        base_fingerprint=_value(path, raw, "base_fingerprint", str),
        expects_voice_prompt=_value(path, raw, "expects_voice_prompt", bool),
        versions=_value(path, raw, "versions", dict),
        settings=_value(path, raw, "settings", dict),
    )
    contents = {}
    for name, record in _value(path, raw, "contents", dict).items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name:
            raise AdapterError(f"{path}: contents names {name!r:.200}, which lies outside the folder; do not trust it")
        if not isinstance(record, dict):
            raise AdapterError(f"{path}: the record of {name} is {record!r:.200}; expected sha256 and size_bytes")
        contents[str(parts)] = FileRecord(_value(path, record, "sha256", str), _value(path, record, "size_bytes", int))
    return info, contents


def _value(path: Path, raw: Mapping[str, Any], key: str, kind: type) -> Any:
    value = raw.get(key)
    if not isinstance(value, kind):
        raise AdapterError(f"{path}: {key} is {value!r:.200}; expected {kind.__name__}; download or copy it again")
    return value
