"""Going on: from where, what counts, what is refused; and what a run does to its output folder and to nobody else's."""

import json
import shutil

import pytest
import torch

from tests.processes import adapter, logs, train_words, write_rows
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.training import run
from vibevoice_finetune.training.run_checkpoints import MARKER, complete_checkpoints, writing

SAVING = ("--save_strategy", "steps", "--save_steps", 1, "--per_device_train_batch_size", 2, "--ema_decay", 0.9)
RESUME = ("--resume_from_checkpoint", "True")


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory):
    """Eight rows: four steps of two rows in an epoch."""
    return write_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def three_steps(jsonl, tmp_path_factory):
    """A finished run with a run checkpoint after each of its three steps."""
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(train_words(jsonl, out, *SAVING, "--max_steps", 3)) == 0
    return out


@pytest.fixture
def unfinished(three_steps, tmp_path):
    """A copy of it as a kill before the export left it."""
    out = tmp_path / "out"
    shutil.copytree(three_steps, out)
    shutil.rmtree(out / "lora")
    return out


def names(out):
    return [folder.name for folder in complete_checkpoints(out)]


def said(capsys):
    return " ".join(capsys.readouterr().err.split())


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_after_the_last_step_only_the_result_is_written(jsonl, three_steps, unfinished):
    """Step 3 of 4 in its epoch: the base class would train a fourth."""
    assert main(train_words(jsonl, unfinished, *SAVING, "--max_steps", 3, *RESUME)) == 0
    assert names(unfinished) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert same_tensors(adapter(unfinished), adapter(three_steps))
    assert [log["step"] for log in logs(unfinished) if "loss" in log] == [1, 2, 3]


def test_after_the_last_step_of_a_fraction_of_an_epoch_too(jsonl, tmp_path):
    """1.3 epochs of four steps are 5.2, rounded up: six."""
    words = train_words(jsonl, tmp_path / "out", *SAVING, "--num_train_epochs", 1.3)
    assert main(words) == 0
    whole = adapter(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "lora")
    assert main([*words, *RESUME]) == 0
    assert names(tmp_path / "out")[-1] == "checkpoint-6"
    assert same_tensors(adapter(tmp_path / "out"), whole)


