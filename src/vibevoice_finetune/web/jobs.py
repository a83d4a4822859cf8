"""What runs: one job per project, each a chain of this program's commands in processes of their own.

A job outlives the browser and the page's server. Its worker holds a lock on the project's `jobs` folder as long as it
lives, so a second one cannot start, whoever asks. `current.json` says what is running, `last.json` what came of the
last job.
"""

import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.files.json_objects import object_or_empty
from vibevoice_finetune.web.workspace import Project

JOBS, CURRENT, LAST, LOG = "jobs", "current.json", "last.json", "log.txt"
CLOCK_ERROR_SEC = 2.0
"""Two readings of when a process began may differ by so much."""

_STARTING = threading.Lock()
_CHILDREN: list["subprocess.Popen[bytes]"] = []
"""Workers of this server, to be waited for: an ended process stays in the table until that is done."""


class BusyError(UserError):
    """The project has a job already."""


@dataclass(frozen=True)
class Job:
    """A chain of commands.

    Attributes:
        kind: "prepare", "train", "evaluate", "speak" or "merge".
        commands: the words of each, in their order.
    """

    kind: str
    commands: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Status:
    """What a project's jobs are doing.

    Attributes:
        kind: of the job that runs, or of the last one; empty if there was none.
        running: whether it runs.
        step: the command of the chain that is under way.
        since: when it began, in seconds of the clock.
        code: exit code of the last one; None while it runs.
        message: what it said at last, if it failed.
        seconds: how long the last one took.
    """

    kind: str = ""
    running: bool = False
    step: str = ""
    since: float = 0.0
    code: int | None = None
    message: str = ""
    seconds: float = 0.0


def start(project: Project, job: Job) -> None:
    """Start a job.

    Raises:
        BusyError: the project has one already.
    """
    folder = project.folder / JOBS
    with _STARTING:
        if status(project).running:
            raise BusyError("Something is running for this project already; wait for it, or press Stop.")
        folder.mkdir(parents=True, exist_ok=True)
        order = folder / "order.json"
        write_json(order, asdict(job))
        process = subprocess.Popen(
            [sys.executable, "-m", "vibevoice_finetune.web.worker", str(project.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # so that it outlives the page's server
        )
        _CHILDREN.append(process)
        write_current(folder, job.kind, "", process.pid)


def stop(project: Project) -> bool:
    """Ask the running job to stop; a training saves first. False if nothing runs."""
    worker = _worker(object_or_empty(project.folder / JOBS / CURRENT))
    if worker is None:
        return False
    try:
        worker.terminate()
    except psutil.NoSuchProcess:
        return False
    return True


def status(project: Project) -> Status:
    """What a project's jobs are doing."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]
    folder = project.folder / JOBS
    current = object_or_empty(folder / CURRENT)
    if _worker(current) is not None:
        return Status(
            str(current.get("kind", "")), True, str(current.get("step", "")), float(current.get("since", 0.0))
        )
    last = object_or_empty(folder / LAST)
    if current and current.get("since", 0) > last.get("ended", 0):  # killed before it could say how it ended
        return Status(
            str(current.get("kind", "")), code=-1, message="It was ended from outside, or the machine was restarted."
        )
    if not last:
        return Status()
    return Status(
        kind=str(last.get("kind", "")),
        code=int(last.get("code", 0)),
        message=str(last.get("message", "")),
        seconds=float(last.get("seconds", 0.0)),
    )


def write_current(folder: Path, kind: str, step: str, pid: int) -> None:
    """Say what is running, by whom."""
    began = psutil.Process(pid).create_time()
    before = object_or_empty(folder / CURRENT)
    same = before.get("pid") == pid and abs(before.get("began", 0) - began) < CLOCK_ERROR_SEC
    since = before["since"] if same else time.time()
    write_json(folder / CURRENT, {"kind": kind, "step": step, "pid": pid, "began": began, "since": since})


def write_last(folder: Path, kind: str, code: int, message: str, seconds: float) -> None:
    """Say how a job ended."""
    entry = {"kind": kind, "code": code, "message": message, "seconds": round(seconds, 1), "ended": time.time()}
    write_json(folder / LAST, entry)


def read_order(project: Project) -> Job:
    """The job that a worker is to do."""
    entry = object_or_empty(project.folder / JOBS / "order.json")
    return Job(str(entry["kind"]), tuple(tuple(map(str, words)) for words in entry["commands"]))


def tail(path: Path, lines: int = 40, most_bytes: int = 20_000) -> str:
    """The end of a log, whatever its length; of a line that was drawn over, its last state."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.rstrip("\n").split("\n")[-lines:])


def _worker(current: dict[str, Any]) -> psutil.Process | None:
    """The process that `current.json` names, if it is still that one."""
    try:
        process = psutil.Process(int(current["pid"]))
        same = abs(process.create_time() - float(current["began"])) < CLOCK_ERROR_SEC
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (KeyError, ValueError, psutil.Error):
        return None
