"""Files and folders written whole or not at all.

Why: a result that is half old and half new, or that a crash cut off, looks like a result. So everything is written
beside its place, flushed to the disk, and then renamed. A staging name says which process it belongs to; what a dead
process left behind is removed by the next writer of the same name.
"""

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vibevoice_finetune.errors import UserError

STAGING_SUFFIX = ".partial"
REPLACED_SUFFIX = ".replaced"
NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EPERM, errno.EACCES)
"""What file systems answer that cannot flush a folder or change a file's mode; neither is worth a failed run."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the system answers that only a write can have met."""

ABANDONED_SEC = 24 * 3600
"""A staging that nobody has touched for so long is a dead process's, though its number or machine may say otherwise:
containers start with the same process numbers again, or under another host name."""

SAFETENSORS_WRITER = "while serializing"
TORCH_WRITER = ("inline_container", "basic_ios::clear")
"""Parts of the messages of torch's zip writer when a disk is full; they are plain `RuntimeError`s."""

_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # linux/fcntl.h

_STAGING_NAME = re.compile(r"\.(?P<name>.+)\.(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]{12}\.(partial|replaced)", re.DOTALL)
_OWN: set[str] = set()
"""Names of stagings that this process has given out; in a container, a dead one may have had the same number."""


class WriteError(UserError):
    """A file or folder that could not be written; what stood in its place is unharmed."""


