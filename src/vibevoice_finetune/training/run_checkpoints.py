"""Folders `checkpoint-N`, the run checkpoints: written whole or not at all, checked, found again, and rotated.

Each is closed with a marker that lists every file with its size and its hash. A folder without a marker, or with files
of other sizes, does not count. The hashes are compared before a run goes on from it: a disk that returned other bytes
would change the run, and nobody would notice.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vibevoice_finetune.errors import RunCheckpointError
from vibevoice_finetune.files.atomic import remove_folder, settle, write_json, writing_folder

MARKER = "complete.json"
NAME = re.compile(r"checkpoint-(\d{1,18})")
HOW_TO_GO_ON = "earlier run checkpoints are intact: free some space, then go on with --resume_from_checkpoint True"


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; on success it becomes `folder`, replacing what is there.

    Raises:
        WriteError: the disk is full or the place cannot be written; what was there before stays.
    """
    with writing_folder(folder, HOW_TO_GO_ON) as staging:
        yield staging
        files = {
            path.relative_to(staging).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        write_json(staging / MARKER, {"files": files})


def is_complete(folder: Path) -> bool:
    """Whether the folder has a marker and every file that it lists, in its size; the files are not read."""
    try:
        return all((folder / name).stat().st_size == size for name, (size, _) in _listed(folder).items())
    except (OSError, ValueError):
        return False


def damage(folder: Path) -> str | None:
    """What is wrong with a run checkpoint, in a phrase, or None. Every file is read.

    >>> damage(Path("checkpoint-7"))
    'it has no complete.json, which is written last'
    """
    try:
        listed = _listed(folder)
    except FileNotFoundError:
        return f"it has no {MARKER}, which is written last"
    except (OSError, ValueError):
        return f"its {MARKER} cannot be read"
    for name, (size, sha256) in listed.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"its {name} has {found:,} bytes instead of {size:,}"
            if _sha256(folder / name) != sha256:
                return f"its {name} has changed since it was written"
        except (OSError, ValueError):
            return f"its {name} cannot be read"
    return None


def check(folder: Path) -> None:
    """Refuse a damaged run checkpoint.

    Raises:
        RunCheckpointError: names the file, and the newest run checkpoint beside it that is whole.
    """
    wrong = damage(folder)
    if wrong is None:
        return
    whole, _ = newest_whole(folder.parent)
    advice = f"the newest whole one there is {whole.name}" if whole else f"there is no whole one in {folder.parent}"
    raise RunCheckpointError(f"{folder} is damaged: {wrong}; {advice}.")


def newest_whole(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest undamaged run checkpoint, and a phrase on each newer one that is damaged."""
    found: list[str] = []
    for folder in reversed(_numbered(output_dir)):
        wrong = damage(folder)
        if wrong is None:
            return folder, found
        found.append(f"{folder.name} is damaged ({wrong})")
    return None, found


def step_of(folder: Path) -> int | None:
    """The optimizer step of a folder called `checkpoint-N`, or None."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The complete run checkpoints in a folder, oldest first."""
    return [folder for folder in _numbered(output_dir) if is_complete(folder)]


def rotate(output_dir: Path, keep: int | None, best: Path | None) -> None:
    """Delete the oldest run checkpoints beyond `keep`; the newest and the best always stay."""
    if keep is None or keep <= 0:
        return
    checkpoints = complete_checkpoints(output_dir)
    protected = set(checkpoints[-1:])
    if best is not None:
        protected |= {checkpoint for checkpoint in checkpoints if checkpoint.name == best.name}
    excess = len(checkpoints) - max(keep, len(protected))
    for checkpoint in [c for c in checkpoints if c not in protected][: max(excess, 0)]:
        remove_folder(checkpoint)


def _numbered(output_dir: Path) -> list[Path]:
    """All folders `checkpoint-N`, by number; one that a crash caught between two renames is put back first."""
    if not output_dir.is_dir():
        return []
    for entry in output_dir.glob(".checkpoint-*.replaced"):
        settle(output_dir / entry.name.split(".")[1])
    steps = [(step, folder) for folder in output_dir.iterdir() if (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(steps) if folder.is_dir()]


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and hash of every file, by name, as the marker says. Raises OSError or ValueError if it says nothing."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        listed = {str(name): (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not a marker") from error
    if any("\0" in name for name in listed):
        raise ValueError("not a marker")
    return listed


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
