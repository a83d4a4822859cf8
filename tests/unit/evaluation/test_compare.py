"""From takes to a verdict and a choice."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import soxr

from tests.unit.preparation.recording import sentences
from vibevoice_finetune.evaluation.choose import choose
from vibevoice_finetune.evaluation.compare import compare
from vibevoice_finetune.evaluation.judge import Judged, listen_to_sound
from vibevoice_finetune.evaluation.losses import RowLosses
from vibevoice_finetune.evaluation.speak import Said
from vibevoice_finetune.evaluation.words import Errors

ROWS = 20
SPEECH = soundfile.read(sentences("alpha")[0][1], dtype="float32")[0]


def takes(
    voice: str, similarity: float, errors: int, *, spread: float = 0.05, sign: str = "", seed: int = 0
) -> list[Judged]:
    """A take of each row; `errors` of ten words are wrong in each."""
    rng = np.random.default_rng(seed)
    return [
        Judged(
            said=Said(voice, row, 0, None, ended=True, fault="", seconds=1.0, duration_sec=2.0),
            heard="",
            words=Errors(errors, 0, 0, 10),
            letters=Errors(errors, 0, 0, 40),
            similarity=similarity + spread * float(rng.standard_normal()),
            signs=(sign,) if sign and row % 2 else (),
            pace=1.0,
        )
        for row in range(ROWS)
    ]


def test_better_worse_and_neither() -> None:
    judged = takes("base", 0.6, 1) + takes("tuned", 0.8, 3, seed=1, sign="repeats itself")
    found = compare(judged, "base")
    tuned = found["tuned"]
    assert tuned["similarity"].verdict == "better"
    assert tuned["word_error"].verdict == "worse"
    assert tuned["word_error"].own.value == pytest.approx(0.3)
    assert tuned["word_error"].against_base is not None
    assert tuned["word_error"].against_base.value == pytest.approx(0.2)
    assert tuned["loops"].verdict == "worse"
    assert tuned["words_deleted"].verdict == "inside the noise"
    assert tuned["pace"].verdict is None
    assert found["base"]["similarity"].verdict is None
    assert tuned["real_time_factor"].own.value == pytest.approx(0.5)


def test_takes_of_one_row_are_one_row() -> None:
    judged = takes("base", 0.6, 1) + takes("base", 0.6, 1, seed=2)
    assert compare(judged, "base")["base"]["similarity"].own.count == ROWS


def test_the_earliest_within_the_noise_is_chosen() -> None:
    names = ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    judged = takes(names[0], 0.60, 1, seed=1) + takes(names[1], 0.80, 1, seed=2) + takes(names[2], 0.81, 1, seed=3)
    found = choose(judged, names, "similarity")
    assert (found.voice, found.best) == ("checkpoint-200", "checkpoint-300")
    assert "earliest that is not worse than checkpoint-300" in found.reason


def test_the_best_is_chosen_where_it_is_for_sure() -> None:
    judged = takes("a", 0.5, 0, seed=1) + takes("b", 0.6, 0, seed=2) + takes("c", 0.9, 0, seed=3)
    assert choose(judged, ["a", "b", "c"], "similarity").voice == "c"
    assert choose(takes("a", 0.9, 9, seed=1) + takes("b", 0.8, 0, seed=2), ["a", "b"], "composite").voice == "b"
    assert choose(takes("a", 0.9, 0, seed=1), ["a"], "word_error").voice == "a"


def test_losses_and_sound_are_added_up_over_rows() -> None:
    """Two rows of one take: squared errors 1 of 4 and 5 of 8 give 6/12; levels −20 and −30 give −25."""
    both = []
    for row, (error, count, level) in enumerate(((1.0, 4.0, -20.0), (5.0, 8.0, -30.0))):
        losses = RowLosses(((error, count),) * 4, (1.0, 2.0), (1.0, 4.0), (3.0, 4.0), (0.0, 2.0))
        sound = replace(listen_to_sound(SPEECH)[0], level_dbfs=level)
        take = replace(takes("base", 0.6, 1)[row], losses=losses, sound=sound, sound_faults=("noise",) if row else ())
        both.append(replace(take, said=replace(take.said, first_audio_sec=0.5 + row)))
    found = compare(both, "base")["base"]
    assert found["diffusion_1"].own.value == pytest.approx(0.5)
    assert found["go_on"].own.value == pytest.approx(0.75)
    assert found["control_loss"].own.value == pytest.approx(0.25)
    assert found["level"].own.value == pytest.approx(-25)
    assert found["sound_faults"].own.value == pytest.approx(0.5)
    assert found["first_audio"].own.value == pytest.approx(1.0)
    assert "quality" not in found, "nobody asked for it"


def test_noise_and_a_narrow_band_are_faults_of_sound() -> None:
    assert listen_to_sound(SPEECH)[1] == ()
    rng = np.random.default_rng(0)
    noisy = SPEECH + 0.1 * np.sqrt(np.mean(SPEECH**2)) * rng.standard_normal(len(SPEECH))
    assert "noise" in listen_to_sound(noisy.astype(np.float32))[1]
    narrow = soxr.resample(soxr.resample(SPEECH, 24_000, 8_000), 8_000, 24_000)
    assert "narrow-band" in listen_to_sound(narrow)[1]
    assert listen_to_sound(np.zeros(24_000, dtype=np.float32)) == (None, ())
