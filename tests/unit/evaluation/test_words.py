"""Errors counted by hand, and against jiwer."""

import pytest

from vibevoice_finetune.evaluation.words import Errors, letter_errors, normalise, word_errors

jiwer = pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")


@pytest.mark.parametrize(
    ("reference", "heard", "expected"),
    [
        ("The cat sat.", "the cat sat", Errors(0, 0, 0, 3)),
        ("The cat sat.", "the bat sat down", Errors(1, 0, 1, 3)),
        ("The cat sat on the mat.", "the cat sat", Errors(0, 3, 0, 6)),
        ("Twenty-five colours", "25 colors", Errors(0, 0, 0, 2)),
        ("Hello.", "", Errors(0, 1, 0, 1)),
        ("", "hello", Errors(0, 0, 1, 0)),
        ("...", "", Errors(0, 0, 0, 0)),
    ],
)
def test_words_by_hand(reference: str, heard: str, expected: Errors) -> None:
    assert word_errors(reference, heard) == expected


def test_rates_are_those_of_jiwer() -> None:
    pairs = [("the cat sat here", "the bat sat"), ("red blue", "red blue green white"), ("box", "lamp")]
    total = sum((word_errors(*pair) for pair in pairs), Errors(0, 0, 0, 0))
    plain = [tuple(normalise(text) for text in pair) for pair in pairs]
    assert total.rate == pytest.approx(jiwer.wer([one for one, _ in plain], [other for _, other in plain]))
    letters = sum((letter_errors(*pair) for pair in pairs), Errors(0, 0, 0, 0))
    plain = [tuple(normalise(text).replace(" ", "") for text in pair) for pair in pairs]
    assert letters.rate == pytest.approx(jiwer.cer([one for one, _ in plain], [other for _, other in plain]))


def test_a_rate_without_words() -> None:
    assert Errors(0, 0, 0, 0).rate == 0
    assert Errors(0, 0, 2, 0).rate == 1


def test_other_languages_keep_their_letters() -> None:
    assert normalise("Größe, bitte!", "de") == "größe bitte"
    assert word_errors("Größe bitte", "größe bitte", "de").edits == 0
