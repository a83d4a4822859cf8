"""Who says what: from the text of a row or of a `generate` command to turns.

A script has a line for each turn, ``Speaker N: text``. The same rules hold for training and for generation, so that a
text means one thing:

- ``\\n`` and ``\\r\\n`` end a line, nothing else does. A backslash and an n are a line break too where they stand
  between words, as in a text that was escaped twice, but not in a path (``C:\\new``).
- A line without a tag belongs to the turn above it.
- Invisible marks before the tag and full-width letters, digits and colons are accepted. Labels in another form
  (``[1]:``, ``SPEAKER_00:``) are refused with the line as it should be: they would be read aloud.
- A tag inside a line is refused: each turn has a line of its own.

Generation also takes plain text without any tag, which Speaker 0 says. There ``Note: read this first.`` is prose; lines
are taken for a dialogue of names only if all of several lines begin with a name, or names come back.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vibevoice_finetune.errors import DataError, shown

_MARKS = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0e\ufe0f\ufeff"
"""Characters that show nothing: soft hyphen, zero-width blanks, marks of writing direction, byte order mark."""

_BLANKS = "".join(letter for letter in map(chr, range(0x10000)) if re.match(rf"[\s{_MARKS}]", letter))

_GAP = rf"[\s{_MARKS}]*"
_COLON = "[:\uff1a\ufe55]"
_SPEAKER = "".join(f"[{letter}{chr(ord(letter) + 0xFEE0)}]" for letter in "speaker")  # full-width letters, too
_TAG = rf"{_SPEAKER}{_GAP}(?P<number>\d{{1,9}}){_GAP}{_COLON}"
_TAG_HERE = re.compile(_GAP + _TAG, re.IGNORECASE)
TAG_AT_START = _GAP + _TAG.replace("?P<number>", "?:")
SPEAKER_LINE = re.compile(rf"{_GAP}{_TAG}(?P<said>.*)", re.IGNORECASE | re.DOTALL)

_OPEN, _CLOSE = "[\\[(<{\uff3b\uff08\u3010]", "[\\])>}\uff3d\uff09\u3011]"  # full-width ones, too
_WORD = rf"(?:{_SPEAKER}|spkr|spk|voice|person|talker)"
_ANYWHERE = re.compile(
    rf"(?<!\w)(?:{_TAG}"
    rf"|(?:{_SPEAKER}|spkr|spk)[\s_#-]*(?P<numbered>\d+)[\s*_]*{_COLON}"  # SPEAKER_00:  Speaker #1:  **Speaker 1**:
    rf"|{_OPEN}\s*(?:{_WORD}[\s_#-]*|S)(?P<bracketed>\d+)\s*{_CLOSE}{_GAP}{_COLON}?"  # [S1]  [SPEAKER_00]  <speaker 1>
    rf"|[\[\uff3b\u3010]\s*(?P<bare>\d{{1,4}})\s*[\]\uff3d\u3011]{_GAP}{_COLON})",  # [1]:
    re.IGNORECASE,
)
"""Labels that are nothing else, wherever they stand."""

_AT_START = re.compile(
    rf"{_GAP}[-*_>#\"“\s]*(?:"
    rf"{_ANYWHERE.pattern.replace('?P<', '?P<a_')}"
    rf"|{_WORD}[\s_#-]*\(?(?P<dashed>\d+)\)?\s*(?:[-–—|>.)]+(?=\s|$)|=>|{_COLON})"  # speaker 0 -  Voice 1:
    rf"|{_WORD}\s+(?P<letter>[A-Z]){_GAP}{_COLON}"  # Speaker A:
    rf"|{_SPEAKER}{_GAP}{_COLON}"  # Speaker:
    rf"|S(?P<short>\d{{1,4}}){_GAP}{_COLON}"  # S1:
    rf"|{_OPEN}(?P<alone>\d{{1,4}}){_CLOSE}{_GAP}(?:{_COLON}|[-–—](?=\s))"  # (1):  [1] -
    rf"|\[(?P<name>[^\W\d_][^\[\]:\n]{{0,30}})\]{_GAP}{_COLON}"  # [Anna]:
    rf")[*_\"”]*{_GAP}{_COLON}?{_GAP}",
    re.IGNORECASE,
)
"""Labels that are nothing else at the start of a line."""

_NAME = re.compile(
    rf"{_GAP}(?:"
    r"(?P<name>[^\W_]{1,30}(?:(?:['’\-\u00a0 ]|\.[ \u00a0]?)[^\W_]{1,30}){0,2}\.?)[ \u00a0]?"
    r"(?::(?=\s|$)|[\uff1a\ufe55])"
    r"|\[(?P<bracket>[^\[\]\n]{1,30})\]"
    rf"){_GAP}"
)
"""One to three words and a colon, or a word in brackets: a name, or the beginning of a sentence."""

_PROSE = re.compile(
    "notes?|warning|caution|attention|important|tip|hint|examples?|remember|reminder|update|quote|first|second|third|"
    "finally|also|summary|conclusion|abstract|introduction|title|subject|results?|step",
    re.IGNORECASE,
)
"""Words before a colon that are spoken."""

LONGEST_WORD = 300
_HALF = re.compile("[\ud800-\udfff]")
_ESCAPED_BREAK = re.compile(r"\\+(?:r\\+)?n")
_PATH = re.compile(r"[\"'(\[“‘]*(?:[A-Za-z]:[\\/]|\\\\\w|\.{1,2}\\|~|%\w)")


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says before the next: the speaker's number (0, 1, … after renumbering) and the words."""

    speaker: int
    text: str


