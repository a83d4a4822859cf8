import pytest

from vibevoice_finetune.validation.text_checks import (
    check_letters,
    check_script,
    normalised,
    spoken_length,
)


def kinds(text: str) -> list[str]:
    return [finding.kind for finding in check_script(text, "rows:1")]


def test_a_plain_script_has_no_findings() -> None:
    assert kinds("Speaker 0: The kettle was still warm.\nSpeaker 1: “Well”, she said – it isn't mine!") == []


def test_a_tag_is_shown_as_it_should_be() -> None:
    (finding,) = check_script("[S1] Hello.", "rows:1")
    assert (finding.kind, finding.where, finding.fixed) == ("speaker-tag", "rows:1", "Speaker 1: Hello.")
    assert '"Speaker 1: Hello."' in finding.found
    (finding,) = check_script("Anna: Hello.", "rows:1")
    assert (finding.kind, finding.fixed) == ("speaker-tag", None)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Speaker 0: Hi.\nSpeaker 1:  ", "empty-turn"),
        ("Speaker 0: Hi <|vision_start|> there.", "control-token"),
        ("Hi <|endoftext|>", "control-token"),
        ("Speaker 0: <b>Hi</b> there.", "markup"),
        ("Speaker 0: Tom &amp; Anna.", "markup"),
        ("Speaker 0: [laughs] Hi.", "markup"),
        ("Speaker 0: It is *really* late.", "markup"),
        ("Speaker 0: In 1984, she left.", "digits"),
        ("Speaker 0: Dr. Miller left.", "abbreviation"),
        ("Speaker 0: Tom & Anna left.", "abbreviation"),
        ("Speaker 0: It weighs many kg now.", "abbreviation"),
        ("Speaker 0: Hi\x00 there.", "odd-character"),
        ("Speaker 0: \x1b(B Hi there.", "odd-character"),
    ],
)
def test_each_fault_alone(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "Speaker 0: Come in.\\nSpeaker 1: With pleasure.",
        "\u200bSpeaker\u00a01\uff1a Hi.",
        "Speaker 0: Hi.\r\nSpeaker 12: Bye.",
    ],
)
def test_the_numbers_of_tags_are_no_digits_of_the_text(text: str) -> None:
    assert kinds(text) == []


@pytest.mark.parametrize("text", ["Speaker 0: 2 < 3 is a fact.", "Speaker 0: a star * in the text."])
def test_single_signs_are_no_markup(text: str) -> None:
    assert "markup" not in kinds(text)


def letters(texts: list[str]) -> list[tuple[str, str]]:
    return [
        (finding.where, finding.kind) for finding in check_letters([(str(k), text) for k, text in enumerate(texts)])
    ]


def test_letters_of_another_script() -> None:
    assert letters(["plain"] * 30 + ["he said да"]) == [("30", "foreign-script")]
    assert letters(["слово и дело"] * 30 + ["слово word"]) == [("30", "foreign-script")]


def test_a_set_in_two_scripts_has_two_scripts() -> None:
    assert letters(["plain"] * 10 + ["слово"] * 10 + ["word слово"]) == []


def test_a_letter_that_hardly_any_row_has() -> None:
    assert letters(["Straße und Müll"] * 60 + ["a façade"]) == [("60", "odd-character")]
    assert letters(["plain"] * 10 + ["a façade"]) == []  # ten rows do not say what is usual


@pytest.mark.parametrize(
    "text",
    [
        *("caf\u00c3\u00a9", "it\u00e2\u20ac\u2122s", "lost \ufffd", "smile 😀", "\ue000", "bell \a"),
        *("a \u202eb", "so\u00adft"),
    ],
)
def test_broken_encodings_and_pictures(text: str) -> None:
    assert letters(["plain"] * 10 + [text]) == [("10", "odd-character")]


def test_invisible_marks_that_a_language_needs_are_usual() -> None:
    assert letters(["می\u200cخواهم"] * 10) == []
    assert letters(["plain"] * 10 + ["\ufeffSpeaker 0: plain"]) == []


def test_punctuation_of_good_typography_is_usual() -> None:
    assert letters(["plain"] * 100 + ["“Well” – she’s here…"]) == []


def test_what_is_spoken() -> None:
    assert spoken_length("Speaker 0: Ab, c!\nspeaker 12 : d") == 4
    assert normalised("Speaker 0: Well, NO.\nSpeaker 1: Yes") == "well no yes"
