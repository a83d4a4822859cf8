"""What `validate` finds: kinds with stable names, and one finding per row and kind.

A finding says where, what was found and what to do, as every message of this package does. Kinds are in the order in
which they are reported: what `train` refuses first, what it merely learns from after that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """An error is what `train` refuses or can learn nothing from; a warning is what it would learn."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        name: stable, for scripts and tests.
        severity: error or warning.
        title: what such rows have in common.
        advice: what to do.
    """

    name: str
    severity: Severity
    title: str
    advice: str


@dataclass(frozen=True)
class Finding:
    """One fault of one row.

    Attributes:
        kind: the name of a `Kind`.
        where: file and line, as in ``train.jsonl:17``; where a row holds several recordings, which of them.
        found: what was found, with its figure.
        weight: how bad it is among its kind; the worst stand first.
        fixed: the row's text as it should be, if that is known.
    """

    kind: str
    where: str
    found: str
    weight: float = 0.0
    fixed: str | None = None

    @property
    def row(self) -> str:
        """File and line alone.

        >>> Finding("noise", "train.jsonl:17: voice_prompts[0]", "…").row
        'train.jsonl:17'
        """
        return self.where.split(": ")[0]


_E, _W = Severity.ERROR, Severity.WARNING

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bad-row", _E, "the row cannot be read", "correct the line, or remove it"),
        Kind("speaker-tag", _E, "no speaker tag, or one in another spelling", 'write "Speaker N: " before each turn'),
        Kind("empty-turn", _E, "a turn without words", "add the words or remove the line"),
        Kind("control-token", _E, "a control token of the model inside the text", "remove it from the text"),
        Kind(
            "prompt-count",
            _E,
            "voice prompts and speakers differ in number",
            "give one prompt for each speaker or none",
        ),
        Kind("missing-file", _E, "the audio is not there or cannot be opened", "correct the path, or remove the row"),
        Kind(
            "unreadable-audio", _E, "the audio cannot be decoded", "copy or convert the file again, or remove the row"
        ),
        Kind("silent", _E, "there is no sound", "record again, or remove the row"),
        Kind("channels-cancel", _E, "the channels cancel each other", "invert one channel, or keep only one"),
        Kind("too-short", _E, "shorter than one frame", "remove the row or join it with its neighbour"),
        Kind("too-long", _E, "longer than any model's context", "cut the recording at pauses"),
        Kind("leaked-audio", _W, "the same recording in training and validation", "remove it from one of them"),
        Kind("leaked-text", _W, "the same text in training and validation", "remove it from one of them"),
        Kind("wrong-text", _W, "the recording says something else", "correct the text, or remove the row"),
        Kind(
            "speaking-rate", _W, "text and speech do not fit in length", "listen: the text may belong to another clip"
        ),
        Kind("other-voice", _W, "a voice unlike the others of the same speaker", "correct the speaker's name"),
        Kind("prompt-voice", _W, "a voice prompt of another voice", "give a prompt of the speaker who is heard"),
        Kind("two-people", _W, "two channels with different people", "give each channel a row of its own"),
        Kind("music", _W, "music or tones under the voice", "leave the row out, or take a source without music"),
        Kind("noise", _W, "noise in the pauses", "leave the row out, or record again nearer to the microphone"),
        Kind("reverberation", _W, "the room echoes", "leave the row out, or record in a room with soft surfaces"),
        Kind("clipped", _W, "peaks are cut off", "record again at a lower level, or remove the row"),
        Kind("narrow-band", _W, "nothing above a frequency far below 12 kHz", "use the original recording"),
        Kind("cut-start", _W, "begins inside a word", "cut again, in the pause before the word"),
        Kind("cut-end", _W, "ends inside a word", "cut again, in the pause after the word"),
        Kind("leading-silence", _W, "long silence before the first word", "cut it down to 0.1 s"),
        Kind("trailing-silence", _W, "long silence after the last word", "cut it down to 0.3 s"),
        Kind("short-clip", _W, "very short", "join it with its neighbour"),
        Kind("long-clip", _W, "very long", "cut it at pauses into clips of 3 to 20 s"),
        Kind("level", _W, "much louder or quieter than the set", "bring it to the level of the others"),
        Kind("dc-offset", _W, "the waveform does not lie about zero", "filter below 20 Hz"),
        Kind("same-audio", _W, "the same recording twice", "keep one of the rows"),
        Kind("same-text", _W, "the same text twice from one speaker", "keep one, unless both takes are wanted"),
        Kind("outside-link", _W, "a symbolic link out of the data's folder", "copy the file into the folder"),
        Kind("markup", _W, "markup in the text", "write only what is said"),
        Kind("digits", _W, "digits in the text", "write numbers as they are spoken"),
        Kind("abbreviation", _W, "abbreviations and signs in the text", "write them out as they are spoken"),
        Kind(
            "foreign-script", _W, "letters of another script than the other rows", "check the letters, or the language"
        ),
        Kind("odd-character", _W, "characters that the language does not use", "check the text's encoding"),
    )
}
"""In the order of the report."""

_ORDER = {name: place for place, name in enumerate(KINDS)}


def by_kind(findings: Iterable[Finding]) -> dict[Kind, list[Finding]]:
    """Findings grouped by kind, in the order of the report; in a group the worst first, then in the rows' order."""
    groups: dict[Kind, list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: _ORDER[finding.kind]):
        groups.setdefault(KINDS[finding.kind], []).append(finding)
    return {kind: sorted(group, key=lambda finding: -finding.weight) for kind, group in groups.items()}


def counted(count: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "clip"), counted(1_000, "clip")
    ('1 clip', '1,000 clips')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
