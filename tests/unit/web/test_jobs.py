import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.web import jobs
from vibevoice_finetune.web.jobs import BusyError, Job, start, status, stop, tail
from vibevoice_finetune.web.workspace import Project, Workspace

VERSION = Job("train", (("--version",),))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Workspace(tmp_path).create("anna")


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_nothing_has_run(project: Project) -> None:
    assert status(project) == jobs.Status()
    assert not stop(project)


def test_a_job_runs_once_and_says_how_it_ended(project: Project) -> None:
    start(project, Job("speak", (("--version",), ("--help",))))
    assert status(project).running
    with pytest.raises(BusyError, match="Something is running"):
        start(project, VERSION)
    wait_for(lambda: not status(project).running)
    ended = status(project)
    assert (ended.kind, ended.code, ended.message) == ("speak", 0, "")
    log = tail(project.folder / "jobs" / "log.txt")
    assert "$ vibevoice-finetune --version" in log
    assert "commands:" in log


def test_a_failure_ends_the_chain_and_is_said(project: Project) -> None:
    start(project, Job("prepare", (("prepare", "/not/there", "--output", str(project.folder / "data")), ("--help",))))
    wait_for(lambda: not status(project).running)
    ended = status(project)
    assert ended.code == 2
    assert "there is no such file or folder" in ended.message
    assert "$ vibevoice-finetune --help" not in tail(project.folder / "jobs" / "log.txt")


def test_a_second_worker_does_nothing_while_one_is_there(project: Project) -> None:
    place = project.folder / "jobs"
    place.mkdir()
    jobs.write_json(place / "order.json", {"kind": "train", "commands": [["--version"]]})
    with locked(place, "test", inside=True):
        done = subprocess.run([sys.executable, "-m", "vibevoice_finetune.web.worker", str(project.folder)], check=False)
    assert done.returncode == 1
    assert not (place / "last.json").exists()
    assert not (place / "log.txt").exists()


def test_another_process_of_the_same_number_is_not_the_job(project: Project) -> None:
    place = project.folder / "jobs"
    entry = {"kind": "train", "step": "train", "pid": os.getpid(), "began": 1.0, "since": 1.0}
    jobs.write_json(place / "current.json", entry)
    found = status(project)
    assert not found.running
    assert (found.code, found.kind) == (-1, "train")


def test_a_running_job_can_be_stopped(project: Project) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    place = project.folder / "jobs"
    place.mkdir()
    jobs.write_current(place, "train", "train", sleeper.pid)
    assert status(project).running
    assert stop(project)
    sleeper.wait(20)
    assert not status(project).running


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": "x"}'])
def test_a_damaged_record_means_that_nothing_runs(project: Project, text: str) -> None:
    place = project.folder / "jobs"
    place.mkdir()
    (place / "current.json").write_text(text)
    assert not status(project).running


def test_the_end_of_a_long_log_is_read_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(300_000)) + b" 10%\r 20%\r 30%\n")
    began = time.process_time()
    assert tail(log, 3) == "line 299998\nline 299999\n 30%"
    assert time.process_time() - began < 0.1
