import numpy as np
import pytest

from tests.speechlike import RATE_HZ, chords, in_a_room, speechlike, with_noise
from vibevoice_finetune.audio import measure
from vibevoice_finetune.audio.measure import find_speech, frame_levels


def tone(dbfs: float, seconds: float = 1.0, hertz: float = 1_000.0) -> np.ndarray:
    """A sine of this RMS."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (np.sqrt(2) * 10 ** (dbfs / 20) * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), dtype=np.float32)


def test_levels_are_rms_in_decibels_to_full_scale_for_each_10_ms() -> None:
    levels = frame_levels(np.concatenate([tone(-20, 0.1), silence(0.05), tone(-40, 0.1)]), RATE_HZ)
    assert len(levels) == 25
    np.testing.assert_allclose(levels[:10], -20, atol=0.01)
    np.testing.assert_array_equal(levels[10:15], -120)
    np.testing.assert_allclose(levels[15:], -40, atol=0.01)


def test_levels_of_less_than_a_frame_are_those_of_what_there_is() -> None:
    np.testing.assert_allclose(frame_levels(np.full(100, 0.1, dtype=np.float32), RATE_HZ), [-20], atol=0.01)


def test_speech_is_where_it_is_loud() -> None:
    sound = np.concatenate([silence(0.3), tone(-20, 0.5), silence(0.4), tone(-22, 0.2), silence(0.6)])
    activity = find_speech(frame_levels(with_noise(sound, 50), RATE_HZ))
    assert activity.segments_sec == ((0.3, 0.8), (1.2, 1.4))
    assert activity.speech_sec == pytest.approx(0.7)
    assert activity.leading_silence_sec == pytest.approx(0.3)
    assert activity.trailing_silence_sec == pytest.approx(0.6)
    # (0.5 s · 10^-2 + 0.2 s · 10^-2.2) / 0.7 s = 10^-2.049
    assert activity.level_dbfs == pytest.approx(-20.49, abs=0.05)


def test_short_pauses_belong_to_speech_and_clicks_do_not() -> None:
    sound = np.concatenate([silence(0.5), tone(-6, 0.02), silence(0.5), tone(-20, 0.3), silence(0.15), tone(-20, 0.3)])
    assert find_speech(frame_levels(sound, RATE_HZ)).segments_sec == ((1.02, 1.77),)


def test_silence_has_no_speech_and_a_steady_tone_is_nothing_else() -> None:
    nothing = find_speech(frame_levels(silence(0.4), RATE_HZ))
    assert (nothing.segments_sec, nothing.speech_sec, nothing.leading_silence_sec) == ((), 0, 0.4)
    assert find_speech(frame_levels(tone(-30, 0.4), RATE_HZ)).speech_sec == pytest.approx(0.4)


@pytest.mark.parametrize("below_db", [10, 20, 30])
def test_words_are_found_under_noise(below_db: float) -> None:
    clean = find_speech(frame_levels(speechlike(), RATE_HZ))
    noisy = find_speech(frame_levels(with_noise(speechlike(), below_db), RATE_HZ))
    assert len(noisy.segments_sec) == len(clean.segments_sec) == 6
    np.testing.assert_allclose(noisy.segments_sec, clean.segments_sec, atol=0.05)


def test_edges_tell_a_cut_word_from_a_pause() -> None:
    whole = speechlike()
    levels = frame_levels(whole, RATE_HZ)
    speech = find_speech(levels)
    start, end = measure.edge_levels(levels, speech.level_dbfs)
    assert start < -50
    assert end < -50
    middle_of_first_word, middle_of_last_word = round(0.35 * RATE_HZ), -round(0.5 * RATE_HZ)
    cut = frame_levels(whole[middle_of_first_word:middle_of_last_word], RATE_HZ)
    start, end = measure.edge_levels(cut, speech.level_dbfs)
    assert start > -6
    assert end > -6


@pytest.mark.parametrize("below_db", [10, 20, 30, 45])
def test_the_noise_floor_is_that_of_the_noise(below_db: float) -> None:
    levels = frame_levels(with_noise(speechlike(), below_db), RATE_HZ)
    assert measure.noise_floor(levels) - find_speech(levels).level_dbfs == pytest.approx(-below_db, abs=3)


def test_padding_says_nothing_about_the_noise() -> None:
    noisy = with_noise(speechlike(), 15)
    padded = np.concatenate([silence(2), noisy, silence(2)])
    floors = [measure.noise_floor(frame_levels(samples, RATE_HZ)) for samples in (noisy, padded)]
    assert floors[0] == pytest.approx(floors[1], abs=0.2)
    assert measure.noise_floor(frame_levels(silence(1), RATE_HZ)) == measure.LOWEST_DBFS


def fall_of(samples: np.ndarray) -> float:
    levels = frame_levels(samples, RATE_HZ)
    fall = measure.steepest_fall(levels, find_speech(levels).level_dbfs)
    assert fall is not None
    return fall


def test_a_room_slows_the_fall_to_its_own() -> None:
    dry = speechlike(pause_sec=0.4)
    assert measure.decay_time(fall_of(dry)) < 0.3
    for t60 in (0.8, 1.2):
        # The direct sound adds some 3 dB to the fall, so that the time comes out too short.
        assert measure.decay_time(fall_of(in_a_room(dry, t60))) == pytest.approx(t60, rel=0.35)


def test_no_fall_can_be_seen_in_what_is_too_short() -> None:
    assert measure.steepest_fall(np.full(10, -20.0), -20.0) is None
    assert measure.steepest_fall(np.full(100, -20.0), -20.0) is None


def test_peak() -> None:
    assert measure.peak_dbfs(np.array([0.1, -0.5, 0.2], dtype=np.float32)) == pytest.approx(-6.02, abs=0.01)
    assert measure.peak_dbfs(np.array([[0.1, -0.5], [0.2, 1.0]], dtype=np.float32)) == pytest.approx(0, abs=0.01)


def test_clipped_is_what_lies_in_flat_tops() -> None:
    # Two tops of three samples among 20; the single 0.9 and the pair at the other side are none.
    top = np.array(
        [0, 0.3, 1, 1, 1, 0.3, -0.9, 0, 0.9, 0.2, 1, 1, 1, 0.1, -0.9, -0.9, 0, 0.1, 0.2, 0], dtype=np.float32
    )
    assert measure.clipped_share(top) == pytest.approx(6 / 20)
    assert measure.clipped_share(-top * 0.25) == pytest.approx(6 / 20)  # turned down afterwards
    assert measure.clipped_share(np.stack([top * 0, top], axis=1)) == pytest.approx(6 / 20)


def test_what_touches_full_scale_is_not_clipped() -> None:
    assert measure.clipped_share(tone(-3.0103)) == 0  # a sine whose peak is 1
    assert measure.clipped_share(speechlike() / np.abs(speechlike()).max()) == 0
    assert measure.clipped_share(np.round(tone(-60) * 32_768).astype(np.float32) / 32_768) == 0  # a few steps high


def test_a_clipped_voice_is_found() -> None:
    speech = speechlike()
    speech /= np.abs(speech).max()
    assert measure.clipped_share(np.clip(speech * 2, -1, 1)) > 1e-3


def test_dc_offset_is_the_mean_farthest_from_zero() -> None:
    assert measure.dc_offset(tone(-20) + np.float32(0.03)) == pytest.approx(0.03, abs=1e-4)
    both = np.stack([tone(-20) + np.float32(0.01), tone(-20) - np.float32(0.05)], axis=1)
    assert measure.dc_offset(both) == pytest.approx(-0.05, abs=1e-4)


def test_two_people_on_two_channels() -> None:
    one, other = tone(-20, 1.0), tone(-20, 0.5)
    left = np.concatenate([one, silence(0.5)])
    right = np.concatenate([silence(1.0), other])
    turns, mix = measure.channel_difference(np.stack([left, right], axis=1), RATE_HZ)
    assert turns == pytest.approx(1 / 3, abs=0.02)  # the one who speaks less has a third of the time
    assert mix == pytest.approx(-3, abs=0.1)


@pytest.mark.parametrize(
    ("right", "mix"),
    [(1.0, 0.0), (0.0, -3.01), (-0.9, -25.6)],  # (0.05² / ((1 + 0.81) / 2)) is −25.6 dB
)
def test_one_person_on_two_channels(right: float, mix: float) -> None:
    left = tone(-20)
    turns, lost = measure.channel_difference(np.stack([left, left * np.float32(right)], axis=1), RATE_HZ)
    assert turns == 0
    assert lost == pytest.approx(mix, abs=0.1)


def test_one_channel_differs_from_none() -> None:
    assert measure.channel_difference(tone(-20), RATE_HZ) == (0, 0)
    assert measure.channel_difference(tone(-20)[:, None], RATE_HZ) == (0, 0)


def test_music_is_no_speech_pause() -> None:
    music = speechlike() + 10 ** (-35 / 20) * chords(4)[: len(speechlike())]
    levels = frame_levels(music, RATE_HZ)
    assert measure.noise_floor(levels) - find_speech(levels).level_dbfs > -20
