"""Models with a damaged file are opened or refused in one line; `tests/long/fuzz_models.py` tries many more."""

import random

import pytest

from tests.fuzz.models import Model, damage, damaged, make_models, use


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    return make_models(tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("number", [0, 1], ids=["original", "native"])
def test_damaged_models_are_opened_or_refused(models: tuple[Model, Model], number: int) -> None:
    model = models[number]
    assert use(model.folder)
    rng = random.Random(number)
    results = []
    for name in model.files:
        content = (model.folder / name).read_bytes()
        for _ in range(2):
            with damaged(model, name, damage(content, name.endswith(".json"), rng)) as folder:
                results.append(use(folder))
    assert not all(results)
    assert use(model.folder), "the whole model is put back"