def parse_script(text: str, where: str, *, default_speaker: bool = False) -> tuple[Turn, ...]:
    """Split a script into turns, speakers renumbered 0, 1, 2 … in ascending order of the numbers given.

    Args:
        text: one ``Speaker N: text`` a line; case and spaces around the colon do not matter, blank lines are skipped.
        where: what to name in an error, as in ``train.jsonl:17``.
        default_speaker: plain text without any tag is one turn of Speaker 0 (generation), not an error (training).

    Raises:
        DataError: nothing is said, the first line has no tag, or a label or tag stands where it would be read aloud.

    >>> parse_script("Speaker 2: Hi.\\nspeaker 1 :  Hello there. ", "here")
    (Turn(speaker=1, text='Hi.'), Turn(speaker=0, text='Hello there.'))
    >>> parse_script("Speaker 1: Hello.\\nIt has been long.", "here")
    (Turn(speaker=0, text='Hello. It has been long.'),)
    """
    lines = [line for line in map(_trimmed, _with_breaks(text, where).split("\n")) if line]
    if not lines:
        raise DataError(f'{where}: the text is empty; write what is said, as in "Speaker 0: Hello there."')
    if default_speaker and not any(map(SPEAKER_LINE.match, lines)):
        return (Turn(0, _plain_text(lines, where)),)
    turns: list[tuple[int, str]] = []
    for line in lines:
        match = SPEAKER_LINE.match(line)
        said = line if match is None else _trimmed(match["said"])
        if not said:
            raise DataError(
                f'{where}: "{shorten(line)}" has a speaker but no words; write them after the colon or remove the line.'
            )
        if match is None:
            _check_continuation(line, lines, bool(turns), where)
        _check_no_label_inside(said, line, lines, where)
        if match is not None:
            turns.append((int(match["number"]), said))
        else:
            turns[-1] = (turns[-1][0], f"{turns[-1][1]} {said}")
    numbers = sorted({number for number, _ in turns})
    return tuple(Turn(numbers.index(number), said) for number, said in turns)


def corrected_script(text: str) -> str | None:
    r"""The script with its labels written as ``Speaker N:``, a turn a line; what nobody labelled is said by Speaker 0.

    Returns:
        None if it cannot be told who speaks (``Anna: Hello.`` may be read aloud or not), or somebody says nothing.

    >>> corrected_script("[S1] Hello. [S2] Good evening.")
    'Speaker 1: Hello.\nSpeaker 2: Good evening.'
    >>> corrected_script("It has been long.")
    'Speaker 0: It has been long.'
    """
    try:
        lines = [line for line in map(_trimmed, _with_breaks(text, "").split("\n")) if line]
        for line in lines:
            name = None if SPEAKER_LINE.match(line) or _AT_START.match(line) else _name(line)
            if name is not None and len(name) > 1:
                return None
        corrected = _corrected(lines)
        if not SPEAKER_LINE.match(corrected):
            corrected = f"Speaker 0: {corrected}"
        parse_script(corrected, "")
    except DataError:
        return None
    return corrected


