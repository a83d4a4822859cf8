"""A run that goes on in another process ends as one that was never interrupted, bit for bit, however it is set up."""

import shutil

import pytest

from tests.crash.child import finish, start
from tests.crash.kills import FLAGS, assert_same_end
from tests.processes import train_words, write_rows

SETTINGS = {
    "tokens": ("--max_tokens_per_batch", 200, "--max_steps", 5),
    "workers": ("--dataloader_num_workers", 1, "--max_steps", 3, "--train_diffusion_head", "True"),
    "4-bit": ("--load_in_4bit", "True", "--max_steps", 4, "--lora_wrap_diffusion_head", "True"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_what_goes_on_ends_the_same(tmp_path, name):
    jsonl = write_rows(tmp_path / "rows")
    if name == "4-bit":
        pytest.importorskip("bitsandbytes")

    def run(out, *extra):
        words = train_words(jsonl, out, *FLAGS, "--save_total_limit", 100, *SETTINGS[name], *extra)
        assert finish(start(words, out, tmp_path / "log")) == 0, (tmp_path / "log").read_text()

    whole, again = tmp_path / "whole", tmp_path / "again"
    run(whole)
    # Step 1 of two in an epoch: the position inside the epoch has to be found again.
    shutil.copytree(whole, again)
    shutil.rmtree(again / "lora")
    for folder in again.glob("checkpoint-*"):
        if folder.name != "checkpoint-1":
            shutil.rmtree(folder)
    run(again, "--resume_from_checkpoint", "True")
    assert "checkpoint-1" in (tmp_path / "log").read_text().replace("\n", "")
    assert_same_end(whole, again)
