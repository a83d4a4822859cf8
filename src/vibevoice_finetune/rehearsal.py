"""A data set of what the base model says in its own languages, mixed in against forgetting.

Who teaches a model a new language shows it nothing else, and it loses what it knew. Recordings of the old languages
are seldom at hand, but the base model can speak them: it says some texts once, with the voices that it is given, and
the result is a data set like any other, for `--train_jsonl NEW.jsonl rehearsal/train.jsonl --mix 0.85,0.15`. What did
not end well is left out, or it would be learned.

    train.jsonl      rows with text, audio, voice prompt and speaker; written last
    clips/           what the model said, FLAC
    voices/          the recordings that it was given
    left_out.jsonl   texts without a row, and why
    takes/           while it goes on: what has been said so far
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio, parse_audio
from vibevoice_finetune.audio.waveform import write_audio
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.errors import ArgumentError, DataError, shown
from vibevoice_finetune.evaluation.health import health
from vibevoice_finetune.evaluation.recogniser import Recogniser, load_recogniser
from vibevoice_finetune.evaluation.speak import Said, Voice, say_all
from vibevoice_finetune.evaluation.words import normalise
from vibevoice_finetune.files.atomic import check_writable, remove_folder, write_file
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource
from vibevoice_finetune.generation.scripts import script_from_text

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aac")
MAX_BYTES = 50_000_000
ROWS, LEFT_OUT, CLIPS, VOICES, TAKES = "train.jsonl", "left_out.jsonl", "clips", "voices", "takes"


@dataclass(frozen=True)
class RehearsalRequest:
    """What the base model is to say.

    Attributes:
        model: the base model.
        texts: a text per line, plain or tagged `Speaker 0:`; an empty line is nothing.
        voices: a folder with a recording of each voice, named after it.
        output: folder of the data set.
        recogniser: who checks that the ends were said; None: only silence and length are looked at.
        language: of the texts, two letters, for the recogniser.
        cfg_scale: guidance.
        num_diffusion_steps: solver steps per frame.
        seed: of all randomness.
        batch_size: texts that are spoken at the same time.
        max_length_sec: where a text without an end is cut off.
    """

    model: ModelSource
    texts: Path
    voices: Path
    output: Path
    recogniser: str | None = None
    language: str = "en"
    cfg_scale: float = 1.3
    num_diffusion_steps: int = 10
    seed: int = 42
    batch_size: int = 8
    max_length_sec: float = 60.0


@dataclass(frozen=True)
class Rehearsal:
    """What became of it.

    Attributes:
        jsonl: the data set.
        rows: how many it has.
        audio_sec: of its clips together.
        voices: how many spoke.
        left_out: texts without a row, by reason.
    """

    jsonl: Path
    rows: int
    audio_sec: float
    voices: int
    left_out: Counter[str]

    def line(self) -> str:
        """For the user."""
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in self.left_out.most_common())
        left_out = f"; {self.left_out.total():,} left out ({reasons})" if reasons else "; none left out"
        voices = f"{self.voices} voice{'s' if self.voices > 1 else ''}"
        return f"{self.rows:,} rows, {self.audio_sec / 60:.1f} min in {voices}{left_out}: {self.jsonl}"


def rehearse(request: RehearsalRequest, progress: Callable[[int, int], None] | None = None) -> Rehearsal:
    """Let the base model say the texts, each with one of the voices in turn, and write the data set.

    What a stopped run has said is not said again.

    Args:
        request: what to say.
        progress: told texts done and texts in all.

    Raises:
        UserError: the texts, the voices or the model cannot be used, nothing that was said is fit to be learned, or the
            extra `evaluate` is not installed.
    """
    texts, voices = read_texts(request.texts), find_voices(request.voices)
    if (request.output / ROWS).exists():
        raise ArgumentError(
            f"--output {shown(request.output)}: holds a data set already ({ROWS}); name another folder."
        )
    check_writable(request.output, "--output")
    normalise("")  # what compares words may not be installed: said before anything is spoken
    recogniser = None if request.recogniser is None else load_recogniser(request.recogniser, request.language)
    rows = [_row(text, where, *voices[number % len(voices)]) for number, (text, where) in enumerate(texts)]
    settings = GenerationRequest(
        model=request.model,
        scripts=(script_from_text("settings"),),
        cfg_scale=request.cfg_scale,
        num_diffusion_steps=request.num_diffusion_steps,
        max_length_sec=request.max_length_sec,
        batch_size=request.batch_size,
    )
    takes = request.output / TAKES
    with locked(request.output, "rehearse", inside=True):
        said = say_all(request.model, [Voice("base")], rows, [request.seed], takes, settings, progress)
        found = _write(request, rows, said, recogniser)
        remove_folder(takes)
    return found


def read_texts(path: Path) -> list[tuple[str, str]]:
    """The texts of a file, a line each, with the place of each for messages.

    Raises:
        ArgumentError: the file cannot be read, or holds nothing.
        DataError: a line cannot be said, or has several speakers.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ArgumentError(f"--script {shown(path)}: a text file is expected, with a text on each line.")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ArgumentError(f"--script {shown(path)}: cannot be read ({said}).") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{shown(path.name)}:{number}"
        turns = script_from_text(line, where=where).turns
        if len(turns) > 1:
            raise DataError(f"{where}: the line has several speakers; give each text a line of its own.")
        found.append((turns[0].text, where))
    if not found:
        raise ArgumentError(f"--script {shown(path)}: holds no text; write one on each line.")
    return found