def check_said(text: str, where: str) -> str:
    """The words of one turn, as a script in JSON gives them: on one line, without labels inside.

    Raises:
        DataError: nothing is said, or a label would be read aloud.
    """
    line = " ".join(_trimmed(_with_breaks(text, where)).split())
    if not line:
        raise DataError(f"{where} has a speaker but no words; write them or remove the turn.")
    found = _AT_START.match(line) or _ANYWHERE.search(line)
    if found is not None:
        raise DataError(
            f'{where}: the label "{shorten(found[0].strip())}" in "{shorten(line)}" would be read aloud; remove it, or '
            "make it a turn of its own."
        )
    return line


def num_speakers(turns: Sequence[Turn]) -> int:
    """How many speakers a parsed script has."""
    return 1 + max(turn.speaker for turn in turns)


def check_voice_count(num_prompts: int, speakers: int, where: str) -> None:
    """Raise DataError unless there is no voice prompt or one for each speaker."""
    if num_prompts not in (0, speakers):
        raise DataError(
            f"{where}: {num_prompts} voice prompt{'s' if num_prompts != 1 else ''} for {speakers} "
            f"speaker{'s' if speakers > 1 else ''}; give one for each speaker, in ascending order of their numbers, "
            "or none."
        )


def shorten(line: str, limit: int = 60) -> str:
    """The line as a message can show it: printable, and cut with an ellipsis."""
    cut = line if len(line) <= limit else line[: limit - 1] + "…"
    return shown(cut.replace("\n", "\\n"))


def _trimmed(line: str) -> str:
    """Without blanks and invisible marks at both ends."""
    return line.strip() if line.isascii() else line.strip(_BLANKS)


def _with_breaks(text: str, where: str) -> str:
    """The text with real line breaks where a backslash and an n stand for one.

    Raises:
        DataError: they may be a line break or not.
    """
    if not text.isascii() and _HALF.search(text):
        raise DataError(f"{where}: the text holds half a character (a lone surrogate); write that place again.")
    text = text.replace("\r\n", "\n")
    if "\\" not in text:
        return text
    parts, end = [], 0
    for match in _ESCAPED_BREAK.finditer(text):
        low = max(0, match.start() - LONGEST_WORD)
        word_start = max(low, *(text.rfind(blank, low, match.start()) + 1 for blank in " \t\n"))
        if not _TAG_HERE.match(text, match.end()):
            if _PATH.match(text, word_start):
                continue
            if text[match.end() : match.end() + 1].islower():
                raise DataError(
                    f'{where}: a backslash and an n in "{shorten(text[word_start:])}" may be a line break or not; '
                    "write a space or a real line break for one, and words for what is to be said."
                )
        parts.append(text[end : match.start()])
        end = match.end()
    return "\n".join([*parts, text[end:]])


def _plain_text(lines: list[str], where: str) -> str:
    """Text without tags as one turn."""
    for line in lines:
        if _AT_START.match(line) or _ANYWHERE.search(line):
            _refuse_label(line, lines, where)
    names = [_name(line) for line in lines]
    found = Counter(name for name in names if name)
    comes_back = len(found) > 1 and max(found.values()) > 1
    if len(lines) > 1 and (all(names) or comes_back):
        line = next(line for line, name in zip(lines, names, strict=True) if name)
        raise DataError(
            f'{where}: the lines look like a dialogue whose names ("{shorten(line, 30)}") would be read aloud; write '
            f'"{shorten(_corrected(lines[:4]), 120)}", or put "Speaker 0: " before the text to have it read as it is.'
        )
    return " ".join(lines)


