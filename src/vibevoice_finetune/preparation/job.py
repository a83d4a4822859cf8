"""One recording from file to clips: listen, cut, transcribe or align, write.

The unit of work, for a process, a job of an array or a Ray worker: it reads one recording and writes one folder of
clips with a record of them. The record comes last, so a recording is done or not. It holds a digest of the recording,
its texts and the settings: the same again is not done again, and anything else is.

The recording is read two or three times, block by block: once to find the speech, once more where voices are compared,
and once to take the clips out. That is cheaper than to hold ten hours.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ, AudioError, Floats
from vibevoice_finetune.audio.source import write_audio
from vibevoice_finetune.audio.stream import cut_out, stream
from vibevoice_finetune.errors import UserError, shown
from vibevoice_finetune.evaluation.recogniser import Recogniser, load_recogniser
from vibevoice_finetune.evaluation.speaker_similarity import SpeakerEncoder
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.preparation.activity import Activity, listen
from vibevoice_finetune.preparation.align import align, letter_error
from vibevoice_finetune.preparation.cut import Cut, CutSettings, Speech, cut, with_edges
from vibevoice_finetune.preparation.loudness import level
from vibevoice_finetune.preparation.passages import cut_by_passages, offset_of
from vibevoice_finetune.preparation.quality import check_piece, check_text, with_findings, without_tag
from vibevoice_finetune.preparation.recordings import Clip, Dialogue, Record, Recording, Turn
from vibevoice_finetune.preparation.speakers import name_speakers

FORMAT_VERSION = 2
CLIPS_FOLDER = "clips"
RECORDS_FOLDER = "recordings"
"""Under it lies a record for each recording."""

LONGEST_TURN_GAP_SEC = 1.5
"""A longer silence ends a dialogue."""

MAX_DIALOGUE_SPEAKERS = 4  # what the model was made for


@dataclass(frozen=True)
class JobSettings:
    """What of the command line one recording depends on.

    Attributes:
        cutting: how long clips are to be.
        recogniser: "moonshine", a Whisper model, or "none".
        language: two letters, for the recogniser.
        num_speakers: people in each recording; 0: to be found, 1: not looked for.
        dialogue: whether turns are also joined into rows of several speakers.
        max_dialogue_sec: longest of these.
        max_text_error: letters that the recogniser may hear otherwise than the text has them, as a share.
        offset_sec: added to the times of subtitles.
    """

    cutting: CutSettings = field(default_factory=CutSettings)
    recogniser: str = "none"
    language: str | None = None
    num_speakers: int = 1
    dialogue: bool = False
    max_dialogue_sec: float = 60.0
    max_text_error: float = 0.3
    offset_sec: float = 0.0


def record_path(output: Path, recording: Recording) -> Path:
    """Where the record of a recording lies."""
    return output / RECORDS_FOLDER / f"{recording.name}.json"


def digest_of(recording: Recording, settings: JobSettings) -> str:
    """A digest of the file's bytes, its texts and the settings."""
    digest = hashlib.sha256()
    with recording.path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    said = asdict(replace(recording, path=Path()))
    digest.update(json.dumps([FORMAT_VERSION, said | {"path": ""}, asdict(settings)], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def read_record(output: Path, recording: Recording, digest: str) -> Record | None:
    """The record of an earlier run, if it is of the same recording, texts and settings and its clips are there."""
    try:
        found = json.loads(record_path(output, recording).read_text(encoding="utf-8"))
        record = Record(
            found["digest"],
            found["recording"],
            found["group"],
            found["duration_sec"],
            tuple(Clip(**clip) for clip in found["clips"]),
            tuple(
                Dialogue(d["audio"], d["start_sec"], d["end_sec"], tuple(Turn(**turn) for turn in d["turns"]))
                for d in found["dialogues"]
            ),
            found["failed"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    files = [clip.audio for clip in record.clips if clip.audio] + [dialogue.audio for dialogue in record.dialogues]
    whole = all((output / name).is_file() for name in files)
    return record if record.digest == digest and whole else None


def process(recording: Recording, settings: JobSettings, output: Path) -> Record:
    """Do one recording, or find that it was done.

    A recording that cannot be read becomes a record that says why; the others go on.

    Raises:
        UserError: something is missing that every recording needs, or the output cannot be written.
    """
    try:
        digest = digest_of(recording, settings)
    except OSError as error:
        raise UserError(f"{recording.path}: cannot be read ({error.strerror}).") from error
    done = read_record(output, recording, digest)
    if done is not None:
        return done
    shutil.rmtree(output / CLIPS_FOLDER / recording.name, ignore_errors=True)
    try:
        record = _Job(recording, settings, output).run(digest)
    except AudioError as error:
        said = str(error).removeprefix(shown(recording.path)).lstrip(": ").removeprefix("is ")
        record = Record(digest, recording.name, recording.group, 0.0, failed=said)
    write_json(record_path(output, recording), asdict(record))
    return record


@cache
def _recogniser(name: str, language: str | None) -> Recogniser:
    return load_recogniser(name, language)


@cache
def _speaker_encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


class _Job:
    def __init__(self, recording: Recording, settings: JobSettings, output: Path) -> None:
        self.recording = recording
        self.settings = settings
        self.output = output

    def run(self, digest: str) -> Record:
        activity = listen(self.blocks())
        cuts, texts = self.cuts(activity)
        dialogues = self.dialogue_spans(cuts)
        clips, heard = self.write(cuts, dialogues)
        clips = self.with_texts(clips, texts, heard)
        for clip in clips:
            if clip.rejected and clip.audio:
                (self.output / clip.audio).unlink(missing_ok=True)
        clips = [replace(clip, audio=None) if clip.rejected else clip for clip in clips]
        return Record(
            digest,
            self.recording.name,
            self.recording.group,
            round(activity.duration_sec, 3),
            tuple(clips),
            tuple(self.dialogues(dialogues, clips)),
            None if clips else "no speech was found",
        )

    def blocks(self) -> Iterator[Floats]:
        return stream(self.recording.path)

    def cuts(self, activity: Activity) -> tuple[list[Cut], list[str] | None]:
        """The cuts, and their texts if the source has them cut by cut."""
        settings, recording = self.settings.cutting, self.recording
        speech: Sequence[Speech] = activity.speech
        if not speech:
            return [], None
        if recording.passages:
            shift = self.settings.offset_sec
            passages = [
                replace(p, start_sec=p.start_sec + shift, end_sec=p.end_sec + shift) for p in recording.passages
            ]
            late_sec = offset_of(passages, speech, activity.duration_sec)
            if late_sec is not None:
                raise AudioError(
                    f"{shown(recording.path)}: the times of its text are {abs(late_sec):.1f} s too "
                    f"{'late' if late_sec > 0 else 'early'} for the speech; if so, add "
                    f"--text_offset_sec {shift - late_sec:+.1f}.",
                    "text at the wrong time",
                )
            found = cut_by_passages(passages, speech, activity.duration_sec, settings)
            return [one.cut for one in found], [one.text for one in found]
        if recording.is_clip and activity.duration_sec <= settings.max_sec:
            start, end = speech[0].start_sec, speech[-1].end_sec
            whole = with_edges([Cut(start, end, start, end)], activity.duration_sec, settings)
            return whole, [recording.text] if recording.text is not None else None
        if self.settings.num_speakers != 1 and recording.speaker is None:
            wanted = self.settings.num_speakers or None
            speech = name_speakers(speech, self.blocks(), _speaker_encoder(), wanted)
        return cut(speech, activity.duration_sec, settings), None

    def dialogue_spans(self, cuts: Sequence[Cut]) -> list[list[int]]:
        """Runs of cuts that make a dialogue, by their numbers."""
        if not self.settings.dialogue:
            return []
        runs: list[list[int]] = []
        run: list[int] = []
        for number, one in enumerate(cuts):
            if one.rejected or one.speaker is None:
                runs, run = [*runs, run], []
                continue
            fits = run and (
                one.speech_start_sec - cuts[run[-1]].speech_end_sec <= LONGEST_TURN_GAP_SEC
                and one.end_sec - cuts[run[0]].start_sec <= self.settings.max_dialogue_sec
                and len({cuts[i].speaker for i in run} | {one.speaker}) <= MAX_DIALOGUE_SPEAKERS
            )
            if fits:
                run.append(number)
            else:
                runs, run = [*runs, run], [number]
        return [run for run in [*runs, run] if len({cuts[number].speaker for number in run}) > 1]

    def write(self, cuts: Sequence[Cut], dialogues: Sequence[list[int]]) -> tuple[list[Clip], list[str | None]]:
        """Write the clips that are used; what a recogniser heard in each, if one is asked."""
        used = [number for number, one in enumerate(cuts) if one.rejected is None]
        spans = [(cuts[number].start_sec, cuts[number].end_sec) for number in used]
        joined = [(cuts[run[0]].start_sec, cuts[run[-1]].end_sec) for run in dialogues]
        clips = [self.clip(one) for one in cuts]
        heard: list[str | None] = [None] * len(cuts)
        folder = f"{CLIPS_FOLDER}/{self.recording.name}"
        if used:
            (self.output / folder).mkdir(parents=True, exist_ok=True)
        for piece in cut_out(self.recording.path, [*spans, *joined]):
            if piece.number >= len(spans):
                name = f"{folder}/dialogue{piece.number - len(spans):04d}.flac"
                write_audio(self.output / name, level(piece.samples), SAMPLING_RATE_HZ)
                continue
            number = used[piece.number]
            figures, findings = check_piece(piece)
            clips[number] = with_findings(clips[number], findings, figures)
            if clips[number].rejected is None:
                name = f"{folder}/{number:04d}.flac"
                levelled = level(piece.samples)
                write_audio(self.output / name, levelled, SAMPLING_RATE_HZ)
                clips[number] = replace(clips[number], audio=name)
                heard[number] = self.hear(levelled)
        return clips, heard

    def clip(self, one: Cut) -> Clip:
        return Clip(
            recording=self.recording.name,
            start_sec=one.start_sec,
            end_sec=one.end_sec,
            speech_start_sec=one.speech_start_sec,
            speech_end_sec=one.speech_end_sec,
            speaker=self.recording.speaker or one.speaker,
            rejected=one.rejected,
        )

    def hear(self, samples: Floats) -> str | None:
        if self.settings.recogniser == "none":
            return None
        return _recogniser(self.settings.recogniser, self.settings.language)(samples, SAMPLING_RATE_HZ)

    def with_texts(self, clips: list[Clip], texts: list[str] | None, heard: list[str | None]) -> list[Clip]:
        """Give each clip its text; one whose text is not what was heard is rejected."""
        used = [number for number, clip in enumerate(clips) if clip.rejected is None]
        if texts is None and self.recording.text is not None and any(heard[number] is not None for number in used):
            aligned = align([heard[number] or "" for number in used], self.recording.text)
            texts = [""] * len(clips)
            for number, found in zip(used, aligned, strict=True):
                texts[number] = found.text
        found_clips = list(clips)
        for number in used:
            text = texts[number] if texts is not None else heard[number]
            found_clips[number] = self.judged(clips[number], text, heard[number], from_source=texts is not None)
        return found_clips

    def judged(self, clip: Clip, text: str | None, heard: str | None, *, from_source: bool) -> Clip:
        if text is None:
            return replace(clip, rejected="no text: name a recogniser, as in --recognizer moonshine")
        text = " ".join(without_tag(text).split())
        if not text:
            said = f"; heard: {heard!r}" if heard else ""
            return replace(clip, text="", rejected=f"no text for it{said}")
        clip = with_findings(replace(clip, text=text), check_text(text))
        if clip.rejected or not from_source or heard is None:
            return clip
        error = round(letter_error(heard, text), 4)
        clip = replace(clip, figures=clip.figures | {"character_error": error})
        if error > self.settings.max_text_error:
            return replace(clip, rejected=f"the text differs from what is heard ({error:.0%}): heard {heard!r}")
        return clip

    def dialogues(self, runs: Sequence[list[int]], clips: Sequence[Clip]) -> Iterator[Dialogue]:
        """The dialogues all of whose turns can be used; turns of one speaker in a row are one."""
        for number, run in enumerate(runs):
            audio = f"{CLIPS_FOLDER}/{self.recording.name}/dialogue{number:04d}.flac"
            if any(clips[i].rejected or not clips[i].text for i in run):
                (self.output / audio).unlink(missing_ok=True)
                continue
            turns: list[Turn] = []
            for i in run:
                speaker, text = str(clips[i].speaker), str(clips[i].text)
                if turns and turns[-1].speaker == speaker:
                    turns[-1] = Turn(speaker, f"{turns[-1].text} {text}")
                else:
                    turns.append(Turn(speaker, text))
            yield Dialogue(audio, clips[run[0]].start_sec, clips[run[-1]].end_sec, tuple(turns))
