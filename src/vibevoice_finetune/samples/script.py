"""What the samples of a run say, and in whose voice.

In come rows of the data or a file of the user's; out go `SampleText`s. They are fixed for the whole run, so that what
changes from one step to the next is the model alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio
from vibevoice_finetune.audio.span import Span
from vibevoice_finetune.data.jsonl import read_jsonl
from vibevoice_finetune.data.rows import BadRows, Columns, Row
from vibevoice_finetune.data.script import num_speakers, parse_script
from vibevoice_finetune.errors import DataError, shown
from vibevoice_finetune.generation.scripts import Script, read_scripts

NUM_ROWS = 3
MOST_TEXTS = 100
LONGEST_VOICE_SEC = 15.0
TOO_LONG = 3.0
"""Times the longest real clip: a sample without an end is cut off there."""

SLOWEST_LETTERS_PER_SEC = 5
"""A third of the pace of English speech; where there is no real clip, a sample that takes longer is cut off."""

SHORTEST_LIMIT_SEC = 5.0


@dataclass(frozen=True, eq=False)
class SampleText:
    """One text that is spoken again and again.

    Attributes:
        script: the turns with their voices.
        real: the recording of the text, if there is one.
    """

    script: Script
    real: AudioSource | None = None

    @property
    def text(self) -> str:
        """What is said, without tags."""
        return " ".join(turn.text for turn in self.script.turns)

    @property
    def speaker_clips(self) -> tuple[AudioSource, ...]:
        """Recordings of the one speaker; empty where there are several speakers, or nothing of the one is known."""
        if num_speakers(self.script.turns) != 1:
            return ()
        return self.script.voices if self.real is None else (self.real, *self.script.voices)

    def limit_sec(self) -> float:
        """How long the text may take."""
        if self.real is not None:
            return TOO_LONG * len(load_audio(self.real)) / SAMPLING_RATE_HZ
        return max(len(self.text) / SLOWEST_LETTERS_PER_SEC, SHORTEST_LIMIT_SEC)


def read_sample_script(path: Path, columns: Columns) -> tuple[SampleText, ...]:
    """The texts of `--sample_script`; every voice is decoded once, so that a bad one is found before training.

    Raises:
        UserError: the file cannot be read, holds no texts or too many, or a voice cannot be used.
    """
    if path.suffix.lower() == ".jsonl":
        texts = texts_of_rows(read_jsonl(path, columns, BadRows("error")))
    else:
        texts = tuple(SampleText(script) for script in read_scripts(path, flag="--sample_script"))
    if len(texts) > MOST_TEXTS:
        raise DataError(
            f"--sample_script {shown(path)}: has {len(texts):,} texts; at most {MOST_TEXTS} are expected, as all are "
            "spoken at every sample; give fewer."
        )
    for text in texts:
        for voice in text.script.voices if text.real is None else (text.real, *text.script.voices):
            load_audio(voice)
    return texts


def pick_rows(rows: Sequence[Row], usable: Sequence[str]) -> tuple[Row, ...]:
    """A few rows from all over the data, with their voices: their own, another clip of the speaker, or a cut.

    Args:
        rows: of the evaluation data, or of the training data.
        usable: `where` of the rows that can be used, in order; some are chosen.
    """
    chosen = {usable[number * len(usable) // NUM_ROWS] for number in range(NUM_ROWS)}
    found = [row for row in rows if row.where in chosen]
    missing = {row.speaker for row in found if row.speaker is not None and not row.voice_prompts}
    others: dict[str, list[Row]] = {speaker: [] for speaker in missing}
    for row in rows if missing else ():
        if row.speaker in others and len(others[row.speaker]) < 2:
            others[row.speaker].append(row)
    return tuple(replace(row, voice_prompts=_voices(row, others.get(row.speaker or "", ()))) for row in found)


def texts_of_rows(rows: Sequence[Row], *, with_voices: bool = True) -> tuple[SampleText, ...]:
    """Rows as texts to speak.

    Args:
        rows: of the data.
        with_voices: False for a model that is trained without voice prompts.
    """
    return tuple(
        SampleText(
            Script(
                parse_script(row.text, row.where),
                tuple(row.voice_prompts or ()) if with_voices else (),
                row.where,
            ),
            row.audio,
        )
        for row in rows
    )


def _voices(row: Row, clips: Sequence[Row]) -> tuple[AudioSource, ...]:
    """Where training takes a voice from, but always the same one."""
    if row.voice_prompts:
        return row.voice_prompts
    if num_speakers(parse_script(row.text, row.where)) != 1:
        return ()
    other = next((clip.audio for clip in clips if clip.where != row.where), None)
    return (_first_half(row.audio) if other is None else other,)


def _first_half(audio: AudioSource) -> AudioSource:
    seconds = len(load_audio(audio)) / SAMPLING_RATE_HZ
    start_sec = 0.0 if audio.span is None else audio.span.start_sec
    return replace(audio, span=Span(start_sec, start_sec + min(seconds / 2, LONGEST_VOICE_SEC)), stated_sec=None)