def _check_continuation(line: str, lines: list[str], has_turn_above: bool, where: str) -> None:
    """A line without a tag needs a turn above it, and must not begin with a label."""
    if _AT_START.match(line):
        _refuse_label(line, lines, where)
    name = _name(line)
    if name is not None:
        spoken = f'"Speaker 0: {shorten(line)}"' if not has_turn_above else "on the same line as the words before it"
        raise DataError(
            f'{where}: no speaker tag in "{shorten(line)}"; write "{shorten(_corrected_line(line, lines))}" if '
            f'"{name}" is a label, or, if it is spoken, write it {spoken}.'
        )
    if not has_turn_above:
        tagged = next((match for match in map(SPEAKER_LINE.match, lines) if match), None)
        number = int(tagged["number"]) if tagged else 0
        raise DataError(
            f'{where}: no speaker tag in "{shorten(line)}"; write "Speaker {number}: {shorten(line)}"'
            f"{' if that speaker says it.' if tagged else ''}"
        )


def _check_no_label_inside(said: str, line: str, lines: list[str], where: str) -> None:
    inside = _ANYWHERE.search(said)
    if inside is None:
        return
    if inside.start() == 0:
        _refuse_label(line, lines, where)
    raise DataError(
        f'{where}: "{shorten(inside[0])}" stands inside the line "{shorten(line)}"; each turn needs a line of its own; '
        f'write "{shorten(_corrected([line]), 160)}".'
    )


def _refuse_label(line: str, lines: list[str], where: str) -> None:
    raise DataError(
        f'{where}: "{shorten(line)}" has a label that would be read aloud; expected "Speaker N: " at the start of a '
        f'line; write "{shorten(_corrected_line(line, lines), 160)}".'
    )


def _corrected(lines: list[str]) -> str:
    """The lines as they should be."""
    return "\n".join(_corrected_line(line, lines) for line in lines)


def _corrected_line(line: str, lines: list[str]) -> str:
    """A line with its labels written as ``Speaker N:``, each on a line; names are numbered as `lines` mention them."""
    match = SPEAKER_LINE.match(line)
    if match is not None and not _AT_START.match(match["said"]):
        label, rest = f"Speaker {int(match['number'])}", match["said"]
    else:
        start = _AT_START.match(match["said"] if match else line) or _NAME.match(line)
        rest = line if start is None else start.string[start.end() :]
        label = "" if start is None else f"Speaker {_number_of(start, lines)}"
    pieces, end = [], 0
    for inside in _ANYWHERE.finditer(rest):
        pieces.append(f"{label}: {_trimmed(rest[end : inside.start()])}" if label else _trimmed(rest[: inside.start()]))
        label, end = f"Speaker {_number_of(inside, lines)}", inside.end()
    pieces.append(f"{label}: {_trimmed(rest[end:])}" if label else _trimmed(rest[end:]))
    return "\n".join(piece for piece in pieces if piece)


def _number_of(label: re.Match[str], lines: list[str]) -> int:
    """The number that a label states, else the place of its name among the names."""
    stated = next((value for value in label.groupdict().values() if value and value.isdigit()), None)
    if stated is not None:
        return int(stated[:9])
    letter = label.groupdict().get("letter")
    if letter:
        return ord(letter.upper()) - ord("A")
    taken = {int(match["number"]) for match in map(SPEAKER_LINE.match, lines) if match}
    names = list(dict.fromkeys(name for line in lines if not SPEAKER_LINE.match(line) and (name := _name(line))))
    free = [number for number in range(len(names) + len(taken) + 1) if number not in taken]
    name = label.groupdict().get("name") or label.groupdict().get("bracket")
    return free[names.index(name) if name in names else 0]


def _name(line: str) -> str | None:
    """The name before the line's first colon, if the line can be a turn of a dialogue of names."""
    match = _AT_START.match(line)
    if match is not None:
        return match["name"] or match[0].strip()
    match = _NAME.match(line)
    name = "" if match is None else match["name"] or match["bracket"].strip()
    if not name or len(name) > 30 or _PROSE.fullmatch(name) or any(word[0].islower() for word in name.split()):
        return None
    return name
