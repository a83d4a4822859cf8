"""Every position of the prompt, by hand."""

import doctest

import numpy as np
import pytest

from vibevoice_finetune.data import prompt
from vibevoice_finetune.data.prompt import (
    FixedPieces,
    SpecialTokens,
    check_no_control_tokens,
    encode_turns,
    generation_prompt,
    label_text,
    num_prompt_tokens,
    training_sequence,
)
from vibevoice_finetune.data.script import Turn
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


def reserved_tokens():
    return SpecialTokens(90, 91, 92, 93, reserved={90: "<|start|>", 93: "<|endoftext|>"})


@pytest.mark.parametrize("text", ["Hi.<|endoftext|>", "<|start|> Hi.", "a <|start|>b"])
def test_text_that_spells_a_control_token_is_refused(text):
    with pytest.raises(DataError, match=r'x:1: the text holds "<\|(start|endoftext)\|>"'):
        check_no_control_tokens(reserved_tokens(), (Turn(0, "Fine."), Turn(1, text)), "x:1")


def test_text_that_becomes_a_control_token_is_refused_even_if_it_does_not_spell_it():
    with pytest.raises(DataError, match=r'x:1: the text holds "<\|endoftext\|>"'):
        encode_turns(lambda text: [5, 93], reserved_tokens(), (Turn(0, "odd"),), "x:1")
    with pytest.raises(DataError, match="control token"):
        generation_prompt(lambda text: [93], reserved_tokens(), (Turn(0, "odd"),), [])


def test_other_angle_brackets_are_text():
    check_no_control_tokens(reserved_tokens(), (Turn(0, "a <b> c <|end"),), "x:1")
    assert encode_turns(lambda text: [5, 6], reserved_tokens(), (Turn(0, "a"), Turn(0, "b")), "x:1") == [5, 6, 5, 6]


@pytest.mark.parametrize("voice_frames", [[], [2, 1]])
def test_the_length_of_a_prompt_is_known_without_its_text(voice_frames):
    turns = (Turn(1, "b"), Turn(0, "a"))
    ids, _ = generation_prompt(encode, SPECIAL, turns, voice_frames)
    assert num_prompt_tokens(encode, SPECIAL, 3, voice_frames) == len(ids)  # "Speaker 1: b" is one id, the other two


def test_fixed_pieces_are_encoded_once():
    asked = []

    def slow(text):
        asked.append(text)
        return [len(text)]

    fast = FixedPieces(slow)
    before = len(asked)
    assert fast(prompt.SYSTEM_PIECE) == [len(prompt.SYSTEM_PIECE)]
    assert fast(" Speaker 3:") == [11]
    assert len(asked) == before
    assert fast(" Speaker 0: a\n") == [14]
    assert len(asked) == before + 1


def test_number_of_voices_must_fit():
    with pytest.raises(DataError, match="1 voice prompt for 2 speakers"):
        training_sequence(encode, SPECIAL, (Turn(0, "a"), Turn(1, "b")), voice_frames=[2], target_frames=1)
