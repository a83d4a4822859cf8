"""One writer a folder; the other is told who is there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vibevoice_finetune.files import locks
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.files.locks import InUseError, locked

HOLDER = """
import sys, time
from pathlib import Path
from vibevoice_finetune.files.locks import locked
with locked(Path(sys.argv[1]), "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("system_locks", [True, False])
def test_another_process_is_named_and_a_dead_one_is_not_waited_for(
    tmp_path: Path, system_locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    process = holder(folder)
    if not system_locks:
        monkeypatch.setattr(locks, "fcntl", None)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (folder, tmp_path / "link" / "out", tmp_path / "x" / ".." / "out"):
        message = rf"out: process {process.pid} \(train\) is writing there; wait until"
        with pytest.raises(InUseError, match=message), locked(name, "merge"):
            pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(folder, "train"), locked(tmp_path / "other", "train"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_the_same_process_may_not_lock_twice(tmp_path: Path) -> None:
    again = locked(tmp_path / "out", "train")
    with locked(tmp_path / "out", "train"), pytest.raises(InUseError, match="this program"), again:
        pass
    with locked(tmp_path / "out", "train"):
        pass


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "out", "train"):
        raise KeyError("a defect")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "nonsense", '{"pid": 1}', "[]", '{"pid": null, "host": 3, "doing": ""}'])
def test_a_lock_file_of_nobody_is_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / ".out.lock").write_text(content)
    with locked(tmp_path / "out", "train"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_locked_is_said() -> None:
    with pytest.raises(WriteError, match=r"/proc/1/x/out: cannot be written"), locked(Path("/proc/1/x/out"), "train"):
        pass
