"""What is said again and what is not: takes are known by all that they depend on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.evaluation.test_report import rows
from vibevoice_finetune.evaluation import speak
from vibevoice_finetune.evaluation.speak import Said, Voice, say_all
from vibevoice_finetune.generation.generate import Generation, GenerationRequest, ModelSource, Speech
from vibevoice_finetune.generation.scripts import script_from_text

BASE_MODEL = ModelSource("microsoft/VibeVoice-1.5B")
SETTINGS = GenerationRequest(BASE_MODEL, (script_from_text("settings"),), batch_size=2, max_length_sec=5.0)


class Model:
    """Stands for generation: counts what is loaded and notes which texts each call says, with which seed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[str | None] = []
        self.calls: list[tuple[int, list[str]]] = []
        self.fails_at_call: int | None = None
        monkeypatch.setattr(speak, "load_speech_model", self.load)
        monkeypatch.setattr(speak, "generate", self.generate)

    def load(self, source: ModelSource) -> ModelSource:
        self.loaded.append(source.adapter)
        return source

    def generate(self, request: GenerationRequest, on_audio: object) -> Generation:
        if len(self.calls) == self.fails_at_call:
            raise KeyboardInterrupt
        self.calls.append((request.seed, [script.turns[0].text for script in request.scripts]))
        assert callable(on_audio)
        on_audio(0.1)
        samples = np.full(2_400, 0.1 * len(self.calls), dtype=np.float32)
        return Generation(tuple(Speech(samples, 1, True, ()) for _ in request.scripts), 1.0, ())


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(monkeypatch)


def adapter(folder: Path, content: str) -> Voice:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(content)
    return Voice(folder.name, str(folder))


def say(voices: Sequence[Voice], folder: Path, seeds: Sequence[int] = (0,), **changes: float) -> list[Said]:
    return say_all(BASE_MODEL, voices, rows(3), seeds, folder, replace(SETTINGS, **changes))


def test_rows_are_said_together_up_to_the_batch_size(model: Model, tmp_path: Path) -> None:
    found = say([Voice("base")], tmp_path, seeds=(0, 1))
    assert [(seed, len(texts)) for seed, texts in model.calls] == [(0, 2), (0, 1), (1, 2), (1, 1)]
    assert [(take.row, take.seed) for take in found] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    assert found[0].seconds == pytest.approx(0.5), "a second for two rows"
    assert found[0].first_audio_sec is not None
    assert found[0].samples().shape == (2_400,)


def test_what_exists_is_not_made_again(model: Model, tmp_path: Path) -> None:
    model.fails_at_call = 1
    with pytest.raises(KeyboardInterrupt):
        say([Voice("base")], tmp_path)
    model.fails_at_call = None
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")}
    assert len(before) == 2
    found = say([Voice("base")], tmp_path)
    assert [len(texts) for _, texts in model.calls] == [2, 1]
    assert {take.audio.name for take in found if take.audio} > before.keys()
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())
    loaded = len(model.loaded)
    assert say([Voice("base")], tmp_path) == found
    assert len(model.loaded) == loaded, "nothing is missing, so no model is loaded"


def test_adapters_share_the_audio_of_the_base(model: Model, tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "one", "1"), adapter(tmp_path / "other", "2")
    say([Voice("base"), one], tmp_path / "audio")
    say([Voice("base"), one, other], tmp_path / "audio")
    assert model.loaded == [None, one.adapter, other.adapter]
    changed = Path(str(one.adapter)) / "adapter_model.safetensors"
    changed.write_text("3")
    say([Voice("base"), one, other], tmp_path / "audio")
    assert model.loaded == [None, one.adapter, other.adapter, one.adapter], "its weights are others now"


def test_other_settings_are_other_takes(model: Model, tmp_path: Path) -> None:
    say([Voice("base")], tmp_path)
    say([Voice("base")], tmp_path, cfg_scale=2.0)
    say([Voice("base")], tmp_path, num_diffusion_steps=5)
    assert len(list(tmp_path.glob("*.wav"))) == 3 * 3
