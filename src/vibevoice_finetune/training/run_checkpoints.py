"""Folders `checkpoint-N`: written whole or not at all, found again, and rotated.

A checkpoint is written into a hidden folder beside its place, closed with a marker that lists every file and its size,
and renamed. What has no marker, or does not match it, is not a checkpoint. An old checkpoint is first renamed away and
then deleted, so that a kill in the middle leaves nothing that looks whole.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from vibevoice_finetune.errors import CheckpointError

MARKER = "complete.json"
SAVING_PREFIX = ".saving-"
DELETING_PREFIX = ".deleting-"
NAME = re.compile(r"checkpoint-(\d+)")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SAFETENSORS_WRITER = "while serializing"
TORCH_WRITER = ("inline_container", "basic_ios::clear")
"""What the messages of torch's zip writer hold; they are plain `RuntimeError`s."""


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write into; on success it becomes `folder`, replacing what is there.

    Raises:
        CheckpointError: the disk is full or the place cannot be written; what was there before stays.
    """
    staging = folder.parent / f"{SAVING_PREFIX}{folder.name}"
    try:
        with telling_of_a_full_disk(folder):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            close(staging)
            replace(staging, folder)
    except (CheckpointError, OSError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise _not_written(folder, error.strerror or str(error)) from error
        raise


@contextmanager
def telling_of_a_full_disk(path: Path) -> Iterator[None]:
    """Say in one line what the system, safetensors and torch each say in their own way when they cannot write.

    Raises:
        CheckpointError: something within the context could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise _not_written(path, os.strerror(error.errno)) from error
    except SafetensorError as error:
        if SAFETENSORS_WRITER not in str(error):
            raise
        raise _not_written(path, str(error)) from error
    except RuntimeError as error:
        if not any(part in str(error) for part in TORCH_WRITER):
            raise
        raise _not_written(path, "torch could not write all of its file, as on a full disk") from error


def _not_written(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be saved ({reason}); earlier checkpoints are intact. Free some space, "
        "then go on with --resume_from_checkpoint True."
    )


def close(folder: Path) -> None:
    """Flush every file of a folder to the disk and write the marker with their names and sizes."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
            sync(path)
    marker = folder / MARKER
    marker.write_text(json.dumps({"files": sizes}, indent=1), encoding="utf-8")
    sync(marker)
    for path in [*filter(Path.is_dir, folder.rglob("*")), folder]:
        sync(path)


def replace(staging: Path, folder: Path) -> None:
    """Rename a finished folder to its place; an older one there is moved away first and then deleted."""
    if folder.exists():
        remove(folder)
    staging.rename(folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that at no moment a part of it looks like the whole."""
    doomed = folder.parent / f"{DELETING_PREFIX}{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_complete(folder: Path) -> bool:
    """Whether the folder has a marker and every file that it lists, in its size."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def step_of(folder: Path) -> int | None:
    """The optimizer step of a folder called `checkpoint-N`, or None."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    if not output_dir.is_dir():
        return []
    _put_in_place(output_dir)
    steps = {folder: step_of(folder) for folder in output_dir.iterdir()}
    found = [(step, folder) for folder, step in steps.items() if step is not None and is_complete(folder)]
    return [folder for _, folder in sorted(found)]


def _put_in_place(output_dir: Path) -> None:
    """Finish what a kill broke off between moving an old checkpoint away and renaming its finished successor."""
    for staging in output_dir.glob(f"{SAVING_PREFIX}*"):
        folder = output_dir / staging.name.removeprefix(SAVING_PREFIX)
        if is_complete(staging) and not folder.exists():
            with suppress(FileNotFoundError):  # another process of the same run was faster
                staging.rename(folder)


def clear_leftovers(output_dir: Path) -> None:
    """Delete what a killed run left half written or half deleted."""
    for pattern in (f"{SAVING_PREFIX}*", f"{DELETING_PREFIX}*"):
        for folder in output_dir.glob(pattern):
            shutil.rmtree(folder, ignore_errors=True)


def rotate(output_dir: Path, keep: int | None, best: Path | None) -> None:
    """Delete the oldest checkpoints beyond `keep`; the newest and the best always stay."""
    if keep is None or keep <= 0:
        return
    checkpoints = complete_checkpoints(output_dir)
    protected = set(checkpoints[-1:])
    if best is not None:
        protected |= {checkpoint for checkpoint in checkpoints if checkpoint.name == best.name}
    excess = len(checkpoints) - max(keep, len(protected))
    for checkpoint in [c for c in checkpoints if c not in protected][: max(excess, 0)]:
        remove(checkpoint)
