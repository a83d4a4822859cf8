"""The texts to speak, from a command line or a file: scripts with their voices.

Why: people have a sentence, a text file, or a JSON file with turns and reference recordings; generation wants one form.

In: a text, a `.txt` or a `.json` file. Out: a `Script` for each piece of audio to be made. The forms of JSON:

- ``[{"speaker": 1, "text": "Hello."}, {"speaker": 2, "text": "Hi."}]``: one script, turn by turn;
- ``{"script": …, "voices": ["anna.wav", "ben.wav"]}``: one script with its own voices; the script is such a list of
  turns, or a string with a ``Speaker N: text`` a line;
- ``[{"script": …}, {"script": …}]``: several scripts.

Paths of voices start at the file's folder. As everywhere, voices belong to the speakers in ascending order of their
numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibevoice_finetune.audio.source import AudioSource, parse_audio
from vibevoice_finetune.data.script import Turn, check_said, check_voice_count, num_speakers, parse_script
from vibevoice_finetune.errors import ArgumentError, DataError, shown
from vibevoice_finetune.files.names import near_miss

SUFFIXES = (".txt", ".json")
MAX_BYTES = 50_000_000
"""A book has one million."""


@dataclass(frozen=True, eq=False)
class Script:
    """One piece of audio to be made.

    Attributes:
        turns: who says what, speakers numbered 0, 1, 2 …
        voices: a recording of each speaker, in this order; empty for none.
        where: what to name in an error, as in ``dialogue.json[2]``.
    """

    turns: tuple[Turn, ...]
    voices: tuple[AudioSource, ...]
    where: str

    def __post_init__(self) -> None:
        check_voice_count(len(self.voices), num_speakers(self.turns), self.where)


def script_from_text(text: str, voices: Sequence[AudioSource] = (), where: str = "the text") -> Script:
    """A script as it is typed; plain text without any speaker tag is Speaker 0.

    Raises:
        DataError: nothing is said, a line has no speaker, or voices and speakers differ in number.
    """
    return Script(parse_script(text, where, default_speaker=True), tuple(voices), where)


def read_scripts(path: Path, voices: Sequence[AudioSource] = (), flag: str = "--script") -> list[Script]:
    """The scripts of a file.

    Args:
        path: a `.txt`, whose whole text is one script, or a `.json`.
        voices: for scripts that name none of their own.
        flag: what names the file on the command line.

    Raises:
        ArgumentError: another kind of file, or it cannot be read.
        DataError: its content is not a script.
    """
    name = shown(path.name)
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            f"{flag} {shown(path)}: is not a {' or '.join(SUFFIXES)} file; write the script as one of them."
        )
    text = _read_text(path, flag)
    if path.suffix.lower() == ".txt":
        return [script_from_text(text, voices, name)]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: is not JSON ({shown(error)}); correct the file.") from error
    if not (isinstance(value, list) and value and all(_is_script(item) for item in value)):
        return [_script(value, path.parent, voices, name)]
    return [_script(item, path.parent, voices, f"{name}[{index}]") for index, item in enumerate(value)]


def _read_text(path: Path, flag: str) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ArgumentError(f"{flag} {shown(path)}: is not a file; a text file is expected; name one.")
        if path.stat().st_size > MAX_BYTES:
            raise ArgumentError(
                f"{flag} {shown(path)}: has {path.stat().st_size:,} bytes; at most {MAX_BYTES:,} are expected; "
                "split it."
            )
        with path.open("rb") as file:
            content = file.read(MAX_BYTES)
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ArgumentError(f"{flag} {shown(path)}: is UTF-16; UTF-8 is expected; save it as UTF-8.")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        similar = near_miss(str(path)) if isinstance(error, FileNotFoundError) else None
        advice = f"did you mean {shown(similar)}?" if similar else "check the name and the file."
        raise ArgumentError(f"{flag} {shown(path)}: cannot be read ({said}); {advice}") from error


def _is_script(value: object) -> bool:
    return isinstance(value, Mapping) and "script" in value


def _script(value: Any, folder: Path, voices: Sequence[AudioSource], where: str) -> Script:
    if _is_script(value):
        unknown = value.keys() - {"script", "voices"}
        if unknown:
            raise DataError(f'{where}: has the unknown key "{shown(min(unknown))}"; expected "script" and "voices".')
        if "voices" in value:
            voices = _voices(value["voices"], folder, where)
        value = value["script"]
    if isinstance(value, str):
        return script_from_text(value, voices, where)
    if not isinstance(value, list):
        raise DataError(
            f'{where}: holds a JSON {type(value).__name__}; expected a list of {{"speaker": 1, "text": "…"}}, or '
            '{"script": …, "voices": […]}.'
        )
    if not value:
        raise DataError(f'{where}: holds no turns; expected a list of {{"speaker": 1, "text": "…"}}.')
    turns = [_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(value, start=1)]
    numbers = sorted({number for number, _ in turns})
    return Script(tuple(Turn(numbers.index(number), said) for number, said in turns), tuple(voices), where)


def _turn(turn: object, where: str) -> tuple[int, str]:
    match turn:
        case {"speaker": int(speaker), "text": str(text), **others} if (
            not others and not isinstance(speaker, bool) and speaker >= 0
        ):
            return speaker, check_said(text, where)
    raise DataError(
        f'{where} is {shown(json.dumps(turn, ensure_ascii=False), 80)}; expected {{"speaker": 1, "text": "…"}} and '
        "nothing else."
    )


def _voices(value: object, folder: Path, where: str) -> list[AudioSource]:
    if not isinstance(value, list):
        raise DataError(f'{where}: "voices" is a JSON {type(value).__name__}; expected a list of audio files.')
    return [parse_audio(voice, folder, f"{where}: voice {number}") for number, voice in enumerate(value, start=1)]