def find_voices(folder: Path) -> list[tuple[str, AudioSource]]:
    """The recordings of a folder by their names, in order.

    Raises:
        ArgumentError: it is not a folder, or holds no recording, or two of the same name.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    files = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise ArgumentError(
            f"--voices {shown(folder)}: a folder is expected with a recording of each voice "
            f"({', '.join(AUDIO_SUFFIXES)}); a few seconds of each are enough."
        )
    twice = [name for name, count in Counter(path.stem for path in files).items() if count > 1]
    if twice:
        raise ArgumentError(f"--voices {shown(folder)}: two recordings are called {shown(twice[0])}; rename one.")
    return [(path.stem, parse_audio(str(path), None, f"--voices {shown(path)}")) for path in files]


def _row(text: str, where: str, voice: str, recording: AudioSource) -> Row:
    return Row(f"Speaker 0: {text}", recording, (recording,), voice, where)


def _write(
    request: RehearsalRequest, rows: Sequence[Row], said: Sequence[Said], recogniser: Recogniser | None
) -> Rehearsal:
    """Write what ended well; the list of rows comes last."""
    lines, left_out, reasons, seconds = [], [], Counter[str](), 0.0
    used: dict[str, AudioSource] = {}
    for number, (row, take) in enumerate(zip(rows, said, strict=True)):
        fault = _fault(request, row, take, recogniser)
        if fault:
            reasons[fault] += 1
            left_out.append({"text": row.text, "speaker": row.speaker, "where": row.where, "fault": fault})
            continue
        clip = f"{CLIPS}/{number:06d}.flac"
        samples = take.samples()
        write_audio(request.output / clip, samples, SAMPLING_RATE_HZ)
        seconds += len(samples) / SAMPLING_RATE_HZ
        assert row.speaker is not None
        used[row.speaker] = row.audio
        voice = f"{VOICES}/{row.speaker}.flac"
        lines.append({"text": row.text, "audio": clip, "voice_prompts": [voice], "speaker": row.speaker})
    if not lines:
        raise DataError(
            f"nothing that the model said ended well ({', '.join(reasons)}); what was said lies in "
            f"{request.output / TAKES}: listen to it, and try other voices, texts or --cfg_scale."
        )
    for voice_name, recording in used.items():
        write_audio(request.output / VOICES / f"{voice_name}.flac", load_audio(recording), SAMPLING_RATE_HZ)
    write_file(request.output / LEFT_OUT, _as_lines(left_out))
    write_file(request.output / ROWS, _as_lines(lines))
    return Rehearsal(request.output / ROWS, len(lines), seconds, len(used), reasons)


def _fault(request: RehearsalRequest, row: Row, take: Said, recogniser: Recogniser | None) -> str:
    """Why a take is not to be learned; empty if it is."""
    if take.audio is None:
        return "nothing was said"
    samples = take.samples()
    text = row.text.removeprefix("Speaker 0: ")
    heard = text if recogniser is None else recogniser(samples, SAMPLING_RATE_HZ)
    found = health(samples, SAMPLING_RATE_HZ, text, heard, ended=take.ended, language=request.language)
    return found.signs[0] if found.signs else ""


def _as_lines(values: Sequence[object]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
