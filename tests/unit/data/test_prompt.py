"""Every position of the prompt, by hand."""

import doctest

import numpy as np
import pytest

from vibevoice_finetune.data import prompt
from vibevoice_finetune.data.prompt import SpecialTokens, Turn, label_text, parse_script, training_sequence
from vibevoice_finetune.errors import DataError

SPECIAL = SpecialTokens(speech_start=90, speech_end=91, frame=92, end_of_text=93)
PIECES = {
    prompt.SYSTEM_PIECE: [1, 2],
    " Voice input:\n": [3],
    " Speaker 0:": [4],
    " Speaker 1:": [5],
    "\n": [6],
    " Text input:\n": [7],
    " Speaker 0: a\n": [10, 11],
    " Speaker 1: b\n": [12],
    " Speech output:\n": [8],
}


def encode(text):
    return PIECES[text]


def test_doctests_run():
    assert doctest.testmod(prompt).failed == 0
    assert doctest.testmod(prompt).attempted > 5


def test_layout_with_two_voices_by_hand():
    turns = (Turn(1, "b"), Turn(0, "a"))
    row = training_sequence(encode, SPECIAL, turns, voice_frames=[2, 1], target_frames=3)
    # position:  0  1 | 2 | 3  4   5   6   7   8 | 9  10  11  12  13 | 14 | 15 | 16  17 | 18 | 19 | 20 21 22 | 23 | 24
    expected = [1, 2, 3, 4, 90, 92, 92, 91, 6, 5, 90, 92, 91, 6, 7, 12, 10, 11, 8, 90, 92, 92, 92, 91, 93]
    assert row.token_ids.tolist() == expected
    assert row.voice_positions.tolist() == [5, 6, 11]
    assert row.target_positions.tolist() == [20, 21, 22]
    assert row.condition_positions.tolist() == [19, 20, 21]  # the first frame's condition is the final <start>
    assert row.control_positions.tolist() == [19, 20, 21, 22, 23]
    assert row.control_labels.tolist() == [2, 2, 2, 1, 3]  # go on, go on, go on, end of speech, end of text
    # Every token but the first and the frames is a label, read from the position before it.
    labelled = [at for at in range(1, 25) if expected[at] != 92]
    assert row.text_positions.tolist() == [at - 1 for at in labelled]
    assert row.text_labels.tolist() == [expected[at] for at in labelled]


def test_layout_without_voice_has_no_voice_heading():
    row = training_sequence(encode, SPECIAL, (Turn(0, "a"),), voice_frames=[], target_frames=1)
    assert row.token_ids.tolist() == [1, 2, 7, 10, 11, 8, 90, 92, 91, 93]
    assert row.voice_positions.tolist() == []
    assert row.condition_positions.tolist() == [6]


def test_pieces_are_not_changed_by_use():
    before = {text: list(ids) for text, ids in PIECES.items()}
    training_sequence(encode, SPECIAL, (Turn(0, "a"),), voice_frames=[1], target_frames=1)
    assert before == PIECES


def test_labels_skip_frames_but_not_what_follows_them():
    positions, labels = label_text(np.array([5, 6, 92, 92, 7]), np.array([0, 0, 1, 1, 0], dtype=bool))
    assert positions.tolist() == [0, 3]
    assert labels.tolist() == [6, 7]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Speaker 0: Hello.", [(0, "Hello.")]),
        ("SPEAKER 7 :   Hello.  ", [(0, "Hello.")]),
        ("speaker1:a", [(0, "a")]),
        ("Speaker 1: a\n\nSpeaker 2: b\nSpeaker 1: c", [(0, "a"), (1, "b"), (0, "c")]),
        ("Speaker 2: b\nSpeaker 1: a", [(1, "b"), (0, "a")]),
        ("Speaker 10: b\r\nSpeaker 9: a: b", [(1, "b"), (0, "a: b")]),
    ],
)
def test_scripts(text, turns):
    assert [(turn.speaker, turn.text) for turn in parse_script(text, "x")] == turns


def test_missing_tag_shows_the_mended_line():
    with pytest.raises(DataError, match=r'train.jsonl:4: no speaker tag in "Hi."; write "Speaker 0: Hi."'):
        parse_script("Hi.", "train.jsonl:4")


def test_a_tag_missing_in_one_line_is_an_error_even_for_generation():
    with pytest.raises(DataError, match="no speaker tag"):
        parse_script("Speaker 0: a\nb", "x", default_speaker=True)


def test_plain_text_is_speaker_0_for_generation():
    assert parse_script("Hi there.\nBye.", "x", default_speaker=True) == (Turn(0, "Hi there. Bye."),)


@pytest.mark.parametrize("text", ["", "  \n ", "Speaker 0:", "Speaker 0:   "])
def test_nothing_said_is_an_error(text):
    with pytest.raises(DataError, match=r"empty|no words"):
        parse_script(text, "x")


def test_number_of_voices_must_fit():
    with pytest.raises(DataError, match="1 voice prompts for 2 speakers"):
        training_sequence(encode, SPECIAL, (Turn(0, "a"), Turn(1, "b")), voice_frames=[2], target_frames=1)
