"""The one reader of small JSON files that hold an object: configurations, indexes, settings."""

import json
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import UserError

MAX_JSON_BYTES = 50_000_000
"""The largest file of a released model, its `tokenizer.json`, has 11 MB."""


def read_json_object(path: Path, kind: type[UserError], advice: str) -> dict[str, Any]:
    """Parse a file that must hold a JSON object.

    Args:
        path: the file.
        kind: of the error.
        advice: what to do if it cannot be read, such as "download it again".

    Raises:
        UserError: of that kind: it cannot be read, is too large, is not JSON or is not an object.
    """
    try:
        if path.exists() and not path.is_file():
            raise kind(f"{path}: is not a file; expected a JSON file; {advice}")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise kind(f"{path}: has {size:,} bytes; expected a JSON file of at most {MAX_JSON_BYTES:,}; {advice}")
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise kind(f"{path}: cannot be read ({error.strerror}); {advice}") from error
    except RecursionError as error:
        raise kind(f"{path}: is nested too deeply to be read; {advice}") from error
    except ValueError as error:
        raise kind(f"{path}: is not JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise kind(f"{path}: holds a JSON {type(value).__name__}; expected an object; {advice}")
    return value


def object_or_empty(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be missing or half written by another program; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
