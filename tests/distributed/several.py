"""Several command lines one after another in the same processes, which saves starting them each time.

``python -m tests.distributed.several LIST.json`` (or the same under torchrun) runs each list of words; a code other
than 0 ends it. Processes other than the first note what they create under the output folders, which must be nothing.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from vibevoice_finetune.commands.table import main, program

RANK = int(os.environ.get("RANK", "0"))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")


def note_changes(folders: list[str], found: list[str]) -> None:
    """Add every file that this process opens for writing, makes, renames or removes under the folders."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING)
        if writes and any(os.fspath(arguments[0]).startswith(folder) for folder in folders if _is_path(arguments[0])):
            found.append(f"{event} {arguments[0]!r}")

    sys.addaudithook(hook)


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike) and isinstance(os.fspath(value), str)


def run(list_path: Path) -> int:
    lines = json.loads(list_path.read_text(encoding="utf-8"))
    found: list[str] = []
    if RANK > 0:
        note_changes([words[words.index("--output_dir") + 1] for words in lines], found)
    for words in lines:
        code = main(words)
        if code:
            return code
    if RANK > 0:
        list_path.with_suffix(f".rank{RANK}").write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    program(lambda: run(Path(sys.argv[1])))
