"""What a text means: who says what, and which labels must never be read aloud."""

import doctest
import time
from contextlib import suppress

import pytest

from vibevoice_finetune.data import script
from vibevoice_finetune.data.script import Turn, check_said, corrected_script, parse_script
from vibevoice_finetune.errors import DataError


def spoken(text: str, *, plain: bool = False) -> list[tuple[int, str]]:
    return [(turn.speaker, turn.text) for turn in parse_script(text, "x:1", default_speaker=plain)]


def refusal(text: str, *, plain: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        parse_script(text, "x:1", default_speaker=plain)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_doctests_run() -> None:
    assert doctest.testmod(script).failed == 0
    assert doctest.testmod(script).attempted > 1


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Speaker 0: Hello.", [(0, "Hello.")]),
        ("SPEAKER 7 :   Hello.  ", [(0, "Hello.")]),
        ("speaker1:a", [(0, "a")]),
        ("Speaker 00: a", [(0, "a")]),
        ("Speaker 1: a\n\nSpeaker 2: b\nSpeaker 1: c", [(0, "a"), (1, "b"), (0, "c")]),
        ("Speaker 2: b\nSpeaker 1: a", [(1, "b"), (0, "a")]),
        ("Speaker 10: b\r\nSpeaker 9: a: b", [(1, "b"), (0, "a: b")]),
        # a line without a tag belongs to the turn above
        ("Speaker 1: One.\n\nAnd two.\nSpeaker 2: I see.", [(0, "One. And two."), (1, "I see.")]),
        # only \n and \r\n end a line
        ("Speaker 1: a\u2028b\x0cc\x85d", [(0, "a\u2028b\x0cc\x85d")]),
        # marks that nobody sees, and a full-width colon
        ("\ufeffSpeaker 1: a\n\u200bSpeaker 2: b", [(0, "a"), (1, "b")]),
        ("\u200f\u202bSpeaker 0: שלום\u200f", [(0, "שלום")]),
        ("Speaker\u00a01：你好。\nSpeaker 2：晚上好。", [(0, "你好。"), (1, "晚上好。")]),
        ("\uff33\uff50\uff45\uff41\uff4b\uff45\uff52 \uff11：你好。\nSpeaker 2: Hi.", [(0, "你好。"), (1, "Hi.")]),
        # a line break that was escaped once more
        (r"Speaker 0: Come in.\nSpeaker 1: With pleasure.", [(0, "Come in."), (1, "With pleasure.")]),
        (r"Speaker 0: Come in.\r\nspeaker 1: yes", [(0, "Come in."), (1, "yes")]),
        (r"Speaker 0: Come in.\\nSpeaker 1: Yes", [(0, "Come in."), (1, "Yes")]),
        (r"Speaker 0: Hello.\nHow are you?\n", [(0, "Hello. How are you?")]),
        # backslashes that are none
        (r"Speaker 0: Open C:\new folder.", [(0, r"Open C:\new folder.")]),
        (r"Speaker 0: Open C:\Users\Nina\new.", [(0, r"Open C:\Users\Nina\new.")]),
        (r"Speaker 0: In \\server\new and .\new it is.", [(0, r"In \\server\new and .\new it is.")]),
        # words that only resemble a label
        ("Speaker 0: Note: this is it.", [(0, "Note: this is it.")]),
        ("Speaker 0: See [1] and loudspeaker 2: both work.", [(0, "See [1] and loudspeaker 2: both work.")]),
        ("Speaker 0: Anna: come in.", [(0, "Anna: come in.")]),
    ],
)
def test_scripts(text: str, turns: list[tuple[int, str]], plain: bool) -> None:
    assert spoken(text, plain=plain) == turns


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SPEAKER_00: Come in.", "Speaker 0: Come in."),
        ("[1]: Hello.", "Speaker 1: Hello."),
        ("[S1] Hello.", "Speaker 1: Hello."),
        ("[S1] Hello. [S2] Hi.", r"Speaker 1: Hello.\nSpeaker 2: Hi."),
        ("[SPEAKER_03] Hello.", "Speaker 3: Hello."),
        ("(2): Hello.", "Speaker 2: Hello."),
        ("S2: Hello.", "Speaker 2: Hello."),
        ("spk_1: Hello.", "Speaker 1: Hello."),
        ("speaker 0 - Hello.", "Speaker 0: Hello."),
        ("Speaker #4: Hello.", "Speaker 4: Hello."),
        ("**Speaker 1:** Hello.", "Speaker 1: Hello."),
        ("- Speaker 1: Hello.", "Speaker 1: Hello."),
        ("Speaker B: Hello.", "Speaker 1: Hello."),
        ("Speaker: Hello.", "Speaker 0: Hello."),
        ("Voice 2: Hello.", "Speaker 2: Hello."),
        ("\ufeffSPEAKER_01： Hello.", "Speaker 1: Hello."),
        ("【Speaker 1】Hello.", "Speaker 1: Hello."),
        ("\uff08S1\uff09Hello.", "Speaker 1: Hello."),
        ("\uff3b2\uff3d：Hello.", "Speaker 2: Hello."),
        ("Speaker 0: SPEAKER_00: Hello.", "Speaker 0: Hello."),
        ("Speaker 5: a\nSPEAKER_07: b", "Speaker 7: b"),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
