"""The model that comes with the package, by its name."""

from pathlib import Path

import pytest

from vibevoice_finetune.base_model.hub import SETTINGS, SMALL, SMALL_FOLDER, locate
from vibevoice_finetune.base_model.load import open_base_model
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.errors import BaseModelError

MOST_BYTES = 30_000_000


def test_small_means_the_bundled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate(SMALL, SETTINGS, None) == (SMALL_FOLDER, None)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(SMALL).mkdir()
    assert locate(SMALL, SETTINGS, None)[0] == Path(SMALL)


def test_another_spelling_is_told_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BaseModelError, match=r"did you mean small\?"):
        locate("Small", SETTINGS, tmp_path)


def test_the_bundled_folder_is_whole_and_small() -> None:
    base = open_base_model(SMALL)
    assert base.layout == "original"
    assert facts(base.config).hop_length == 960  # 25 frames a second
    tokenizer = load_tokenizer(base)
    assert special_tokens(tokenizer).end_of_text is not None
    # Each word of its language is one token, also at the beginning of a sentence.
    assert len(tokenizer.encode(" Find the red hammer", add_special_tokens=False)) == 4
    assert sum(path.stat().st_size for path in SMALL_FOLDER.iterdir()) < MOST_BYTES
