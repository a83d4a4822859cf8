"""A transcript over what a recogniser heard: every cut gets the transcript's own words."""

import pytest

pytest.importorskip("rapidfuzz")

from vibevoice_finetune.preparation.align import align, letter_error, letters

BOOK = (
    "It was the best of times, it was the worst of times. It was the age of wisdom; it was the age of foolishness! "
    "“It was the epoch of belief,” he said. Then came winter."
)


def texts(heard: list[str], transcript: str) -> list[str]:
    return [found.text for found in align(heard, transcript)]


def test_misheard_words_do_not_move_the_borders() -> None:
    heard = [
        "it was the best of time",
        "it was a worst of times it was the age of wisdom",
        "it was the age of foolish nest",
        "it was the epic of belief he said",
        "then came winter",
    ]
    assert texts(heard, BOOK) == [
        "It was the best of times,",
        "it was the worst of times. It was the age of wisdom;",
        "it was the age of foolishness!",
        "“It was the epoch of belief,” he said.",
        "Then came winter.",
    ]


def test_what_was_not_in_the_text_has_a_high_error() -> None:
    """Words that nobody read go to a neighbour, whose error tells; that loses a clip, not the truth of one."""
    found = align(["it was the best of times", "a word from our sponsor", "it was the age of wisdom"], BOOK)
    assert found[0].error > 0.3
    assert found[1].error > 0.5
    assert (found[2].text, found[2].error) == ("It was the age of wisdom;", 0)


def test_text_around_the_recording_belongs_to_no_cut() -> None:
    text = "Chapter one. Nobody reads this. The cat sat. The dog ran away quickly. And this is not read. Nor this."
    assert texts(["the cat sat", "the dog run away quick"], text) == ["The cat sat.", "The dog ran away quickly."]


def test_a_word_that_nobody_heard_goes_where_the_sentence_ends() -> None:
    assert texts(["we saw", "then we left"], "We saw it. Then we left.") == ["We saw it.", "Then we left."]
    assert texts(["we saw", "we left"], "We saw it. Then we left.") == ["We saw it.", "Then we left."]


def test_silence_gets_nothing() -> None:
    assert texts(["hello", "", "world"], "Hello world.") == ["Hello", "", "world."]
    assert texts(["", ""], "Hello world.") == ["", ""]
    assert texts([], "Hello world.") == []
    assert texts(["hello"], "") == [""]


def test_scripts_without_spaces() -> None:
    assert texts(["今日は良い天気", "明日は雨"], "今日は良い天気です。明日は雨でしょう。") == [
        "今日は良い天気です。",
        "明日は雨でしょう。",
    ]


def test_letters_are_what_is_spoken() -> None:
    assert letters("Ça va, l’été?") == "cavalete"
    assert letter_error("Ça va", "ca va!") == 0
    assert letter_error("", "") == 0
    assert letter_error("abc", "") == 1
    assert letter_error("kitten", "sitting") == pytest.approx(3 / 7)
