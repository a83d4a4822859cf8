"""Signs of an unhealthy recording: found where they were made, and none in real clips."""

import numpy as np
import pytest
import soundfile

pytest.importorskip("whisper_normalizer")

from tests.unit.preparation.recording import RATE_HZ, sentences
from vibevoice_finetune.evaluation.health import health, is_off_pace, letters_per_sec, repeats
from vibevoice_finetune.evaluation.recogniser import load_recogniser

CLIPS = [
    (text, soundfile.read(file, dtype="float32")[0])
    for speaker in ("alpha", "rms")
    for text, file in sentences(speaker)
]
TEXT, SAMPLES = CLIPS[0]
WORDS = TEXT.split()


def signs(samples: np.ndarray, heard: str = TEXT, **more: bool) -> tuple[str, ...]:
    return health(samples.astype(np.float32), RATE_HZ, TEXT, heard, **more).signs


def test_real_clips_show_no_sign() -> None:
    assert len(CLIPS) == 24
    for text, samples in CLIPS:
        assert health(samples, RATE_HZ, text, text).signs == (), text


def test_a_misheard_last_word_is_not_missing() -> None:
    assert signs(SAMPLES, " ".join([*WORDS[:-1], "chicken"])) == ()


def test_a_clip_that_was_cut_misses_its_last_words() -> None:
    cut = SAMPLES[: len(SAMPLES) // 2]
    assert "last words missing" in signs(cut, " ".join(WORDS[: len(WORDS) // 2]))


def test_a_word_that_comes_twice_must_be_heard_twice() -> None:
    text = "she put the cup on the table near the door"
    for heard, missing in (("she put the cup on the", True), ("she put the cup on the table near the floor", False)):
        found = health(SAMPLES, RATE_HZ, text, heard).signs
        assert ("last words missing" in found) == missing, heard


def test_a_clip_that_ends_inside_a_word_is_cut_off() -> None:
    half = len(SAMPLES) // 2
    loudest = half + int(np.argmax(np.convolve(SAMPLES[half:] ** 2, np.ones(2400), mode="same")))
    assert "cut off" in signs(SAMPLES[:loudest])


def test_three_seconds_of_silence_at_the_end() -> None:
    assert signs(np.concatenate([SAMPLES, np.zeros(3 * RATE_HZ)])) == ("long silence at the end",)


def test_silence_inside() -> None:
    half = len(SAMPLES) // 2
    holed = np.concatenate([SAMPLES[:half], np.zeros(3 * RATE_HZ), SAMPLES[half:]])
    assert "long silence inside" in signs(holed)


def test_a_loop() -> None:
    looped = " ".join([*WORDS, *WORDS[-3:], *WORDS[-3:]])
    assert signs(np.tile(SAMPLES, 2), looped) == ("repeats itself",)
    assert not repeats(["ha", "ha", "ha", "ha"])
    assert not repeats(["row", "row", "row", "your", "boat", "row", "row", "row"])
    three_times = ["go", "to", "bed"] * 3
    assert repeats(three_times)
    assert not repeats(three_times, three_times), "the text has it"


def test_nothing_was_said() -> None:
    assert signs(np.zeros(RATE_HZ), "") == ("stopped at once",)
    assert signs(np.zeros(0), "") == ("stopped at once",)
    assert signs(SAMPLES[: RATE_HZ // 4], "the") == ("stopped at once",)


def test_the_length_limit() -> None:
    assert signs(SAMPLES, ended=False) == ("ran to the length limit",)


def test_pace_finds_a_clip_sped_up() -> None:
    import soxr

    fast = soxr.resample(SAMPLES, 1.3 * RATE_HZ, RATE_HZ)
    paces = [letters_per_sec(TEXT, health(one, RATE_HZ, TEXT, TEXT).speech_sec) for one in (SAMPLES, fast)]
    assert paces[1] / paces[0] == pytest.approx(1.3, rel=0.03)
    assert is_off_pace(paces[1] / paces[0])


@pytest.mark.slow
def test_signs_with_a_recogniser_in_between() -> None:
    """All of it from sound alone: what was said is what the recogniser heard."""
    pytest.importorskip("moonshine_voice")
    hear = load_recogniser("moonshine", "en")

    def found(text: str, samples: np.ndarray) -> tuple[str, ...]:
        samples = samples.astype(np.float32)
        return health(samples, RATE_HZ, text, hear(samples, RATE_HZ)).signs

    assert [(text, signs) for text, one in CLIPS if (signs := found(text, one))] == []
    cut, looped, silent = 0, 0, 0
    for text, one in CLIPS[::4]:
        part = one[len(one) // 2 :]
        cut += "last words missing" in found(text, one[: len(one) // 2])
        looped += "repeats itself" in found(text, np.concatenate([one, part, part, part]))
        silent += "long silence at the end" in found(text, np.concatenate([one, np.zeros(3 * RATE_HZ)]))
    print(f"of {len(CLIPS[::4])}: cut {cut}, looped {looped}, silent {silent}")
    assert (cut, looped, silent) == (6, 6, 6)
