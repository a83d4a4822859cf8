"""Checkpoint folders: whole or not at all."""

import pytest

from vibevoice_finetune.errors import CheckpointError
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


def test_a_killed_write_leaves_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-3"

    def write_half():
        with run_checkpoints.writing(folder) as staging:
            (staging / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert run_checkpoints.complete_checkpoints(tmp_path) == []
    run_checkpoints.clear_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_older_one(tmp_path):
    folder = tmp_path / "checkpoint-3"
    write(folder, "old")
    with (
        pytest.raises(CheckpointError, match=r"checkpoint-3: cannot be saved \(No space left"),
        run_checkpoints.writing(folder),
    ):
        raise OSError(28, "No space left on device")
    assert (folder / "weights").read_text() == "old"
    assert run_checkpoints.is_complete(folder)


@pytest.mark.parametrize("damage", ["truncate", "delete", "no marker", "torn marker"])
def test_damage_is_seen(tmp_path, damage):
    folder = tmp_path / "checkpoint-3"
    write(folder, "four")
    match damage:
        case "truncate":
            (folder / "weights").write_text("fou")
        case "delete":
            (folder / "lora" / "adapter").unlink()
        case "no marker":
            (folder / run_checkpoints.MARKER).unlink()
        case "torn marker":
            (folder / run_checkpoints.MARKER).write_text('{"files"')
    assert not run_checkpoints.is_complete(folder)


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