def test_labels_of_other_programs_are_refused_with_the_right_line(text: str, line: str, plain: bool) -> None:
    assert f'write "{line}"' in refusal(text, plain=plain)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Speaker 1: Hello! Speaker 2: Good evening.", r"Speaker 1: Hello!\nSpeaker 2: Good evening."),
        ("Speaker 1: a Speaker 2: b speaker 1：c", r"Speaker 1: a\nSpeaker 2: b\nSpeaker 1: c"),
        ("Speaker 1: a SPEAKER_02: b", r"Speaker 1: a\nSpeaker 2: b"),
        ("Speaker 1: a\rSpeaker 2: b", r"Speaker 1: a\nSpeaker 2: b"),
    ],
)
def test_a_tag_inside_a_line_is_refused_with_a_line_for_each(text: str, lines: str, plain: bool) -> None:
    message = refusal(text, plain=plain)
    assert "stands inside the line" in message
    assert f'write "{lines}"' in message


def test_training_needs_a_tag() -> None:
    assert refusal("Hi.") == 'x:1: no speaker tag in "Hi."; write "Speaker 0: Hi."'
    assert 'write "Speaker 3: Hi." if that speaker says it' in refusal("Hi.\nSpeaker 3: Yes.")
    assert 'write "Speaker 3: Hi."' in refusal("Hi.\nSpeaker 3: Yes.", plain=True)


def test_a_name_may_be_a_label_or_spoken_and_the_message_gives_both() -> None:
    message = refusal("Anna: Come in.")
    assert 'write "Speaker 0: Come in." if "Anna" is a label' in message
    assert 'if it is spoken, write it "Speaker 0: Anna: Come in."' in message
    assert 'write "Speaker 2: Hi." if "Ben" is a label' in refusal("Speaker 0: a\nSpeaker 1: b\nBen: Hi.")


@pytest.mark.parametrize(
    "text",
    [
        "Hi there.",
        "Anna: Come in.",
        "Note: this is important.",
        "Note: this is one.\nWarning: this is another.",
        "The time is 10:30.\nSee http://example.com: it works.",
        "Two things matter: speed and care.\nWe have both: always.",
        "Speaker 1 was late.",
        "[laughs] Hi there.",
        "He said: yes.\nAnd left.",
    ],
)
def test_prose_is_speaker_0_for_generation(text: str) -> None:
    assert spoken(text, plain=True) == [(0, text.replace("\n", " "))]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("Anna: Come in.\nBen: Thanks.", r"Speaker 0: Come in.\nSpeaker 1: Thanks."),
        ("Anna: Hi.\n(A door.)\nBen: Hi.\nAnna: Sit.", r"Speaker 0: Hi.\n(A door.)\nSpeaker 1: Hi.\nSpeaker 0: Sit."),
        ("安娜：你好。\n本：好。", r"Speaker 0: 你好。\nSpeaker 1: 好。"),
        ("Dr. Smith: Hi.\nMrs. Jones: Yes?", r"Speaker 0: Hi.\nSpeaker 1: Yes?"),
        ("1: Hello.\n2: Hi.", r"Speaker 1: Hello.\nSpeaker 2: Hi."),
        ("[Anna] Hello.\n[Ben] Hi.", r"Speaker 0: Hello.\nSpeaker 1: Hi."),
    ],
)
def test_a_dialogue_of_names_is_not_read_aloud(text: str, lines: str) -> None:
    message = refusal(text, plain=True)
    assert f'write "{lines}"' in message
    assert 'put "Speaker 0: " before the text' in message


