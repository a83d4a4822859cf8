"""`train` in a process that is forked from one which has imported everything, and that can be told when to die.

A start costs a second instead of ten, so that a test can afford many.
"""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from vibevoice_finetune.commands.table import main
from vibevoice_finetune.training import run  # noqa: F401  what the fork server imports once

torch.set_num_threads(1)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class ChangeCounter:
    """Counts what the process does to files below a folder; kills it when a number is reached."""

    def __init__(self, folder: Path, kill_at: int | None) -> None:
        self.folder = str(folder)
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        # A file opened for reading counts too: it is opened to be flushed.
        if event not in CHANGES and event != "open":
            return
        where = arguments[0]
        if isinstance(where, str | os.PathLike) and str(os.fspath(where)).startswith(self.folder):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def child(words: Sequence[str], folder: Path, log: Path, kill_at: int | None, max_file_bytes: int | None) -> None:
    """What the process runs: both outputs go to `log`, the number of changes to `log`.count."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
    counter = ChangeCounter(folder, kill_at)
    sys.addaudithook(counter)
    code = main(words)
    print(f"changes: {counter.count}", flush=True)
    sys.exit(code)


def start(
    words: Sequence[str], folder: Path, log: Path, kill_at: int | None = None, max_file_bytes: int | None = None
) -> BaseProcess:
    """Start `vibevoice-finetune WORDS`.

    Args:
        words: after the program's name.
        folder: where changes of files are counted.
        log: what the process says.
        kill_at: number of the change at which it kills itself, before it is made.
        max_file_bytes: longest file that it can write, as if the disk were full.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=child, args=(words, folder, log, kill_at, max_file_bytes))
    process.start()
    return process


def finish(process: BaseProcess, timeout_sec: float = 120) -> int:
    """Wait for the end; the exit code, or the negative number of the signal that ended it."""
    process.join(timeout_sec)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def changes(log: Path) -> int:
    """How many changes of files a process that ended by itself has made."""
    return int(log.read_text(encoding="utf-8").split("changes: ")[1].split()[0])
