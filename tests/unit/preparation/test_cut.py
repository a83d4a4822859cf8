"""The rule of cutting, on stretches of speech written by hand."""

from dataclasses import replace
from itertools import pairwise

import pytest

from vibevoice_finetune.preparation.cut import Cut, CutSettings, Speech, cut, with_edges

SETTINGS = CutSettings(min_sec=2, max_sec=10, min_pause_sec=0.3, lead_in_sec=0.1, run_out_sec=0.3)


def spans(cuts: list[Cut]) -> list[tuple[float, float]]:
    return [(one.speech_start_sec, one.speech_end_sec) for one in cuts if one.rejected is None]


def test_every_pause_is_a_border_and_a_shorter_silence_is_not() -> None:
    speech = [Speech(1.0, 3.0), Speech(3.2, 5.0), Speech(5.3, 8.0)]  # silences of 0.2 and 0.3 s
    assert spans(cut(speech, 9.0, SETTINGS)) == [(1.0, 5.0), (5.3, 8.0)]


def test_edges_come_from_the_recording_and_never_reach_the_neighbour() -> None:
    speech = [Speech(0.05, 3.0), Speech(3.3, 6.0), Speech(8.0, 11.0)]
    first, second, third = cut(speech, 11.1, SETTINGS)
    assert first.start_sec == 0.0  # only 0.05 s are there
    # The pause of 0.3 s is shared 3 to 1, less the 0.02 s that stay clear: 0.28 · 3/4 and 0.28 / 4.
    assert (first.end_sec, second.start_sec) == (3.21, 3.23)
    assert (second.end_sec, third.start_sec) == (6.3, 7.9)  # a pause of 2 s has room for both
    assert third.end_sec == 11.1  # the recording ends


def test_a_long_phrase_is_cut_at_its_longest_silence_near_the_middle() -> None:
    speech = [Speech(0, 1), Speech(1.25, 6), Speech(6.2, 11), Speech(11.2, 12)]
    # 12 s are more than 10. Silences: 0.25 s at 1.1 (0.41 of the length from the middle: worth 0.15), 0.2 s at 6.1
    # (0.01 away: 0.2), 0.2 s at 11.1 (0.11).
    assert spans(cut(speech, 12.0, SETTINGS)) == [(0, 6), (6.2, 12)]


def test_a_phrase_is_cut_again_until_it_fits() -> None:
    speech = [Speech(3.2 * i, 3.2 * i + 3.0) for i in range(10)]  # 31.8 s
    pieces = spans(cut(speech, 40.0, SETTINGS))
    assert all(end - start <= 10 for start, end in pieces)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 31.8
    assert all(round(b[0] - a[1], 3) == 0.2 for a, b in pairwise(pieces)), "nothing is lost"


def test_speech_without_a_pause_is_given_up_and_said() -> None:
    (only,) = cut([Speech(0, 15)], 15.0, SETTINGS)
    assert only.rejected == "15.0 s of speech without a pause to cut at"


def test_a_short_phrase_joins_the_nearer_neighbour() -> None:
    speech = [Speech(0, 3), Speech(3.9, 4.5), Speech(4.9, 8)]  # 0.9 s before, 0.4 s after
    assert spans(cut(speech, 9.0, SETTINGS)) == [(0, 3), (3.9, 8)]


@pytest.mark.parametrize(
    ("speech", "why"),
    [
        ([Speech(0, 3), Speech(4.5, 5)], "the pause is too long to stay inside a clip"),
        ([Speech(0, 9.5), Speech(10, 10.5)], "together they are too long"),
        ([Speech(0, 3, "anna"), Speech(3.4, 4, "ben")], "two people"),
    ],
)
def test_a_short_phrase_that_cannot_join_is_given_up(speech: list[Speech], why: str) -> None:
    first, second = cut(speech, 12.0, SETTINGS)
    assert first.rejected is None
    assert second.rejected == f"{speech[1].end_sec - speech[1].start_sec:.2f} s of speech; at least 2 s is wanted", why


def test_no_cut_crosses_a_change_of_speaker() -> None:
    speech = [Speech(0, 3, "anna"), Speech(3.15, 6, "ben"), Speech(6.15, 9, "ben")]
    found = cut(speech, 9.0, SETTINGS)
    assert [(one.speaker, one.speech_start_sec, one.speech_end_sec) for one in found] == [
        ("anna", 0, 3),
        ("ben", 3.15, 9),
    ]


def test_all_speech_is_in_one_cut_and_nothing_twice() -> None:
    speech = [Speech(0.9 * i, 0.9 * i + (0.3 if i % 3 else 0.75)) for i in range(60)]
    found = cut(speech, 60.0, SETTINGS)
    for one in speech:
        assert sum(c.speech_start_sec <= one.start_sec and one.end_sec <= c.speech_end_sec for c in found) == 1
    for before, after in pairwise(found):
        assert before.end_sec <= after.start_sec


def test_nothing_is_cut_from_nothing() -> None:
    assert cut([], 10.0, SETTINGS) == []
    assert with_edges([], 10.0, SETTINGS) == []
    no_edges = replace(SETTINGS, lead_in_sec=0, run_out_sec=0)
    (only,) = cut([Speech(1, 4)], 5.0, no_edges)
    assert (only.start_sec, only.end_sec) == (1, 4)
