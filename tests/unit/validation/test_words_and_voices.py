import numpy as np
import pytest

from vibevoice_finetune.validation.words_and_voices import Voice, Words, check_prompts, check_voices, check_words


def test_another_text_is_found_and_small_errors_are_not() -> None:
    pytest.importorskip("rapidfuzz")
    text = "Speaker 0: The kettle was still warm."
    rows = [
        Words("rows:1", text, "the kettle was still warm"),
        Words("rows:2", text, "The cattle was still worn."),  # 3 of 22 letters
        Words("rows:3", text, "Nobody noticed the missing page."),
        Words("rows:4", text, ""),
    ]
    assert [(finding.kind, finding.where) for finding in check_words(rows)] == [
        ("wrong-text", "rows:3"),
        ("wrong-text", "rows:4"),
    ]


def test_both_texts_stand_side_by_side() -> None:
    pytest.importorskip("rapidfuzz")
    (finding,) = check_words([Words("rows:1", "Speaker 0: One two.", "Nine")])
    assert 'text "Speaker 0: One two.", heard "Nine"' in finding.found


def test_of_bad_sound_less_can_be_heard() -> None:
    pytest.importorskip("rapidfuzz")
    text, heard = "Speaker 0: abcdefghij", "abcdefxxxx"  # 4 of 10
    assert len(list(check_words([Words("rows:1", text, heard)]))) == 1
    assert list(check_words([Words("rows:1", text, heard, degraded=True)])) == []


def test_a_voice_that_the_recogniser_does_not_know() -> None:
    pytest.importorskip("rapidfuzz")
    text = "Speaker 0: abcdefghij"
    # 20 to 40 % of every row: the median is 30 %, its deviation 1.5 · 10 %, so that up to 65 % are usual.
    heard = ("abcdefghxx", "abcdefgxxx", "abcdefxxxx") * 4
    rows = [Words(f"rows:{number}", text, words, speaker="Anna") for number, words in enumerate(heard)]
    assert list(check_words(rows)) == []
    wrong = Words("rows:99", text, "abzzzzzzzz", speaker="Anna")
    assert [finding.where for finding in check_words([*rows, wrong])] == ["rows:99"]
    assert len(list(check_words(rows[:9]))) == 3  # too few rows to know the voice


def voice(where: str, speaker: str | None, degrees: float, *, degraded: bool = False) -> Voice:
    """A vector at an angle in the first two of three dimensions."""
    angle = np.deg2rad(degrees)
    return Voice(where, speaker, np.array([np.cos(angle), np.sin(angle), 0], dtype=np.float32), degraded)


ANNA = [voice(f"rows:{number}", "Anna", 2.0 * number) for number in range(6)]
BEN = [voice(f"rows:{10 + number}", "Ben", 80 + 2.0 * number) for number in range(6)]


def test_a_voice_among_those_of_another() -> None:
    assert list(check_voices([*ANNA, *BEN])) == []
    found = list(check_voices([*ANNA, *BEN, voice("rows:99", "Anna", 85)]))
    assert [(finding.kind, finding.where) for finding in found] == [("other-voice", "rows:99")]


def test_several_strangers_do_not_hide_each_other() -> None:
    strangers = [voice("rows:98", "Anna", 85), voice("rows:99", "Anna", 88)]
    assert [finding.where for finding in check_voices([*ANNA, *strangers])] == ["rows:98", "rows:99"]


def test_bad_sound_moves_a_voice() -> None:
    # cos 50° is 0.64: 0.34 to 0.36 below the others' likeness of about 1.
    assert [f.where for f in check_voices([*ANNA, voice("rows:99", "Anna", 50)])] == ["rows:99"]
    assert list(check_voices([*ANNA, voice("rows:99", "Anna", 50, degraded=True)])) == []


def test_nobody_is_compared_with_three_others_or_without_a_name() -> None:
    assert list(check_voices([*ANNA[:2], voice("rows:99", "Anna", 85)])) == []
    assert list(check_voices([voice(f"rows:{number}", None, 80.0 * number) for number in range(6)])) == []


def test_a_prompt_of_another_voice() -> None:
    pairs = [(one, voice(f"{one.where}: voice_prompts", None, 5)) for one in ANNA]
    assert list(check_prompts(pairs)) == []
    wrong = (ANNA[0], voice("rows:0: voice_prompts[0]", None, 85))
    assert [(f.kind, f.row) for f in check_prompts([*pairs, wrong])] == [("prompt-voice", "rows:0")]
