from pathlib import Path

import pytest

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.commands.tune import TuneFlags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.tune.recipe import NAMES, values_of


def test_a_recipe_is_values_and_its_name() -> None:
    values = values_of("voice")
    assert values["recipe"] == "voice"
    assert values["train_diffusion_head"] is True
    assert isinstance(values["learning_rate"], float)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_planned_with(name: str) -> None:
    assert values_of(name)["do_train"] is True


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 4\n")
    assert values_of(str(path)) == {"recipe": str(path), "lora_r": 4}


@pytest.mark.parametrize("text", ["[1", "just words", "- a", "\x00"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentError, match="--recipe"):
        values_of(str(path))


def test_a_recipe_that_is_not_there_is_said() -> None:
    with pytest.raises(ArgumentError, match="The recipes are voice"):
        values_of("voices")


def test_the_command_line_names_a_recipe() -> None:
    """Its flags are those of `train`, not of `tune`."""
    flags = parse_flags(TuneFlags, "tune", ["recordings", "--output_dir", "o", "--recipe", "language"], "")
    assert flags.recipe == "language"
