"""Recipes: each is complete, gives a reason for each line, and stands under what is typed."""

import re

import pytest
import yaml

from vibevoice_finetune.commands.estimate import filled
from vibevoice_finetune.commands.parser import parse, parse_run
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.recipes.shelf import FOLDER, NAMES, find, purpose_of, text_of

OWN = ["--model_name_or_path", "M", "--train_jsonl", "F", "--output_dir", "O", "--report_to", "none"]
WITHOUT_REASON = {
    *("do_train", "gradient_clipping", "gradient_accumulation_steps", "eval_strategy", "save_steps"),
    *("save_total_limit", "per_device_train_batch_size"),
}
"""Lines that speak for themselves beside the one above or below."""


def line_of(name: str) -> list[str]:
    return [*OWN, "--recipe", name, *(["--mix", "1"] if name == "language" else [])]


def test_every_file_of_the_shelf_is_a_recipe() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_line_has_its_reason(name: str) -> None:
    lines = [line for line in text_of(name).splitlines() if re.match(r"\w", line)]
    unexplained = {line.split(":")[0] for line in lines if "  # " not in line}
    assert unexplained <= WITHOUT_REASON
    assert len(lines) == len(yaml.safe_load(text_of(name)))
    assert len(purpose_of(name)) > 40


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_sets_what_it_says(name: str) -> None:
    arguments = parse(line_of(name))
    assert arguments.loop.do_train
    assert arguments.loop.learning_rate == yaml.safe_load(text_of(name))["learning_rate"]
    assert arguments.loop.gradient_clipping
    assert arguments.given["recipe"] == name
    assert arguments.changed_from_recipe == ({"mix": "0.85,0.15"} if name == "language" else {})


def test_the_command_line_goes_over_config_and_that_over_the_recipe(tmp_path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("recipe: voice\nlora_r: 4\nlearning_rate: 1.0e-3\n")
    arguments = parse([*OWN, "--config", str(config), "--learning_rate", "2e-3"])
    assert (arguments.loop.learning_rate, arguments.model.lora_r, arguments.loop.ddpm_batch_mul) == (2e-3, 4, 4)
    assert arguments.changed_from_recipe == {"learning_rate": 2.5e-5, "lora_r": 8}
    typed = parse([*OWN, "--config", str(config), "--recipe", "style"])
    assert typed.model.lora_wrap_diffusion_head, "the recipe that is typed replaces the one of the file"


def test_data_sets_that_are_typed_replace_those_of_a_file(tmp_path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("train_jsonl: ['a,1.jsonl', b.jsonl]\nmodel_name_or_path: M\noutput_dir: O\n")
    assert parse(["--config", str(config)]).data.train_jsonl == ["a,1.jsonl", "b.jsonl"]
    typed = parse(["--config", str(config), "--train_jsonl", "c.jsonl", "d.jsonl", "--dataset_name", "e/f"])
    assert (typed.data.train_jsonl, typed.data.dataset_name) == (["c.jsonl", "d.jsonl"], ["e/f"])


def test_a_recipe_of_ones_own(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 3\n")
    assert parse([*OWN, "--recipe", str(path)]).model.lora_r == 3
    assert find("mine.yaml").name == "mine.yaml"
    path.write_text("recipe: voice\n")
    with pytest.raises(ArgumentError, match=r"mine.yaml: a file cannot name another one; leave `recipe` out"):
        parse([*OWN, "--recipe", str(path)])
    path.write_text("lora_rank: 3\n")
    with pytest.raises(ArgumentError, match=r"--recipe .*mine.yaml: --lora_rank is not a flag; did you mean --lora_r"):
        parse([*OWN, "--recipe", str(path)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("voise", "--recipe voise: did you mean voice[?] The recipes are voice, voice-small-gpu"),
        ("voice_small_gpu", "did you mean voice-small-gpu[?]"),
        ("zzz", "--recipe zzz: The recipes are voice"),
        ("there/is/none.yaml", "--recipe there/is/none.yaml: not there; name a YAML file"),
        ("a" * 300, "the name is too long"),
    ],
)
def test_a_recipe_that_is_not_there(name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse([*OWN, "--recipe", name])


def test_the_language_recipe_asks_for_a_rehearsal() -> None:
    with pytest.raises(ArgumentError, match="`rehearse` makes one against forgetting, and --mix 1 trains without"):
        parse([*OWN, "--recipe", "language"])
    assert parse([*OWN, "--recipe", "language", "--train_jsonl", "G"]).data.shares == (0.85, 0.15)


def test_they_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[: len(NAMES)]] == list(NAMES)
    assert main(["recipes", "voice"]) == 0
    assert capsys.readouterr().out == text_of("voice")
    assert main(["recipes", "voise"]) == 2
    assert "did you mean voice?" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_estimate_takes_a_recipe_without_data(name: str) -> None:
    arguments, _ = parse_run(["--model_name_or_path", "M", "--recipe", name], "estimate", "", fill=filled)
    assert arguments.data.dataset_name == ["unknown"] * (2 if name == "language" else 1)
