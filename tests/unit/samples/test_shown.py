"""How samples are shown: pictures, the page, the loggers."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback, WandbCallback

from tests.unit.samples.texts import TEXTS, WEIGHTS, NotingSpeaker, samples, text, tone
from vibevoice_finetune.samples.loggers import Shown, show
from vibevoice_finetune.samples.page import page
from vibevoice_finetune.samples.picture import mel_picture, png
from vibevoice_finetune.samples.record import Step, Take


def brightest_row(hz: float) -> int:
    return int(mel_picture(tone(hz)).astype(int).sum(axis=(1, 2)).argmax())


def test_a_higher_tone_is_higher_up_in_the_picture() -> None:
    rows = [brightest_row(hz) for hz in (200, 1_000, 4_000, 11_000)]
    assert rows == sorted(rows, reverse=True)
    # On the mel scale, 1,000 Hz is a third of the way from 0 to 12,000: 80 · 1,000 / 3,266 bands from below.
    assert rows[1] == pytest.approx(79 - 80 * 1_000 / 3_266, abs=2)


def test_a_picture_has_a_column_for_each_10_ms() -> None:
    picture = mel_picture(tone(seconds=0.5))
    assert picture.shape == (80, 1 + (12_000 - 1_024) // 240, 3)
    assert picture.dtype == np.uint8
    assert mel_picture(tone(seconds=0.01)).shape == (80, 1, 3)
    assert png(picture).startswith(b"\x89PNG")


def test_the_page_puts_the_steps_of_a_text_side_by_side() -> None:
    said = Take("1.flac", "1.png", True, "", 1.5, "one", 0.25, 0.7, ("cut off",))
    silent = Take(None, None, False, "the model said nothing", 0.0)
    steps = [
        Step(0, "a", (said, silent), {"sample_word_error": 0.25, "sample_similarity": 0.7}),
        Step(1_000, "b", (said, said), {"sample_word_error": 0.5, "sample_similarity": 0.8}),
    ]
    found = page((text("Speaker 0: <b>One</b> & all."), TEXTS[1]), steps)
    first, second = found.split('<section aria-labelledby="text-2">')
    assert "&lt;b&gt;One&lt;/b&gt; &amp; all." in first
    assert first.index("step-0/1.flac") < first.index("step-1000/1.flac")
    assert "base model" in first
    assert "step 1,000" in first
    assert "cut off" in first
    assert "the model said nothing" in second
    assert "step-0/" not in second
    assert "<td>25.0%</td>" in first
    assert "<td>0.800</td>" in first
    assert "http" not in found.replace("http-equiv", "")


def test_tensorboard_gets_sound_and_picture(tmp_path: Path) -> None:
    writer = SummaryWriter(str(tmp_path / "runs"))
    samples(tmp_path, NotingSpeaker()).at(2, WEIGHTS, [TensorBoardCallback(writer)])
    writer.close()
    found = EventAccumulator(str(tmp_path / "runs"))
    found.Reload()
    assert found.Tags()["audio"] == ["samples/1", "samples/2"]
    assert found.Tags()["images"] == ["samples/1 spectrogram", "samples/2 spectrogram"]
    (sound,) = found.Audio("samples/1")
    assert (sound.step, sound.sample_rate, sound.length_frames) == (2, 24_000.0, 12_000)


@pytest.mark.parametrize(("name", "callback"), [("wandb", WandbCallback), ("trackio", TrackioCallback)])
def test_the_other_loggers_get_both_with_the_step(name: str, callback: type, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, object]] = []
    fake = ModuleType(name)
    vars(fake).update(
        run=SimpleNamespace(),
        log=logged.append,
        Audio=lambda value, caption, sample_rate: (len(value), caption, sample_rate),
        Image=lambda value, caption: (value.shape, caption),
    )
    monkeypatch.setitem(sys.modules, name, fake)
    picture = np.zeros((2, 3, 3), dtype=np.uint8)
    show([callback.__new__(callback)], 7, [Shown("samples/1", "One.", tone(), picture)])
    assert logged == [
        {
            "train/global_step": 7,
            "samples/1": (12_000, "One.", 24_000),
            "samples/1 spectrogram": ((2, 3, 3), "One."),
        }
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_loggers_take_what_they_are_given(name: str) -> None:
    """The names of their arguments, which the fakes above take on trust."""
    logger = pytest.importorskip(name)
    picture = np.zeros((2, 3, 3), dtype=np.uint8)
    logger.Audio(tone(), caption="One.", sample_rate=24_000)
    logger.Image(picture, caption="One.")