def test_how_often_to_save_and_to_log_is_what_is_given_now(jsonl, tmp_path, caplog):
    out = tmp_path / "out"
    words = train_words(jsonl, out, *SAVING, "--max_steps", 6)
    assert main([*words, "--save_steps", "2", "--logging_steps", "2"]) == 0
    for name in ("lora", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(out / name)
    assert main([*words, "--save_total_limit", "3", *RESUME]) == 0
    assert names(out) == ["checkpoint-4", "checkpoint-5", "checkpoint-6"]
    assert [log["step"] for log in logs(out) if "loss" in log] == [2, 3, 4, 5, 6]
    assert "do not match" not in caplog.text


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_one_is_passed_over_and_said(jsonl, three_steps, unfinished, capsys):
    flip(unfinished / "checkpoint-3" / "optimizer.pt")
    assert main(train_words(jsonl, unfinished, *SAVING, "--max_steps", 3, *RESUME)) == 0
    text = said(capsys)
    assert "checkpoint-3 is damaged (its optimizer.pt has changed since it was written)" in text
    assert f"going on from {unfinished / 'checkpoint-2'}" in text
    assert same_tensors(adapter(unfinished), adapter(three_steps))


def test_a_damaged_one_that_was_asked_for_is_refused(jsonl, unfinished, capsys):
    folder = unfinished / "checkpoint-2"
    flip(folder / "trainable.safetensors")
    words = train_words(jsonl, unfinished, *SAVING, "--max_steps", 3, "--resume_from_checkpoint", folder)
    assert main(words) == 2
    assert said(capsys).endswith(
        f"error: {folder} is damaged: its trainable.safetensors has changed since it was written; "
        "the newest whole one there is checkpoint-3."
    )


def test_a_folder_that_is_not_there_is_refused_with_those_that_are(jsonl, unfinished, capsys):
    words = train_words(jsonl, unfinished, *SAVING, "--max_steps", 3, "--resume_from_checkpoint", unfinished / "nine")
    assert main(words) == 2
    assert "there is no such folder; run checkpoints in" in said(capsys)


@pytest.mark.parametrize("kind", ["shapes", "number", "not a state"])
def test_an_optimizer_of_other_tensors_is_refused(jsonl, unfinished, capsys, kind):
    """Written whole, with a marker that is right: fused kernels would read past the end of what is too short."""
    folder = unfinished / "checkpoint-3"
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    match kind:
        case "shapes":
            state["state"][0]["exp_avg"] = torch.zeros(3)
        case "number":
            state["param_groups"][0]["params"].pop()
        case "not a state":
            state = {"state": 3}
    (folder / MARKER).unlink()
    with writing(unfinished / "checkpoint-4") as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        torch.save(state, staging / "optimizer.pt")
    words = train_words(jsonl, unfinished, *SAVING, "--max_steps", 6, "--allow_changed_run", "True", *RESUME)
    assert main(words) == 2
    text = said(capsys)
    assert f"error: {unfinished / 'checkpoint-4' / 'optimizer.pt'}: cannot be used (" in text
    assert "Traceback" not in text


def test_too_few_rows_for_a_batch_are_refused_where_incomplete_ones_are_left_out(jsonl, tmp_path, capsys):
    words = train_words(jsonl, tmp_path / "out", "--per_device_train_batch_size", 9, "--dataloader_drop_last", "True")
    assert main(words) == 2
    assert "--dataloader_drop_last: 8 rows are fewer than the 9 of one micro-batch" in said(capsys)


def test_a_folder_that_another_run_writes_to_is_refused(jsonl, unfinished, capsys):
    before = sorted(unfinished.rglob("*"))
    for extra in ((), RESUME):
        with locked(unfinished, "train", inside=True):
            assert main(train_words(jsonl, unfinished, *SAVING, "--max_steps", 3, *extra)) == 2
        assert f"{unfinished}: process " in (text := said(capsys))
        assert "is writing there; wait until it is done, or choose another folder" in text
    assert sorted(unfinished.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--output_dir", "--latents_dir"])
def test_a_place_that_cannot_be_written_is_noticed_first(jsonl, tmp_path, capsys, monkeypatch, flag):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(run, "load_data", None)  # never reached
    words = train_words(jsonl, tmp_path / "out", "--max_steps", 1, flag, tmp_path / "file" / "below")
    assert main(words) == 2
    text = said(capsys)
    assert f"{tmp_path / 'file' / 'below'}: cannot be written (" in text
    assert f"choose another place with {flag}" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_folder_removed_during_the_run_is_made_again(jsonl, tmp_path, monkeypatch):
    out = tmp_path / "out"
    plain = run.FinetuneTrainer.compute_loss

    def remove(self, *args, **kwargs):
        if self.state.global_step == 1:
            shutil.rmtree(out)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(run.FinetuneTrainer, "compute_loss", remove)
    assert main(train_words(jsonl, out, *SAVING, "--max_steps", 3)) == 0
    assert names(out) == ["checkpoint-2", "checkpoint-3"]
    assert (out / "lora" / "adapter_model.safetensors").is_file()


def test_a_path_is_printed_as_it_is(jsonl, tmp_path, capsys):
    """What rich takes for markup would raise (a closing tag) or vanish; `:smile:` would become a face."""
    out = tmp_path / "[bold]a[" / "b] :smile:"
    assert main(train_words(jsonl, out, "--max_steps", 1)) == 0
    assert f"the result is {out / 'lora'}" in capsys.readouterr().err


def test_the_machines_memory_used_up_is_said_like_a_gpus(jsonl, tmp_path, capsys, monkeypatch):
    plain = run.FinetuneTrainer.compute_loss

    def full(self, *args, **kwargs):
        if self.state.global_step == 1:
            torch.empty(2**61, dtype=torch.uint8)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(run.FinetuneTrainer, "compute_loss", full)
    assert main(train_words(jsonl, tmp_path / "out", *SAVING, "--max_steps", 3)) == 2
    text = said(capsys)
    assert "error: the machine's memory does not suffice: step 1 was saved; change the flags" in text
    assert "Traceback" not in text


def test_weights_that_are_not_finite_are_never_saved(jsonl, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(train_words(jsonl, out, *SAVING, "--max_steps", 3, "--learning_rate", 1e39)) == 2
    text = said(capsys)
    assert "after step 1 the weights of " in text
    assert "are not finite, so they are not saved and the run stops. No run checkpoint has weights" in text
    assert names(out) == []
    assert not (out / "lora").exists()


def test_rotation_keeps_the_last_good_weights(jsonl, unfinished, capsys, monkeypatch):
    """The step after checkpoint-4 shows its weights to be useless; checkpoint-3 must still be there."""
    plain = run.FinetuneTrainer.compute_loss

    def ruined(self, *args, **kwargs):
        loss = plain(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 4 else loss

    monkeypatch.setattr(run.FinetuneTrainer, "compute_loss", ruined)
    longer = ("--max_steps", 9, "--allow_changed_run", "True", "--save_total_limit", 1, *RESUME)
    assert main(train_words(jsonl, unfinished, *SAVING, *longer)) == 2
    text = said(capsys)
    assert "3 steps in a row were not finite, so the run stops. The newest run checkpoint whose weights gave " in text
    assert f"--resume_from_checkpoint {unfinished / 'checkpoint-3'}." in text
    assert "checkpoint-3" in names(unfinished)
    assert json.loads((unfinished / "checkpoint-3" / "bad_steps.json").read_text())["bad_in_a_row"] == 0
