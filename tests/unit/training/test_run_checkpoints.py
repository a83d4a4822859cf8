"""Checkpoint folders: whole or not at all."""

import re
import socket

import pytest

from vibevoice_finetune.errors import RunCheckpointError
from vibevoice_finetune.files.atomic import WriteError
from vibevoice_finetune.training import run_checkpoints


def write(folder, text="x"):
    with run_checkpoints.writing(folder) as staging:
        (staging / "weights").write_text(text)
        (staging / "lora").mkdir()
        (staging / "lora" / "adapter").write_text(text)


def test_written_whole(tmp_path):
    folder = tmp_path / "checkpoint-3"
    write(folder)
    assert run_checkpoints.is_complete(folder)
    assert (folder / "lora" / "adapter").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    folder = tmp_path / "checkpoint-3"

    def write_half():
        with run_checkpoints.writing(folder) as staging:
            (staging / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert run_checkpoints.complete_checkpoints(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_older_one(tmp_path):
    folder = tmp_path / "checkpoint-3"
    write(folder, "old")
    with (
        pytest.raises(
            WriteError, match=r"checkpoint-3: cannot be written \(No space left.*earlier run checkpoints are intact"
        ),
        run_checkpoints.writing(folder),
    ):
        raise OSError(28, "No space left on device")
    assert (folder / "weights").read_text() == "old"
    assert run_checkpoints.is_complete(folder)


DAMAGE = {
    "cut": "its weights has 3 bytes instead of 4",
    "flipped": "its weights has changed since it was written",
    "deleted": "its lora/adapter cannot be read",
    "no marker": "it has no complete.json, which is written last",
    "torn marker": "its complete.json cannot be read",
    "marker of another kind": "its complete.json cannot be read",
}


def hurt(folder, kind):
    match kind:
        case "cut":
            (folder / "weights").write_text("fou")
        case "flipped":  # one bit: r is 0x72, s is 0x73
            (folder / "weights").write_text("fous")
        case "deleted":
            (folder / "lora" / "adapter").unlink()
        case "no marker":
            (folder / run_checkpoints.MARKER).unlink()
        case "torn marker":
            (folder / run_checkpoints.MARKER).write_text('{"files"')
        case "marker of another kind":
            (folder / run_checkpoints.MARKER).write_text('{"files": {"weights": 4}}')


@pytest.mark.parametrize(("kind", "said"), DAMAGE.items())
def test_damage_is_seen_and_named(tmp_path, kind, said):
    folder = tmp_path / "checkpoint-3"
    write(folder, "four")
    assert run_checkpoints.damage(folder) is None
    hurt(folder, kind)
    assert run_checkpoints.damage(folder) == said
    assert run_checkpoints.is_complete(folder) == (kind == "flipped")  # sizes alone do not tell


def test_the_newest_whole_one_is_found_behind_damaged_ones(tmp_path):
    for step in (2, 9, 10):
        write(tmp_path / f"checkpoint-{step}", "four")
    hurt(tmp_path / "checkpoint-10", "flipped")
    hurt(tmp_path / "checkpoint-9", "cut")
    newest, damaged = run_checkpoints.newest_whole(tmp_path)
    assert newest == tmp_path / "checkpoint-2"
    assert damaged == [
        "checkpoint-10 is damaged (its weights has changed since it was written)",
        "checkpoint-9 is damaged (its weights has 3 bytes instead of 4)",
    ]
    with pytest.raises(
        RunCheckpointError, match=r"checkpoint-10 is damaged: .* the newest whole one there is checkpoint-2"
    ):
        run_checkpoints.check(tmp_path / "checkpoint-10")
    run_checkpoints.check(tmp_path / "checkpoint-2")


def test_one_caught_between_two_renames_is_put_back(tmp_path):
    write(tmp_path / "checkpoint-3")
    dead = ".checkpoint-3." + f"{atomic_host()}-4194304-0123456789ab.replaced"  # no process has so high a number
    (tmp_path / "checkpoint-3").rename(tmp_path / dead)
    assert run_checkpoints.newest_whole(tmp_path) == (tmp_path / "checkpoint-3", [])


def atomic_host():
    return re.sub(r"[^\w]", "", socket.gethostname())[:24] or "host"


def test_newest_by_number_not_by_name(tmp_path):
    for step in (2, 10, 9):
        write(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-11").mkdir()
    assert [path.name for path in run_checkpoints.complete_checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-9",
        "checkpoint-10",
    ]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(None, None, [1, 2, 3, 4]), (2, None, [3, 4]), (2, 1, [1, 4]), (1, 4, [4]), (1, 2, [2, 4])],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, keep, best, left):
    for step in (1, 2, 3, 4):
        write(tmp_path / f"checkpoint-{step}")
    run_checkpoints.rotate(tmp_path, keep, tmp_path / f"checkpoint-{best}" if best else None)
    assert [run_checkpoints.step_of(path) for path in run_checkpoints.complete_checkpoints(tmp_path)] == left
