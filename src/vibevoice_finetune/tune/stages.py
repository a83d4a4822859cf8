"""Stages: commands of this program, run as processes, each of which is done once.

`stages.json` remembers for every stage a key of what it was made of, and how long it took. A stage whose key is the
same, and whose result is there, is not run again. The commands themselves go on where they were stopped, so a stage
that was interrupted is simply run again.
"""

import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from vibevoice_finetune.errors import StoppedRun, UserError, shown
from vibevoice_finetune.files.atomic import write_json

STAGES_FILE = "stages.json"
LOGS_FOLDER = "logs"
POLL_SEC = 0.5
EXIT_STOPPED = 75
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Done:
    """A stage that was done.

    Attributes:
        key: of what it was made of.
        seconds: how long it took, of the run that ended it.
        note: what came of it, in a few words.
    """

    key: str
    seconds: float
    note: str = ""


class Stages:
    """The record of an output folder.

    Args:
        folder: the output folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STAGES_FILE
        self._done: dict[str, Done] = {}
        if self._path.is_file():
            try:
                entries = json.loads(self._path.read_text(encoding="utf-8"))
                self._done = {name: Done(**entry) for name, entry in entries.items()}
            except (ValueError, TypeError, AttributeError):  # damaged: everything is looked at again
                self._done = {}

    def find(self, name: str, key: str) -> Done | None:
        """The record of a stage, if it was done with what it would be done with now."""
        done = self._done.get(name)
        return done if done is not None and done.key == key else None

    def last(self, name: str) -> Done | None:
        """The record of a stage, whatever it was done with."""
        return self._done.get(name)

    def add(self, name: str, done: Done) -> None:
        """Remember that a stage is done."""
        self._done[name] = done
        write_json(self._path, {name: vars(done) for name, done in self._done.items()})


def key_of(settings: Any, files: Iterable[Path] = ()) -> str:
    """A key of settings and of the contents of files.

    Args:
        settings: plain values, without places: a folder that was moved is the same folder.
        files: hashed in the order of their names.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for path in sorted(files):
        digest.update(path.name.encode(errors="surrogateescape"))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def listing_key(settings: Any, files: Iterable[Path]) -> str:
    """A key of settings and of names, sizes and times of files, for what is too large to read each time."""
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files)]
    return key_of([settings, stamps])


def command(words: Sequence[str]) -> list[str]:
    """A command of this program as a process is started with it."""
    return [sys.executable, "-m", "vibevoice_finetune", *words]


def run(words: Sequence[str], log: Path, tell: Callable[[], None], what: str) -> int:
    """Run a command of this program to its end; what it says goes into a file.

    It dies with this process, however that ends. A signal that asks this process to stop is passed on once, so that
    `train` can save; a second one ends it at once.

    Args:
        words: of the command.
        log: where its output goes.
        tell: called twice a second, to show progress.
        what: the stage, for messages.

    Returns:
        Its exit code.

    Raises:
        StoppedRun: a signal asked to stop.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        file.write(f"\n$ vibevoice-finetune {' '.join(shown(word, 2000) for word in words)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            command(words),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            preexec_fn=die_with_parent,  # noqa: PLW1509  # this process has one thread
        )
    with _passing_signals_to(process) as asked:
        while True:
            try:
                code = process.wait(POLL_SEC)
                break
            except subprocess.TimeoutExpired:
                tell()
    if asked or code == EXIT_STOPPED:
        raise StoppedRun(f"stopped during: {what}; start the same command again to go on.")
    return code


def last_words(log: Path) -> str:
    """The last line of a log that says something, without `error:`."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or [""])[-1].removeprefix("error: ")


def failed(what: str, log: Path) -> UserError:
    """The error for a stage that did not succeed."""
    return UserError(f"{what} failed: {last_words(log)} (all it said: {shown(log)})")


def die_with_parent() -> None:
    """In a new process, before its program: be killed when the parent ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _passing_signals_to(process: "subprocess.Popen[bytes]") -> Iterator[list[int]]:
    """Pass the first signal that asks to stop on as SIGTERM, and kill at the second; yields those that came."""
    came: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if process.poll() is None:
            process.terminate() if len(came) == 1 else process.kill()

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if os.name == "posix" else []
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def since(began: float) -> float:
    """Seconds since a reading of the clock, with one decimal."""
    return round(time.monotonic() - began, 1)