def test_a_backslash_and_an_n_that_may_be_either_is_refused() -> None:
    assert "may be a line break or not" in refusal(r"Speaker 0: Hi\nthere")
    assert "may be a line break or not" in refusal(r"The symbol \nabla.", plain=True)


@pytest.mark.parametrize(
    "text", ["", "  \n ", "\ufeff\n\u200b", "Speaker 0:", "Speaker 0:   ", "Speaker 0: \u200b\u2060"]
)
def test_nothing_said_is_an_error(text: str) -> None:
    assert "empty" in refusal(text) or "no words" in refusal(text)


def test_half_a_character_is_refused() -> None:
    assert "half a character" in refusal("Speaker 0: a\ud800")
    assert "half a character" in refusal("a\udcff", plain=True)


def test_messages_show_no_control_characters() -> None:
    assert "\x1b" not in refusal("\x1b[2Jhello")


def test_a_turn_from_json_is_one_line() -> None:
    assert check_said(" Hello\n there. ", "turn 1") == "Hello there."
    assert parse_script("Speaker 0: Hello there.", "x") == (Turn(0, check_said("Hello there.", "turn 1")),)


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        ("[S1] Hello.", "Speaker 1: Hello."),
        ("[S1]: Hello.", "Speaker 1: Hello."),
        ("<S2> Hello.", "Speaker 2: Hello."),
        ("speaker 0 - Hello.", "Speaker 0: Hello."),
        ("speaker 0 – Hello.", "Speaker 0: Hello."),
        ("SPEAKER_00: Hello.", "Speaker 0: Hello."),
        ("[1]: Hello.", "Speaker 1: Hello."),
        ("A: Hello.\nB: Hi.\nA: Bye.", "Speaker 0: Hello.\nSpeaker 1: Hi.\nSpeaker 0: Bye."),
        ("Speaker 1: Hello! Speaker 2: Good evening.", "Speaker 1: Hello!\nSpeaker 2: Good evening."),
        ("[Anna]: Hello.", "Speaker 0: Hello."),
        ("Hello there.", "Speaker 0: Hello there."),
        ("10:30 is late.", "Speaker 0: 10:30 is late."),
        ("I - well, no.", "Speaker 0: I - well, no."),
        ("7 days are left.", "Speaker 0: 7 days are left."),
        ("Anna: Hello.", None),
        ("Speaker 0: ", None),
        ("", None),
    ],
)
def test_a_script_is_corrected_where_it_is_certain(text: str, corrected: str | None) -> None:
    assert corrected_script(text) == corrected
    if corrected is not None:
        parse_script(corrected, "here")


@pytest.mark.parametrize(
    "piece",
    [
        "x",
        "é",
        "-",
        "- ",
        " \u3000",
        "*_",
        "a.",
        "a'",
        "[",
        "(",
        "Speaker ",
        "speaker_",
        "1",
        "[1",
        r"\nA",
        r"\n",
        "a:\n",
        "A: \n",
    ],
)
def test_no_text_takes_long(piece: str) -> None:
    """A hundred thousand characters: what grows with their square would take minutes."""
    began = time.process_time()
    for text in (piece * (100_000 // len(piece)), "é" + piece * (100_000 // len(piece)) + "é"):
        for plain in (False, True):
            with suppress(DataError):
                parse_script(text, "x:1", default_speaker=plain)
            with suppress(DataError):
                parse_script("Speaker 0: " + text, "x:1", default_speaker=plain)
    assert time.process_time() - began < 4
