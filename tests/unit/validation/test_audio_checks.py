from dataclasses import replace

import numpy as np
import pytest

from tests.speechlike import RATE_HZ, chords, in_a_room, speechlike, with_noise
from vibevoice_finetune.validation.audio_checks import ClipInSet, check_length, check_set, check_sound
from vibevoice_finetune.validation.listen import Sound, measured


def sound_of(samples: np.ndarray, original: np.ndarray | None = None) -> Sound:
    return measured(samples, samples if original is None else original, RATE_HZ)


def kinds(samples: np.ndarray, original: np.ndarray | None = None) -> list[str]:
    return [finding.kind for finding in check_sound(sound_of(samples, original), "rows:1")]


SPEECH = speechlike()
LEVEL = float(np.sqrt(np.mean(SPEECH[np.abs(SPEECH) > 1e-3] ** 2)))


@pytest.mark.parametrize("seed", range(6))
def test_a_good_recording_has_no_findings(seed: int) -> None:
    assert kinds(speechlike(seed)) == []
    assert kinds(with_noise(speechlike(seed), 32)) == []


def tones(below_db: float) -> np.ndarray:
    return SPEECH + np.float32(LEVEL * 10 ** (-below_db / 20)) * chords(4)[: len(SPEECH)]


def loud(gain: float) -> np.ndarray:
    return np.clip(SPEECH / np.abs(SPEECH).max() * gain, -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "kind"),
    [
        (with_noise(SPEECH, 15), "noise"),
        (tones(20), "music"),
        (in_a_room(speechlike(pause_sec=0.4), 1.0), "reverberation"),
        (loud(3), "clipped"),
        (SPEECH + np.float32(0.03), "dc-offset"),
        (SPEECH[round(0.35 * RATE_HZ) :], "cut-start"),
        (SPEECH[: -round(0.5 * RATE_HZ)], "cut-end"),
        (np.concatenate([np.zeros(RATE_HZ, dtype=np.float32), SPEECH]), "leading-silence"),
        (np.concatenate([SPEECH, np.zeros(2 * RATE_HZ, dtype=np.float32)]), "trailing-silence"),
        (speechlike(words=1, pause_sec=0.2), "short-clip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fault_is_found_and_no_other(samples: np.ndarray, kind: str) -> None:
    assert kinds(samples) == [kind]


def test_channels() -> None:
    half = len(SPEECH) // 2
    left, right = SPEECH.copy(), SPEECH.copy()
    left[half:], right[:half] = 0, 0
    assert kinds(SPEECH, np.stack([left, right], axis=1)) == ["two-people"]
    assert kinds(SPEECH * np.float32(0.05), np.stack([SPEECH, -0.9 * SPEECH], axis=1)) == ["channels-cancel"]
    assert kinds(SPEECH, np.stack([SPEECH, SPEECH * 0], axis=1)) == []


def test_figures_are_given() -> None:
    (noise,) = check_sound(sound_of(with_noise(SPEECH, 15)), "rows:1")
    assert "noise only 1" in noise.found  # 14 to 18 dB
    narrow = replace(sound_of(SPEECH), bandwidth_hz=3_900.0)
    (band,) = check_sound(narrow, "rows:1")
    assert band.found == "nothing above 3.9 kHz; 12 kHz are expected"


def test_lengths() -> None:
    assert [finding.kind for finding in check_length(0.9, "rows:1")] == ["short-clip"]
    assert [finding.kind for finding in check_length(61.0, "rows:1")] == ["long-clip"]
    assert list(check_length(1.0, "rows:1")) == list(check_length(60.0, "rows:1")) == []


def clip(where: str, characters: int = 45, level: float | None = -25.0, speaker: str | None = "Anna") -> ClipInSet:
    return ClipInSet(where, speaker, level, speech_sec=3.0, characters=characters)


def set_findings(clips: list[ClipInSet]) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in check_set(clips)]


USUAL = [clip(f"rows:{number}", characters=42 + number % 7) for number in range(20)]


def test_a_clip_far_from_the_sets_level() -> None:
    assert set_findings([*USUAL, clip("rows:99", level=-38.0)]) == [("level", "rows:99")]
    assert set_findings([*USUAL, clip("rows:99", level=-12.0)]) == [("level", "rows:99")]
    assert set_findings([*USUAL, clip("rows:99", level=-36.0)]) == []


def test_text_that_is_too_long_or_too_short_for_the_speech() -> None:
    # 15 characters a second are usual; 1.5 times as many, or as few, are too far.
    assert set_findings([*USUAL, clip("rows:99", characters=72)]) == [("speaking-rate", "rows:99")]
    assert set_findings([*USUAL, clip("rows:99", characters=28)]) == [("speaking-rate", "rows:99")]
    assert set_findings([*USUAL, clip("rows:99", characters=60)]) == []


def test_each_speaker_has_a_rate_of_their_own() -> None:
    fast = [clip(f"rows:{100 + number}", characters=78 + number % 5, speaker="Ben") for number in range(20)]
    assert set_findings([*USUAL, *fast]) == []
    assert set_findings([*USUAL, *fast, clip("rows:99", characters=45, speaker="Ben")]) == [
        ("speaking-rate", "rows:99")
    ]


def test_a_wide_set_is_judged_by_its_own_spread() -> None:
    wide = [clip(f"rows:{number}", characters=round(45 * 1.12 ** (number % 9 - 4))) for number in range(40)]
    assert set_findings([*wide, clip("rows:99", characters=80)]) == []


def test_few_clips_say_nothing_about_each_other() -> None:
    assert set_findings([*USUAL[:8], clip("rows:99", characters=200, level=-60.0)]) == []


def test_what_is_too_short_is_not_compared() -> None:
    tiny = ClipInSet("rows:99", "Anna", -60.0, speech_sec=0.1, characters=45)
    assert set_findings([*USUAL, tiny]) == []
