"""What can be said of a script without its audio: tags, control tokens, markup, and how its words are written.

In come texts, out come findings. `check_script` looks at one row at a time, `check_letters` at a row among the others,
because which script and which characters a language uses is learned from the set itself.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from vibevoice_finetune.data.script import TAG_AT_START, corrected_script, parse_script, shorten
from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.validation.findings import Finding

CONTROL_TOKEN = re.compile(r"<\|[A-Za-z0-9_]{1,40}\|>")
MARKUP = re.compile(
    r"</?[A-Za-z][^<>\n]{0,80}>|&(?:#\d{1,7}|[A-Za-z]{2,8});|\[[^\]\n]{1,40}\]|\*[^*\n]{1,60}\*|`[^`\n]*`|https?://|\\[a-z]\b"
)
TAGS = re.compile(rf"(?:^|\\n){TAG_AT_START}", re.IGNORECASE | re.MULTILINE)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Control characters, but for those that end a line and the tab."""

DIGITS = re.compile(r"\d+(?:[.,:/]\d+)*")
ABBREVIATION = re.compile(
    r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|approx|Nr|bzw|usw|ca|evtl)\.|\b(?:e\.g|i\.e|z\.B|d\.h|u\.a|a\.m|p\.m)\b"
    r"|\b(?:km|kg|cm|mm|kHz|Hz|mph|km/h)\b|[%&@#+=€$£§°~^_|]",
)

SIGNS = frozenset("0123456789<>&[]*`%@#+=$~^_|\\/")
MAYBE_ABBREVIATION = re.compile(
    r"(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|approx|Nr|bzw|usw|ca|evtl)\.|e\.g|i\.e|z\.B|d\.h|u\.a|a\.m|p\.m|km|kg|cm|mm|Hz|mph"
)
"""Of what markup, digits and abbreviations begin with: without any, there is none. It begins with letters and not with
a border of words, which `re` searches for five times as fast."""

LINE_CHARACTERS = frozenset("\n\r\t")

RARE_SHARE = 0.005
ENOUGH_ROWS = 50
"""Which letters are usual is learned from the set; from fewer rows it cannot be."""

JOINERS = "\u200c\u200d"
"""Between letters of Persian, Hindi and others, and inside of pictures."""

MOJIBAKE = re.compile("\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]|\ufffd")
"""UTF-8 that was read as Latin-1 or Windows-1252, and what a decoder writes for bytes that it cannot read."""


def check_script(text: str, where: str) -> Iterator[Finding]:
    """Everything about one row's text: whether `train` takes it, and what it should not have in it."""
    if token := CONTROL_TOKEN.search(text):
        yield Finding("control-token", where, f'"{token[0]}" in "{shorten(text)}"')
        return
    try:
        parse_script(text, where)
    except DataError as error:
        yield _refused(text, where, error)
        return
    yield from check_words(text, where)


def _refused(text: str, where: str, error: DataError) -> Finding:
    fixed = corrected_script(text)
    if fixed is not None:
        return Finding("speaker-tag", where, f'"{shorten(text)}"; should be "{shorten(fixed, 200)}"', fixed=fixed)
    said = str(error).removeprefix(f"{where}: ")
    if "no words" in said or "is empty" in said:
        return Finding("empty-turn", where, said)
    return Finding("speaker-tag", where, said)


def check_words(text: str, where: str) -> Iterator[Finding]:
    """Whether a script holds what cannot be read aloud, or only in several ways; its tags are no part of that."""
    said = TAGS.sub("", text)
    if control := CONTROL.search(said):
        yield Finding("odd-character", where, f'"{shown(control[0])}" ({_name(control[0])}) in "{shorten(text)}"')
    if said.isascii() and not SIGNS & set(said):
        # Nine rows of ten end here: 5 µs instead of 12.
        if MAYBE_ABBREVIATION.search(said) and (short := ABBREVIATION.search(said)):
            yield Finding("abbreviation", where, f'"{short[0]}" in "{shorten(text)}"')
        return
    markup = MARKUP.search(said)
    if markup:
        yield Finding("markup", where, f'"{shorten(markup[0])}" in "{shorten(text)}"')
    if digits := DIGITS.search(said):
        yield Finding("digits", where, f'"{digits[0]}" in "{shorten(text)}"')
    short = None if markup else ABBREVIATION.search(said)
    if short:
        yield Finding("abbreviation", where, f'"{short[0]}" in "{shorten(text)}"')


def check_letters(texts: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    """Letters of another script than the rest of the set, and characters that hardly any other row has.

    A script counts as the set's own if at least 5 % of the rows use it. Characters are compared only in sets of 50 rows
    or more: letters beyond ASCII that fewer than 0.5 % of the rows have.

    Args:
        texts: (where, text) of all rows.
    """
    characters = [(where, text, frozenset() if _is_plain(text) else frozenset(text)) for where, text in texts]
    rows_with = Counter(character for _, _, found in characters for character in found if ord(character) > 127)
    scripts = Counter(script for _, text, found in characters for script in _scripts(text, found))
    usual = {script for script, count in scripts.items() if count >= 0.05 * len(texts)}
    for where, text, found in characters:
        if not found:
            continue
        foreign = [character for character in text if _script(character) not in usual and _script(character)]
        if usual and foreign:
            name = _script(foreign[0]).capitalize()
            yield Finding("foreign-script", where, f'{name} "{"".join(foreign)[:20]}" in "{shorten(text)}"')
            continue
        if odd := _odd(text, rows_with, len(texts)):
            yield Finding("odd-character", where, f'"{shown(odd)}" ({_name(odd)}) in "{shorten(text)}"')


def _odd(text: str, rows_with: Mapping[str, int], total: int) -> str | None:
    if broken := MOJIBAKE.search(text):
        return broken[0]
    for character in TAGS.sub("", text):  # invisible marks before a tag are no part of the words
        if character in LINE_CHARACTERS or (character.isascii() and character.isprintable()):
            continue
        category = unicodedata.category(character)
        if category in {"Co", "Cn", "Cc", "So", "Sm"}:  # private use, unassigned, control, pictures
            return character
        if category == "Cf" and character not in JOINERS:  # marks of writing direction, soft hyphens
            return character
        if category[0] == "L" and total >= ENOUGH_ROWS and rows_with[character] < max(2, RARE_SHARE * total):
            return character
    return None


def _is_plain(text: str) -> bool:
    """Whether a text is of printable ASCII: most English ones are."""
    return text.isascii() and text.replace("\n", "").isprintable()


def _scripts(text: str, found: frozenset[str]) -> set[str]:
    return {script for script in map(_script, found or "A") if script} if text else set()


@cache
def _script(character: str) -> str:
    """LATIN, CYRILLIC, HIRAGANA, CJK … by the character's name; empty for what is no letter."""
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "").split(" ")[0]
    return "LATIN" if name in {"FEMININE", "MASCULINE", "MODIFIER", "FULLWIDTH"} else name


def _name(characters: str) -> str:
    return ", ".join(unicodedata.name(character, f"U+{ord(character):04X}").lower() for character in characters[:2])


def spoken_length(text: str) -> int:
    """Letters and digits of a script, tags left out.

    >>> spoken_length("Speaker 0: Well, no.")
    6
    """
    return sum(character.isalnum() for character in TAGS.sub("", text))


def normalised(text: str) -> str:
    """A script as a listener would compare it: without tags, case, signs and spaces."""
    bare = TAGS.sub(" ", text)
    return " ".join(re.findall(r"\w+", bare.casefold()))
