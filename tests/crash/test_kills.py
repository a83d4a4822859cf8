"""Real processes are killed, stopped and starved of disk: the next start goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.crash.child import changes, finish, start
from tests.crash.kills import FLAGS, assert_same_end, check_whole, kill_and_resume
from tests.processes import logs, train_words, write_rows
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints

STEPS = ("--max_steps", 4)


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def nine_rows(tmp_path_factory):
    """Two are for evaluation, the other seven are two steps an epoch, the second one smaller.

    So 2.2 epochs are 4.4 steps, rounded up: five, and the end is inside the third epoch.
    """
    return write_rows(tmp_path_factory.mktemp("nine"), 9)


def test_kills_at_random_moments_change_nothing(nine_rows, tmp_path):
    tally = kill_and_resume(tmp_path, nine_rows, 3, 1, "--num_train_epochs", 2.2)
    assert tally.kills == 3


@pytest.mark.slow
@pytest.mark.parametrize("length", [("--max_steps", 4), ("--num_train_epochs", 2.2)], ids=["steps", "epochs"])
def test_ten_kills_at_random_moments_change_nothing(nine_rows, tmp_path, length):
    tally = kill_and_resume(tmp_path, nine_rows, 10, 1, *length)
    assert tally.by_change >= 2
    assert tally.by_clock >= 2


@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGTERM, 0.0), pytest.param(signal.SIGINT, 0.3, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_ends_with_its_own_code(jsonl, tmp_path, number, seconds):
    flags = (*FLAGS, "--max_steps", 300, "--save_steps", 1000, "--lr_scheduler_type", "constant")
    out = tmp_path / "out"
    process = start(train_words(jsonl, out, *flags), out, tmp_path / "log")
    deadline = time.monotonic() + 120
    while not (out / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        assert process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(process.pid, number)
    assert finish(process) == 75, (tmp_path / "log").read_text()
    (saved,) = complete_checkpoints(out)
    step = check_whole(saved)
    said = " ".join((tmp_path / "log").read_text().split())
    assert f"stopped by {number.name} after step {step}" in said
    assert "--resume_from_checkpoint True" in said
    flags = (*flags, "--max_steps", step + 1, "--allow_changed_run", "True", "--resume_from_checkpoint", "True")
    assert finish(start(train_words(jsonl, out, *flags), out, tmp_path / "log")) == 0
    assert f"going on from {saved}" in (tmp_path / "log").read_text().replace("\n", "")
    losses = [log["step"] for log in logs(out) if "loss" in log]
    assert losses == list(range(1, step + 2))


def test_a_file_that_cannot_grow_leaves_the_earlier_checkpoints(jsonl, tmp_path):
    """The optimizer of a whole head is the largest file; the limit lies below it from the second step on."""
    out = tmp_path / "out"
    head = ("--train_diffusion_head", "True")
    words = train_words(jsonl, out, *FLAGS, *STEPS, *head)
    assert finish(start([*words, "--max_steps", "1"], out, tmp_path / "log")) == 0
    shutil.rmtree(out / "lora")
    (first,) = complete_checkpoints(out)
    for name in ("optimizer.pt", "trainable.safetensors"):
        size = (first / name).stat().st_size
        limit = size - 1000
        resumed = [*words, "--allow_changed_run", "True", "--resume_from_checkpoint", "True"]
        assert finish(start(resumed, out, tmp_path / "log", max_file_bytes=limit)) == 2, (tmp_path / "log").read_text()
        said = " ".join((tmp_path / "log").read_text().split())
        assert "cannot be written" in said
        assert "earlier run checkpoints are intact" in said
        assert "Traceback" not in said
        assert [folder.name for folder in complete_checkpoints(out)] == ["checkpoint-1"]
        assert check_whole(first) == 1
        assert not list(out.glob(".*")), "it keeps the space that is missing"


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_message_and_more_space_mends_it(jsonl, tmp_path, small_disk):
    head = ("--train_diffusion_head", "True")
    words = train_words(jsonl, small_disk / "out", *FLAGS, *STEPS, *head)
    keep_all = [*words, "--save_total_limit", "100"]
    assert finish(start(keep_all, small_disk, tmp_path / "log")) == 2, (tmp_path / "log").read_text()
    said = " ".join((tmp_path / "log").read_text().split())
    assert "error: " in said
    assert "cannot be written" in said
    assert "Traceback" not in said
    saved = complete_checkpoints(small_disk / "out")
    assert saved, "not even one fits: the test's disk is too small"
    assert [check_whole(folder) for folder in saved] == list(range(1, len(saved) + 1))
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
    resumed = [*keep_all, "--resume_from_checkpoint", "True"]
    assert finish(start(resumed, small_disk, tmp_path / "log")) == 0, (tmp_path / "log").read_text()
    whole = tmp_path / "whole"
    words = [*train_words(jsonl, whole, *FLAGS, *STEPS, *head), "--save_total_limit", "100"]
    assert finish(start(words, whole, tmp_path / "log")) == 0
    assert_same_end(whole, small_disk / "out")


def test_every_moment_of_writing_and_rotating_leaves_whole_checkpoints(tmp_path):
    """One process for every change of a file in two savings; forked, because each takes a millisecond."""
    from tests.crash.savings import save_twice_and_die_at

    moments = save_twice_and_die_at(tmp_path / "count", None)
    assert moments > 30
    for moment in range(1, moments + 1):
        folder = tmp_path / str(moment)
        pid = os.fork()
        if pid == 0:
            save_twice_and_die_at(folder, moment)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), moment
        assert_savings(folder)


def assert_savings(folder: Path) -> None:
    from tests.crash.savings import CONTENT, OLD

    found = complete_checkpoints(folder)
    assert found, "everything was lost"
    assert {path.name for path in found} <= {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    for path in found:
        contents = {file.name: file.read_text() for file in path.iterdir() if file.name in CONTENT}
        assert contents in (CONTENT, OLD), path


def test_the_number_of_changes_is_counted(jsonl, tmp_path):
    out = tmp_path / "out"
    assert finish(start(train_words(jsonl, out, "--max_steps", 1), out, tmp_path / "log")) == 0
    total = changes(tmp_path / "log")
    assert total > 10
    shutil.rmtree(out)
    assert finish(start(train_words(jsonl, out, "--max_steps", 1), out, tmp_path / "log", total)) == -signal.SIGKILL
