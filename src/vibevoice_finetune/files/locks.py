"""Locks on output folders, so that two runs never write into one.

The message names the process that is there. A lock ends with its process, however that ends.
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import explaining_write_errors, is_alive

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # locks are left out there, see `locked`

LOCK_SUFFIX = ".lock"

_HELD: set[Path] = set()
"""Locks of this process; record locks do not keep a process from locking a second time."""


class InUseError(UserError):
    """A folder that another process is writing to."""


@contextmanager
def locked(folder: Path, doing: str, *, inside: bool = False) -> Iterator[None]:
    """Keep other processes from writing to a folder while this one does; a lock ends with its process.

    The lock is a file beside the folder, `.NAME.lock`, or in it, `.lock`, held through the system's record locks: no
    lock outlives a process that was killed. On Windows, and on file systems without locks, the file alone tells who is
    there: it counts as long as its process lives on this machine.

    Args:
        folder: need not exist; its parent is made.
        doing: what this process does, for the message another one gets, such as "train".
        inside: put the lock into the folder, which is made: for one that is added to rather than replaced, and that may
            be a mounted volume, beside which nobody can write.

    Raises:
        InUseError: another process is writing there; the message names it.
        WriteError: the lock cannot be written.
    """
    place = Path(os.path.realpath(folder))  # another name of the same folder means the same lock
    path = place / LOCK_SUFFIX if inside else place.with_name(f".{place.name[:80]}{LOCK_SUFFIX}")
    with explaining_write_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, folder)
    try:
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}))
        file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()
        _HELD.discard(path)


def _acquire(path: Path, folder: Path) -> Any:
    """Open and lock the lock file. Its owner deletes it when done, so what was locked may no longer be at its path."""
    while True:
        if path in _HELD:
            raise _in_use(folder, os.getpid(), socket.gethostname(), "this program")
        file = path.open("a+", encoding="utf-8")
        file.seek(0)
        said = _who(file.read(4096))
        try:
            locked = _record_lock(file)
        except BlockingIOError:
            file.close()
            raise _in_use(folder, *said) from None
        # This process's own number was a dead one's, as happens in containers: what it holds is in `_HELD`.
        is_other = said[0] not in (0, os.getpid()) and said[1] == socket.gethostname()
        if not locked and is_other and is_alive(said[0]):
            file.close()
            raise _in_use(folder, *said)
        try:
            same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            file.truncate(0)
            _HELD.add(path)
            return file
        file.close()


def _record_lock(file: Any) -> bool:
    """Whether the system locked the file; False where it has no locks. Raises BlockingIOError if another holds it."""
    if fcntl is None:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError from error
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL):
            return False
        raise
    return True


def _who(text: str) -> tuple[int, str, str]:
    """Process, machine and work of a lock's holder, as far as its file says."""
    with suppress(ValueError, TypeError, KeyError):
        found = json.loads(text)
        return int(found["pid"]), str(found["host"])[:80], str(found["doing"])[:80]
    return 0, "", ""


def _in_use(folder: Path, pid: int, host: str, doing: str) -> InUseError:
    elsewhere = f" on {host}" if host and host != socket.gethostname() else ""
    who = f"process {pid} ({doing}){elsewhere}" if pid else "another process"
    return InUseError(f"{folder}: {who} is writing there; wait until it is done, or choose another folder.")