def write_file(path: Path, content: bytes | str) -> None:
    """Write a small file whole or not at all, also if the power fails. Text is UTF-8.

    Raises:
        WriteError: it cannot be written; what was there before stays.
    """
    with writing_file(path) as staging, staging.open("wb") as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON (no NaN, no infinity) as `write_file` does, with a final line break."""
    write_file(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def writing_file(path: Path, advice: str = "") -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success that file takes the place of `path`.

    Args:
        path: where the file goes; its folder is made.
        advice: what to do if it cannot be written; default: free some space or name another place.

    Raises:
        WriteError: it cannot be written, or what stands there is not a file; what was there before stays and nothing
            is left behind.
    """
    with explaining_write_errors(path, advice):
        if not path.name or (path.exists() and not path.is_file()):  # renaming would replace a device, too
            raise _write_error(path, "it is not a file", advice)
        staging = _staging(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        try:
            staging.touch()
            mode = staging.stat().st_mode
            yield staging
            _make_readable(staging, mode)
            _flush(staging)
            staging.replace(path)
            _flush(path.parent)
        finally:
            with suppress(OSError):
                staging.unlink(missing_ok=True)


@contextmanager
def writing_folder(folder: Path, advice: str = "") -> Iterator[Path]:
    """Yield an empty folder beside `folder` to write into; on success it takes the place of `folder`.

    A folder that is there already is exchanged in one step of the file system, so that at every moment there is
    either all of the old one or all of the new one. File systems that cannot exchange need two renames; what a crash
    leaves between the two is put back by the next `settle` or `writing_folder`.

    Args:
        folder: where it goes; its parent is made.
        advice: what to do if it cannot be written; default: free some space or name another place.

    Raises:
        WriteError: it cannot be written; what was there before stays and nothing is left behind.
    """
    staging = _staging(folder)
    with explaining_write_errors(folder, advice):
        folder.parent.mkdir(parents=True, exist_ok=True)
        settle(folder)
        _remove_leftovers(folder)
        try:
            staging.mkdir()
            yield staging
            _flush_tree(staging)
            _put_in_place(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def settle(folder: Path) -> None:
    """Put back a folder that a crash caught between being moved away and being replaced."""
    if folder.exists() or not folder.parent.is_dir():
        return
    for replaced in sorted(_beside(folder, REPLACED_SUFFIX)):
        if not _is_in_use(replaced):
            with suppress(OSError):  # another process was faster
                replaced.rename(folder)
                return


def remove_leftovers(folder: Path) -> None:
    """Delete what processes that are no longer alive left half written or half deleted directly inside a folder.

    For a folder that is written to by one process at a time; a lock sees to that.
    """
    for name in {match["name"] for entry in _entries(folder) if (match := _STAGING_NAME.fullmatch(entry))}:
        settle(folder / name)
        _remove_leftovers(folder / name)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file, which is made, with its folder, if it is not there.

    Raises:
        WriteError: it cannot be written.
    """
    with explaining_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def remove_folder(folder: Path) -> None:
    """Delete a folder so that at no moment a part of it looks like the whole."""
    doomed = _staging(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def check_writable(folder: Path, flag: str, name: Path | None = None) -> None:
    """Write and delete a small file in a folder, or in the nearest folder above it that exists; nothing is left.

    Call it before any long work whose result goes there.

    Args:
        folder: need not exist yet.
        flag: what to call it in the message, such as "--output_dir".
        name: the file in it that the message names; default: the folder.

    Raises:
        WriteError: nothing can be written there.
    """
    advice = f"choose another place with {flag}"
    with explaining_write_errors(name or folder, advice):
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{existing} is a file", str(folder))
        probe = _staging(existing / "probe")
        try:
            probe.write_bytes(b"\0" * 4096)
            _flush(probe)
        finally:
            probe.unlink(missing_ok=True)


@contextmanager
def explaining_write_errors(path: Path, advice: str = "", *, reads: bool = False) -> Iterator[None]:
    """Say in one line what the system, safetensors and torch each say in their own way when they cannot write.

    Errors about other files than `path` and its surroundings pass unchanged.

    Args:
        path: what is written.
        advice: what to do about it; default: free some space or choose another place.
        reads: whether files are read within the context, too; then only errors that no reading has are explained.

    Raises:
        WriteError: something within the context could not be written.
    """
    try:
        yield
    except OSError as error:
        if reads and error.errno not in NO_ROOM:
            raise
        if isinstance(error.filename, str) and not _concerns(Path(error.filename).absolute(), path.absolute()):
            raise
        raise _write_error(path, error.strerror or str(error), advice) from error
    except SafetensorError as error:
        if SAFETENSORS_WRITER not in str(error):
            raise
        raise _write_error(path, str(error), advice) from error
    except RuntimeError as error:
        if not any(part in str(error) for part in TORCH_WRITER):
            raise
        raise _write_error(path, "the file could not be written to its end, as on a full disk", advice) from error


def _staging(path: Path) -> Path:
    """A name beside `path` that no other writer uses, and that says which process is writing."""
    name = f".{path.name[:80]}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:12]}{STAGING_SUFFIX}"
    _OWN.add(name)
    return path.with_name(name)


def _host() -> str:
    return re.sub(r"[^\w]", "", socket.gethostname())[:24] or "host"


def _beside(path: Path, suffix: str) -> list[Path]:
    """What this module left beside `path` under such a suffix."""
    start = f".{path.name[:80]}."
    return [path.parent / name for name in _entries(path.parent) if name.startswith(start) and name.endswith(suffix)]


def _entries(folder: Path) -> list[str]:
    with suppress(OSError):
        return [entry.name for entry in folder.iterdir()]
    return []


def _remove_leftovers(path: Path) -> None:
    """Delete what processes of this machine that are no longer alive left beside `path`."""
    for leftover in (*_beside(path, STAGING_SUFFIX), *_beside(path, REPLACED_SUFFIX)):
        if _is_in_use(leftover):
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _is_in_use(staging: Path) -> bool:
    """Whether the process that a staging belongs to may be alive; of another machine's nothing is known."""
    match = _STAGING_NAME.fullmatch(staging.name)
    if match is None:
        return True
    if match["host"] == _host() and int(match["pid"]) == os.getpid():
        return staging.with_suffix(STAGING_SUFFIX).name in _OWN
    if match["host"] == _host() and not is_alive(int(match["pid"])):
        return False
    try:
        return time.time() - staging.lstat().st_mtime < ABANDONED_SEC
    except FileNotFoundError:
        return True  # its owner has just finished


def is_alive(pid: int) -> bool:
    """Whether this machine runs a process of this number."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is there, but another user's; or no such number can be
        return pid < 2**31
    return True


def _put_in_place(staging: Path, folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a folder", str(folder))
    if not folder.exists():
        staging.rename(folder)
    elif not _exchange(staging, folder):
        replaced = staging.with_name(staging.name.removesuffix(STAGING_SUFFIX) + REPLACED_SUFFIX)
        folder.rename(replaced)
        staging.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    _flush(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders swap names in one step (`renameat2(2)`); False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        call = libc.renameat2  # glibc 2.28
    except AttributeError:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _flush_tree(folder: Path) -> None:
    mode = folder.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _make_readable(path, mode)
        _flush(path)
    _flush(folder)


def _make_readable(path: Path, mode: int) -> None:
    """Give a file the mode that the umask allows: safetensors writes files for their owner alone."""
    try:
        path.chmod(mode & 0o666)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise


def _flush(path: Path) -> None:
    """Bring a file or a folder to the disk. Windows cannot open folders, some file systems cannot flush them."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _concerns(file: Path, path: Path) -> bool:
    """Whether an error about a file is one of writing `path`: the file lies beside it, in it, or above it."""
    return file.is_relative_to(path.parent) or path.is_relative_to(file)


def _write_error(path: Path, reason: str, advice: str) -> WriteError:
    reason = " ".join(reason.split())
    return WriteError(f"{path}: cannot be written ({reason}); {advice or 'free some space or choose another place'}.")
