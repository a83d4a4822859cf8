"""Recipes and several data sets through the whole of `train`, on a tiny model."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import vibevoice_finetune
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.recipes.shelf import NAMES

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets of four and two bundled clips, and a latent store that the tests of this file share."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [json.loads(line) for line in SPEECH.read_text().splitlines()][:6]
    for row in rows:
        row["audio"] = str(SPEECH.parent / row["audio"])
        del row["speaker"]  # voice prompts of a speaker come from the same set, and one set is to equal two here
    for name, some in (("new", rows[:4]), ("old", rows[4:])):
        (folder / name).mkdir()
        (folder / name / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    return folder


def words(model: Path, sets: Path, output: Path, extra: str) -> list[str]:
    return shlex.split(
        f"train --model_name_or_path {model} --latents_dir {sets / 'latents'} --output_dir {output} --report_to none "
        f"--use_cpu True --prompt_cuts_per_clip 1 --logging_steps 1 {extra}"
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_trains(name: str, tiny_checkpoint: Path, sets: Path, tmp_path: Path) -> None:
    data = f"--train_jsonl {sets / 'new/train.jsonl'}" + (f" {sets / 'old/train.jsonl'}" if name == "language" else "")
    extra = f"{data} --recipe {name} --max_steps 2 --eval_steps 2 --save_strategy no --bf16 False"
    assert main(words(tiny_checkpoint, sets, tmp_path / "out", extra)) == 0
    steps = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [step["loss"] > 0 for step in steps if "loss" in step][:2] == [True, True]
    recorded = (tmp_path / "out/arguments.yaml").read_text()
    assert f"recipe: {name}\n" in recorded
    assert "# not as in the recipe: bf16: true\n" in recorded
    if name == "full":
        assert (tmp_path / "out/model/config.json").exists()
    else:
        card = (tmp_path / "out/lora/README.md").read_text()
        assert f"The recipe `{name}` was followed, except for `bf16` (there `True`)" in card
    assert yaml.safe_load(recorded)["max_steps"] == 2


def test_two_sets_without_shares_are_one(tiny_checkpoint: Path, sets: Path, tmp_path: Path, capfd) -> None:
    """The same six rows in one file and in two: the same adapter, bit for bit."""
    both = tmp_path / "both.jsonl"
    both.write_text((sets / "new/train.jsonl").read_text() + (sets / "old/train.jsonl").read_text())
    for output, data in (("one", str(both)), ("two", f"{sets / 'new/train.jsonl'} {sets / 'old/train.jsonl'}")):
        extra = f"--do_train --train_jsonl {data} --num_train_epochs 1 --per_device_train_batch_size 2"
        assert main(words(tiny_checkpoint, sets, tmp_path / output, extra)) == 0
    assert "6 rows" in capfd.readouterr().err
    one, two = (load_file(tmp_path / name / "lora/adapter_model.safetensors") for name in ("one", "two"))
    assert all((one[key] == two[key]).all() for key in one)


def test_a_mix_that_was_stopped_goes_on_bit_for_bit(tiny_checkpoint: Path, sets: Path, tmp_path: Path, capfd) -> None:
    """Five rows an epoch (four and one) in steps of two rows; stopped inside the second epoch."""
    data = f"--train_jsonl {sets / 'new/train.jsonl'} {sets / 'old/train.jsonl'} --mix 0.8,0.2"
    extra = f"--do_train {data} --num_train_epochs 3 --per_device_train_batch_size 2 --save_steps 4"
    assert main(words(tiny_checkpoint, sets, tmp_path / "whole", extra)) == 0
    printed = capfd.readouterr().err
    assert "mix   an epoch has 4 of the 4 rows of" in printed
    assert "1 of the 2 rows of" in printed
    assert "steps 9 (3 an epoch)" in printed
    (tmp_path / "part").mkdir()
    (tmp_path / "whole/checkpoint-4").rename(tmp_path / "part/checkpoint-4")
    resumed = words(tiny_checkpoint, sets, tmp_path / "part", f"{extra} --resume_from_checkpoint True")
    assert main(resumed) == 0
    whole, part = (load_file(tmp_path / name / "lora/adapter_model.safetensors") for name in ("whole", "part"))
    assert whole.keys() == part.keys()
    assert all((whole[key] == part[key]).all() for key in whole)
    changed = [word.replace("0.8,0.2", "0.5,0.5") for word in resumed]
    assert main(changed) == 2
    assert "--mix 0.8,0.2 → 0.5,0.5" in capfd.readouterr().err


def test_a_set_without_a_usable_row_is_named(tiny_checkpoint: Path, sets: Path, tmp_path: Path, capfd) -> None:
    (tmp_path / "empty").mkdir()
    row = json.loads((sets / "old/train.jsonl").read_text().splitlines()[0])
    (tmp_path / "empty/train.jsonl").write_text(json.dumps({**row, "text": "no tag"}) + "\n")
    data = f"--train_jsonl {sets / 'new/train.jsonl'} {tmp_path / 'empty/train.jsonl'} --on_bad_row skip --do_train"
    assert main(words(tiny_checkpoint, sets, tmp_path / "out", data)) == 2
    said = capfd.readouterr().err
    assert f"no usable row for training in {tmp_path / 'empty/train.jsonl'}" in said
    assert f"first {tmp_path / 'empty/train.jsonl'}:1" in said, "two files of the same name are told apart"
