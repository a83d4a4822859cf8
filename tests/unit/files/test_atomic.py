"""Written whole or not at all, whatever ends the writing."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vibevoice_finetune.files import atomic
from vibevoice_finetune.files.atomic import (
    WriteError,
    check_writable,
    explaining_write_errors,
    remove_folder,
    settle,
    write_file,
    write_json,
    writing_file,
    writing_folder,
)

DEAD = 2**22 + 1
"""No process has this number: Linux counts to 2**22."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_file(path, "old")
    write_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["a.txt"]
    write_json(path, {"x": 1, "ü": None})
    assert path.read_text(encoding="utf-8") == '{\n  "x": 1,\n  "ü": null\n}\n'
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, float("nan"))


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_file(path, "old")
    with pytest.raises(KeyError), writing_file(path) as staging:
        raise KeyError(staging.write_text("half"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/full would be, which root could replace by a file
    for path in (tmp_path / "pipe", tmp_path, Path()):
        with pytest.raises(WriteError, match="cannot be written \\(it is not a file\\)"):
            write_file(path, "x")
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_of_safetensors_get_the_mode_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with writing_folder(tmp_path / "folder") as staging:
            save_file({"x": torch.zeros(2)}, staging / "x.safetensors")
        with writing_file(tmp_path / "y.safetensors") as file:
            save_file({"x": torch.zeros(2)}, file)
    finally:
        os.umask(before)
    for path in (tmp_path / "folder" / "x.safetensors", tmp_path / "y.safetensors"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, can_exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    folder = tmp_path / "lora"
    for content in ("old", "new"):
        with writing_folder(folder) as staging:
            (staging / "deep").mkdir()
            (staging / "deep" / content).write_text(content)
    assert names(folder / "deep") == ["new"]
    assert names(tmp_path) == ["lora"]


def test_an_error_leaves_the_old_folder_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    with writing_folder(folder) as staging:
        (staging / "a").write_text("old")
    with pytest.raises(KeyError), writing_folder(folder) as staging:
        raise KeyError((staging / "b").write_text("half"))
    assert names(folder) == ["a"]
    assert names(tmp_path) == ["lora"]


def test_a_file_in_the_place_of_a_folder_is_said_and_kept(tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("mine")
    message = r"lora: cannot be written \(it is not a folder\)"
    with pytest.raises(WriteError, match=message), writing_folder(tmp_path / "lora"):
        pass
    assert (tmp_path / "lora").read_text() == "mine"
    assert names(tmp_path) == ["lora"]


def replace_for_ever(folder: Path) -> None:
    number = 0
    while True:
        number += 1
        with writing_folder(folder) as staging:
            for name in "abc":
                (staging / name).write_text(str(number))


def test_a_kill_leaves_old_or_new_whole(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    context = multiprocessing.get_context("fork")
    for delay_sec in (0.0, 0.003, 0.007, 0.012, 0.02, 0.03):
        process = context.Process(target=replace_for_ever, args=(folder,))
        process.start()
        while not folder.exists():
            time.sleep(0.001)
        time.sleep(delay_sec)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        settle(folder)
        contents = {path.name: path.read_text() for path in folder.iterdir()}
        assert set(contents) == {"a", "b", "c"}
        assert len(set(contents.values())) == 1
    with writing_folder(folder):
        pass
    assert names(tmp_path) == ["lora"], "the next writer removes what the killed ones left"


def test_what_a_crash_moved_away_is_put_back(tmp_path: Path) -> None:
    """Between the two renames of a file system that cannot exchange."""
    moved = tmp_path / f".lora.{atomic._host()}-{DEAD}-0123456789ab.replaced"
    moved.mkdir()
    (moved / "a").write_text("old")
    settle(tmp_path / "lora")
    assert (tmp_path / "lora" / "a").read_text() == "old"
    settle(tmp_path / "lora")
    settle(tmp_path / "nowhere" / "lora")


def test_only_the_dead_are_cleared_away(tmp_path: Path) -> None:
    host, token = atomic._host(), "0123456789ab"
    keep = [
        f".lora.{host}-{os.getppid()}-{token}.partial",  # alive
        f".lora.elsewhere-{DEAD}-{token}.partial",  # another machine's: nothing is known of it
        f".lora2.{host}-{DEAD}-{token}.partial",
        ".lora.mine.partial",
    ]
    for name in (*keep, f".lora.{host}-{DEAD}-{token}.partial"):
        (tmp_path / name).mkdir()
    with writing_folder(tmp_path / "lora"):
        pass
    assert names(tmp_path) == sorted([*keep, "lora"])


def test_a_full_disk_is_one_line() -> None:
    """`/dev/full` answers every write as a full disk does."""
    message = r"^/dev/full: cannot be written \(No space left on device\); free some space or choose another place\.$"
    with pytest.raises(WriteError, match=message), explaining_write_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(WriteError, match="as on a full disk"), explaining_write_errors(Path("/dev/full")):
        torch.save({"x": torch.zeros(10)}, "/dev/full")
    with pytest.raises(RuntimeError, match="a defect"), explaining_write_errors(Path("/dev/full")):
        raise RuntimeError("a defect")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; in a process of its own, since it cannot be raised again."""
    program = f"""
import resource, signal
from pathlib import Path
from safetensors.torch import save_file
import torch
from vibevoice_finetune.files.atomic import WriteError, writing_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for write in (
    lambda f: save_file({{"x": torch.zeros(100_000)}}, f / "x.safetensors"),
    lambda f: torch.save({{"x": torch.zeros(100_000)}}, f / "x.bin"),
    lambda f: (f / "x").write_bytes(b"0" * 20_000),
):
    try:
        with writing_folder(Path({str(tmp_path)!r}) / "lora") as staging:
            write(staging)
    except WriteError as error:
        print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 3, result
    assert all("lora: cannot be written (" in line for line in lines)
    assert names(tmp_path) == []


def test_errors_about_other_files_are_not_errors_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing_folder(tmp_path / "out" / "lora"):
        (tmp_path / "input").read_bytes()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM])
def test_file_systems_without_flushing_or_modes_are_written_to(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    with writing_folder(tmp_path / "lora") as staging:
        (staging / "a").write_text("a")
    assert names(tmp_path / "lora") == ["a"]


def test_a_place_is_probed_before_any_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "--output_dir")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match=r"a: cannot be written \(.* is a file\); choose another place with --output"):
        check_writable(tmp_path / "file" / "a", "--output_dir")
    with pytest.raises(WriteError, match=r"cannot be written \(.*\); choose another place"):
        check_writable(Path("/proc/1/x"), "--output_dir")
    with pytest.raises(WriteError, match="name too long"):
        write_file(tmp_path / ("x" * 300), "x")


def test_a_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1" / "deep").mkdir(parents=True)
    remove_folder(tmp_path / "checkpoint-1")
    assert names(tmp_path) == []
