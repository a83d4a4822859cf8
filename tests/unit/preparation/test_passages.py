"""Cuts along subtitles: their borders move to silences, and a file for another film is noticed."""

import pytest

from vibevoice_finetune.preparation.cut import CutSettings, Speech
from vibevoice_finetune.preparation.passages import cut_by_passages, offset_of
from vibevoice_finetune.preparation.recordings import Passage

SETTINGS = CutSettings(min_sec=1, max_sec=10)


def test_borders_move_to_the_silence() -> None:
    passages = [Passage(0.2, 3.3, "One."), Passage(3.3, 6.6, "Two."), Passage(9.0, 12.0, "Three.")]
    speech = [Speech(0.5, 3.0), Speech(3.5, 4.5), Speech(4.7, 6.5), Speech(9.3, 11.8)]
    found = cut_by_passages(passages, speech, 13.0, SETTINGS)
    assert [(one.text, one.cut.speech_start_sec, one.cut.speech_end_sec) for one in found] == [
        ("One.", 0.5, 3.0),
        ("Two.", 3.5, 6.5),
        ("Three.", 9.3, 11.8),
    ]
    assert all(one.cut.rejected is None for one in found)


def test_a_border_without_a_silence_keeps_both_together() -> None:
    passages = [Passage(0.0, 3.0, "One and"), Passage(3.0, 6.0, "two."), Passage(7.0, 9.0, "Three.")]
    found = cut_by_passages(passages, [Speech(0.1, 5.9), Speech(7.0, 8.9)], 10.0, SETTINGS)
    assert [one.text for one in found] == ["One and two.", "Three."]


def test_speech_without_text_is_not_used() -> None:
    found = cut_by_passages([Passage(5, 7, "Here.")], [Speech(0, 3), Speech(5, 7)], 8.0, SETTINGS)
    assert [(one.text, one.cut.speech_start_sec) for one in found] == [("Here.", 5)]


def test_what_cannot_be_used_is_said() -> None:
    passages = [Passage(0, 2, "Silence."), Passage(5, 5.5, "Hm."), Passage(10, 25, "Long.")]
    found = cut_by_passages(passages, [Speech(5, 5.4), Speech(10, 25)], 30.0, SETTINGS)
    assert [one.cut.rejected for one in found] == [
        "no speech where the text has it",
        "0.40 s of speech; at least 1 s is wanted",
        "15.0 s of speech under one text; at most 10 s is wanted",
    ]


def test_short_ones_join_their_neighbour_of_the_same_speaker() -> None:
    passages = [Passage(0, 0.5, "No.", "a"), Passage(0.6, 3, "I mean yes.", "a"), Passage(3.2, 3.6, "Oh.", "b")]
    speech = [Speech(0, 0.5), Speech(0.8, 3), Speech(3.3, 3.6)]
    found = cut_by_passages(passages, speech, 4.0, SETTINGS)
    assert [(one.text, one.cut.speaker, one.cut.rejected is None) for one in found] == [
        ("No. I mean yes.", "a", True),
        ("Oh.", "b", False),
    ]


SPEECH = [Speech(7 * i + (i * i % 5), 7 * i + (i * i % 5) + 2 + i % 3) for i in range(40)]


@pytest.mark.parametrize("late_sec", [40.0, -12.5, 3.0])
def test_a_file_that_is_late_is_noticed(late_sec: float) -> None:
    passages = [Passage(s.start_sec + late_sec - 0.2, s.end_sec + late_sec + 0.3, "x") for s in SPEECH]
    assert offset_of(passages, SPEECH, 300.0) == pytest.approx(late_sec, abs=0.35)


def test_one_that_is_right_is_left_alone() -> None:
    assert offset_of([Passage(s.start_sec - 0.3, s.end_sec + 0.4, "x") for s in SPEECH], SPEECH, 300.0) is None
    assert offset_of([], SPEECH, 300.0) is None
    assert offset_of([Passage(0, 1, "x")], [], 300.0) is None
    # A time that cannot be: neither an hour of arithmetic nor all memory.
    assert offset_of([Passage(1e9, 1e9 + 1, "x")], SPEECH, 300.0) is None
    # Half of the speech has subtitles.
    assert offset_of([Passage(s.start_sec, s.end_sec, "x") for s in SPEECH[::2]], SPEECH, 300.0) is None
