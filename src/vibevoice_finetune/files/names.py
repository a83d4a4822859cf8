"""What a mistyped path was meant to be.

Names that look the same on a screen may differ: in case, in blanks, in slashes, or in how an accented letter is stored
(macOS keeps it as two characters). A path copied from a browser begins with ``file://``.
"""

import unicodedata
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote

MAX_ENTRIES = 10_000
"""Entries of a folder that are compared."""


def near_miss(name: str) -> Path | None:
    """The existing file or folder whose path equals `name` but for case, blanks, slashes or Unicode's composed forms.

    >>> near_miss("pyproject.toml ") == near_miss("PyProject.toml")  # both None, or both the file that is there
    True
    """
    if name.startswith("file:"):
        name = unquote(name.removeprefix("file:"))
        name = "/" + name.lstrip("/")
    with suppress(OSError, ValueError):  # too long a name, one with a NUL
        path = Path(name.strip().replace("\\", "/")).expanduser()
        found = Path(path.anchor)
        for part in path.relative_to(path.anchor).parts:
            exact = found / part
            following = exact if part == ".." or exact.exists() else _similar_entry(found, part)
            if following is None:
                return None
            found = following
        return found if found != Path(path.anchor) else None
    return None


def _similar_entry(folder: Path, name: str) -> Path | None:
    wanted = _plain(name)
    for number, entry in enumerate(folder.iterdir()):
        if number >= MAX_ENTRIES:
            return None
        if _plain(entry.name) == wanted:
            return entry
    return None


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
