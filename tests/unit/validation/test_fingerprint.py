import io

import numpy as np
import pytest
import soundfile

from tests.speechlike import RATE_HZ, speechlike, with_noise
from vibevoice_finetune.audio.spectrum import power_spectrum
from vibevoice_finetune.validation import fingerprint as fingerprints
from vibevoice_finetune.validation.fingerprint import Fingerprint, fingerprint, same_recordings


def print_of(samples: np.ndarray) -> Fingerprint:
    return fingerprint(power_spectrum(samples))


def as_file(samples: np.ndarray, form: str, subtype: str) -> np.ndarray:
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, RATE_HZ, format=form, subtype=subtype)
    encoded.seek(0)
    return soundfile.read(encoded, dtype="float32")[0]


ORIGINALS = [speechlike(seed, words=8) for seed in range(12)]


def test_different_recordings_are_different() -> None:
    assert same_recordings([print_of(samples) for samples in ORIGINALS]) == []


@pytest.mark.parametrize(
    "copy",
    [
        lambda samples: samples * np.float32(0.1),
        lambda samples: np.concatenate([np.zeros(12_345, dtype=np.float32), samples]),
        lambda samples: samples[5_000:],
        lambda samples: as_file(samples, "MP3", "MPEG_LAYER_III"),
        lambda samples: as_file(samples, "OGG", "VORBIS"),
        lambda samples: with_noise(samples, 25),
    ],
    ids=["quieter", "later", "cut", "mp3", "ogg", "noisy"],
)
def test_a_copy_is_found(copy) -> None:  # type: ignore[no-untyped-def]
    prints = [print_of(samples) for samples in ORIGINALS] + [print_of(copy(ORIGINALS[5]))]
    assert [pair[:2] for pair in same_recordings(prints)] == [(5, 12)]


def test_many_recordings_are_compared_finely_and_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [print_of(samples) for samples in ORIGINALS] + [print_of(ORIGINALS[5] * np.float32(0.5))]
    monkeypatch.setattr(fingerprints, "COARSE_UP_TO", 3)
    monkeypatch.setattr(fingerprints, "SAMPLED_FROM", 6)
    ((one, other, share),) = same_recordings(prints)
    assert (one, other) == (5, 12)
    assert share > 0.8


def test_silence_and_nothing() -> None:
    nothing = print_of(np.zeros(RATE_HZ, dtype=np.float32))
    assert same_recordings([nothing, nothing]) == []
    assert same_recordings([]) == []
    assert same_recordings([print_of(ORIGINALS[0])]) == []


@pytest.mark.parametrize("reach", [1, 3, 6, 8, 12])
def test_the_sliding_maximum_is_that_of_every_window(reach: int) -> None:
    values = np.random.default_rng(reach).standard_normal((9, 30)).astype(np.float32)
    for axis in (0, 1):
        size = values.shape[axis]
        expected = np.stack(
            [
                values.take(range(max(0, place - reach), min(size, place + reach + 1)), axis).max(axis)
                for place in range(size)
            ],
            axis,
        )
        np.testing.assert_array_equal(fingerprints._sliding_max(values, reach, axis), expected)
