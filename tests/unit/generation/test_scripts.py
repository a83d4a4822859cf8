"""Every form in which a script may come, and what is said about those that are none."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vibevoice_finetune.audio.source import AudioError, AudioSource, load_audio, parse_audio
from vibevoice_finetune.data.script import Turn
from vibevoice_finetune.errors import ArgumentError, DataError
from vibevoice_finetune.generation.scripts import read_scripts, script_from_text

HELLO = Turn(0, "Hello there.")
DIALOGUE = (Turn(0, "Hi."), Turn(1, "Yes?"), Turn(0, "No."))
TURNS = [{"speaker": 3, "text": "Hi."}, {"speaker": 7, "text": " Yes? "}, {"speaker": 3, "text": "No."}]


def voice(name: str) -> AudioSource:
    return parse_audio(np.linspace(-0.5, 0.5, 100, dtype=np.float32), None, name)


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("Hello there.", (HELLO,)),
        ("Hello\nthere.", (HELLO,)),
        ("Speaker 4: Hello there.", (HELLO,)),
        ("Speaker 3: Hi.\nspeaker 7 : Yes?\n\nSpeaker 3: No.", DIALOGUE),
    ],
)
def test_text_and_text_files(tmp_path: Path, text: str, turns: tuple[Turn, ...]) -> None:
    assert script_from_text(text).turns == turns
    (script,) = read_scripts(write(tmp_path / "script.txt", "\ufeff" + text))
    assert script.turns == turns
    assert script.where == "script.txt"
    assert script.voices == ()


def test_json_of_turns(tmp_path: Path) -> None:
    (script,) = read_scripts(write(tmp_path / "dialogue.JSON", TURNS))
    assert script.turns == DIALOGUE


def test_a_turn_of_several_lines_is_one_turn(tmp_path: Path) -> None:
    """A line break within a text starts no new line of the script."""
    (script,) = read_scripts(write(tmp_path / "a.json", [{"speaker": 0, "text": "Hello\nAnna: there."}]))
    assert script.turns == (Turn(0, "Hello Anna: there."),)


@pytest.mark.parametrize("text", ["Hello\nSpeaker 1: there.", "[2]: there.", "SPEAKER_01: there."])
def test_a_label_inside_a_turn_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"^a\.json: turn 1: the label .* would be read aloud"):
        read_scripts(write(tmp_path / "a.json", [{"speaker": 0, "text": text}]))


def test_a_backslash_in_a_path_is_kept() -> None:
    assert script_from_text("Open C:\\new folder.").turns == (Turn(0, "Open C:\\new folder."),)


def test_json_with_voices_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    for name in ("anna", "ben"):
        soundfile.write(tmp_path / "voices" / f"{name}.wav", np.linspace(-0.5, 0.5, 100), 24_000)
    content = {"script": TURNS, "voices": ["voices/anna.wav", "voices/ben.wav"]}
    (script,) = read_scripts(write(tmp_path / "a.json", content), [voice("other")])
    assert [source.path for source in script.voices] == [tmp_path / "voices/anna.wav", tmp_path / "voices/ben.wav"]
    assert len(load_audio(script.voices[0])) == 100


def test_several_scripts_in_a_file(tmp_path: Path) -> None:
    content = [{"script": "Hello there."}, {"script": TURNS, "voices": []}, {"script": "Speaker 1: Hello there."}]
    given = voice("given")
    first, second, third = read_scripts(write(tmp_path / "a.json", content), [given])
    assert first.turns == third.turns == (HELLO,)
    assert second.turns == DIALOGUE
    assert (first.voices, second.voices, third.voices) == ((given,), (), (given,))
    assert [script.where for script in (first, second, third)] == ["a.json[0]", "a.json[1]", "a.json[2]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a.json: is not JSON"),
        ({}, "a.json: holds a JSON dict; expected a list of"),
        (3, "a.json: holds a JSON int; expected a list of"),
        ([], "a.json: holds no turns"),
        ("[3]", "a.json: turn 1 is 3; expected"),
        (
            [*TURNS, {"speaker": "Anna", "text": "Hi."}],
            'a.json: turn 4 is {"speaker": "Anna", "text": "Hi."}; expected',
        ),
        ([{"speaker": True, "text": "Hi."}], "a.json: turn 1 is"),
        ([{"speaker": 1, "text": "Hi.", "mood": "glad"}], "a.json: turn 1 is"),
        ([{"speaker": -1, "text": "Hi."}], 'a.json: turn 1 is {"speaker": -1'),
        ([{"speaker": 1, "text": " "}], "a.json: turn 1 has a speaker but no words"),
        ([{"script": "Hi."}, {"speaker": 1, "text": "Hi."}], "a.json: turn 1 is"),
        ({"script": "Hi.", "voice": "a.wav"}, 'a.json: has the unknown key "voice"'),
        ({"script": "Hi.", "voices": "a.wav"}, 'a.json: "voices" is a JSON str; expected a list'),
        ([{"script": "Hi."}, {"script": 5}], "a.json[1]: holds a JSON int"),
    ],
)
def test_json_that_is_no_script(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(DataError) as raised:
        read_scripts(write(tmp_path / "a.json", content))
    assert str(raised.value).startswith(message)


def test_a_voice_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [{"script": "Hi."}, {"script": "Hi.", "voices": ["missing.wav"]}])
    with pytest.raises(AudioError, match=r"^a\.json\[1\]: voice 1: .*missing\.wav does not exist"):
        read_scripts(path)


@pytest.mark.parametrize(("text", "voices"), [("Hi.", 2), ("Speaker 1: Hi.\nSpeaker 2: Yes?", 1)])
def test_voices_that_do_not_fit_the_speakers(text: str, voices: int) -> None:
    with pytest.raises(DataError, match=rf"^here: {voices} voice prompts? for"):
        script_from_text(text, [voice(str(number)) for number in range(voices)], "here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.docx", r"is not a \.txt or \.json file"),
        ("a.txt", "cannot be read .No such file"),
        ("b.txt", "is UTF-16"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "a.docx").touch()
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match=message):
        read_scripts(tmp_path / name)
