"""What `prepare` works on: recordings, what is known of them, and the clips that they become.

A recording is the unit of work: it is cut, transcribed and written by one worker, and nothing of it is kept in memory
when the next begins.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Passage:
    """A stretch of a recording with its text, as subtitles, labels and TextGrids have them.

    Attributes:
        start_sec: from the beginning of the recording.
        end_sec: likewise.
        text: what is said, without the speaker's name.
        speaker: who says it, if the source names speakers.
    """

    start_sec: float
    end_sec: float
    text: str
    speaker: str | None = None


@dataclass(frozen=True)
class Recording:
    """One audio or video file of the source and what the source says of it.

    Attributes:
        name: tells it apart in the source and in what is written: a relative path without suffix, made of letters
            that every file system takes.
        path: of the file.
        group: recordings of one group stay on one side of the split into training and validation, such as chapters of
            a book, or the speaker of a corpus in which all speakers read the same sentences.
        speaker: who speaks, if it is one person and known.
        text: all that is said, if the source has it without times.
        passages: what is said when, if the source has it.
        is_clip: whether it is one clip already: a corpus of sentences rather than a long recording.
    """

    name: str
    path: Path
    group: str
    speaker: str | None = None
    text: str | None = None
    passages: tuple[Passage, ...] = ()
    is_clip: bool = False


@dataclass(frozen=True)
class Ignored:
    """A file or line of the source that is not used, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What was found.

    Attributes:
        kind: the format by its name, such as "ljspeech".
        recordings: in the order of their names.
        ignored: what was found and not used.
    """

    kind: str
    recordings: tuple[Recording, ...]
    ignored: tuple[Ignored, ...] = ()

    def summary(self) -> str:
        """One line for the user.

        >>> Source("recordings", (Recording("a", Path("a.wav"), "a"),)).summary()
        'found: 1 long recording, no transcripts'
        """
        count = len(self.recordings)
        clips = sum(recording.is_clip for recording in self.recordings)
        timed = sum(bool(recording.passages) for recording in self.recordings)
        with_text = sum(recording.text is not None for recording in self.recordings)
        speakers = {recording.speaker for recording in self.recordings if recording.speaker is not None}
        speakers |= {p.speaker for recording in self.recordings for p in recording.passages if p.speaker is not None}
        what = "clip" if clips == count and count else "long recording" if not clips else "recording"
        texts = [f"{timed:,} with timed text"] if timed else []
        texts += [f"{with_text:,} with a transcript"] if with_text else []
        known = " and ".join(texts) if texts else "no transcripts"
        people = f", {len(speakers)} speaker{'s' if len(speakers) > 1 else ''}" if speakers else ""
        return f"found: {count:,} {what}{'s' if count != 1 else ''}, {known}{people}"


@dataclass(frozen=True)
class Clip:
    """One row in the making: a piece of a recording that was written, or was rejected.

    Attributes:
        recording: name of the recording that it was cut from.
        start_sec: where the clip begins in the recording, its lead-in included.
        end_sec: where it ends, its run-out included.
        speech_start_sec: where speech begins in the recording.
        speech_end_sec: where it ends.
        audio: the file, relative to the output folder; None if it was not written.
        text: what is said, without a speaker tag.
        speaker: who says it, if known.
        rejected: why it is not used; None if it is.
        figures: what was measured, by name, such as "character_error".
        warnings: what `validate` warns of: its kinds, such as "noise", and what was found of each.
    """

    recording: str
    start_sec: float
    end_sec: float
    speech_start_sec: float
    speech_end_sec: float
    audio: str | None = None
    text: str | None = None
    speaker: str | None = None
    rejected: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)

    @property
    def duration_sec(self) -> float:
        """Length of the clip."""
        return self.end_sec - self.start_sec


@dataclass(frozen=True)
class Turn:
    """One clip within a dialogue."""

    speaker: str
    text: str


@dataclass(frozen=True)
class Dialogue:
    """Neighbouring clips of two to four speakers as one piece of the recording.

    Attributes:
        audio: relative to the output folder.
        start_sec: in the recording.
        end_sec: in the recording.
        turns: who says what.
    """

    audio: str
    start_sec: float
    end_sec: float
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Record:
    """What became of a recording.

    Attributes:
        digest: of all that it depends on.
        recording: its name.
        group: of the recording.
        duration_sec: of the recording.
        clips: used and rejected, in order.
        dialogues: rows of several speakers.
        failed: why nothing of it can be used.
    """

    digest: str
    recording: str
    group: str
    duration_sec: float
    clips: tuple[Clip, ...] = ()
    dialogues: tuple[Dialogue, ...] = ()
    failed: str | None = None
