"""`evaluate`: did the fine-tune help? Base and adapters say the same held-out texts, and are judged alike.

In comes an `EvaluationRequest`, out goes an `Evaluation`, which `evaluation/report.py` turns into a page. Audio and the
judges' answers lie in the output folder, so a run that was stopped goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import vibevoice_finetune
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
from vibevoice_finetune.evaluation.judges.quality import load_quality
from vibevoice_finetune.evaluation.losses import FixedRows, RowLosses, prepare_rows, row_losses
from vibevoice_finetune.evaluation.recogniser import load_recogniser
from vibevoice_finetune.evaluation.speak import Said, Voice, say_all
from vibevoice_finetune.evaluation.speaker_similarity import load_speaker_encoder
from vibevoice_finetune.files.atomic import check_writable, write_json
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource
from vibevoice_finetune.generation.prompts import SpeechModel
from vibevoice_finetune.generation.scripts import script_from_text

BASE = "base"
AUDIO_FOLDER = "audio"
LATENTS_FOLDER = "latents"
TOO_LONG = 3.0
"""Times the longest real clip: a take without an end is cut off there."""

FEW_ROWS = 10
"""With fewer, most differences are inside the noise."""

BUNDLED_SCRIPT = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"
"""24 English sentences by two voices: the default script for forgetting."""

BUNDLED_LANGUAGE, BUNDLED_RECOGNISER = "en", "moonshine"


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
        speaker_encoder: "campplus", "wavlm", another WavLM model, or "auto"; see `load_speaker_encoder`.
        predict_quality: whether a model guesses how good each take sounds; never used to choose.
        with_losses: whether the losses of the rows are computed too.
        forgetting: rows of other voices that are said once each; empty: forgetting is not looked at.
        forgetting_is_bundled: whether those are the English ones that come with this package.
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
    speaker_encoder: str = "auto"
    predict_quality: bool = False
    with_losses: bool = False
    forgetting: tuple[Row, ...] = ()
    forgetting_is_bundled: bool = False


@dataclass(frozen=True)
class Forgetting:
    """What was found on the rows of other voices.

    Attributes:
        judged: every take.
        compared: figures by model and key.
        reference: what the real clips of those voices say.
        num_rows: how many sentences.
    """

    judged: tuple[Judged, ...]
    compared: dict[str, dict[str, Compared]]
    reference: Reference
    num_rows: int


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
        forgetting: the same on other voices; None if it was not looked at.
    """

    request: EvaluationRequest
    reference: Reference
    judged: tuple[Judged, ...]
    compared: dict[str, dict[str, Compared]]
    choice: Choice | None
    recogniser_name: str
    encoder_name: str
    warnings: tuple[str, ...] = field(default=())
    forgetting: Forgetting | None = None


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
    judges = _load_judges(request)
    with locked(request.output, "evaluate"):
        (request.output / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
        reference = listen_to_real_clips(rows, judges)
        limit_sec = request.max_length_sec or TOO_LONG * max(reference.duration_sec)
        request = replace(request, rows=rows, max_length_sec=limit_sec)
        losses = _Losses(request) if request.with_losses else None
        takes = _say(request, losses, lambda done, total: tell("speaking", done, total))
        judged = judge(takes, rows, reference, judges, lambda done, total: tell("listening", done, total))
        if losses is not None:
            judged = [replace(one, losses=losses.of(one.said.voice, one.said.row)) for one in judged]
        forgetting = _forgetting(request, judges, tell) if request.forgetting else None
    names = [voice.name for voice in request.voices]
    choice = choose(judged, names, request.choose_by) if names else None
    return Evaluation(
        request=request,
        reference=reference,
        judged=tuple(judged),
        compared=compare(judged, BASE),
        choice=choice,
        recogniser_name=judges.recogniser_name,
        encoder_name=judges.encoder_name,
        warnings=tuple(_warnings(request, num_given)),
        forgetting=forgetting,
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


def _load_judges(request: EvaluationRequest) -> Judges:
    encoder, encoder_name = load_speaker_encoder(request.speaker_encoder, request.model.cache_dir)
    return Judges(
        recogniser=load_recogniser(request.recogniser, request.language),
        recogniser_name=request.recogniser,
        encoder=encoder,
        encoder_name=encoder_name,
        language=request.language,
        quality=load_quality() if request.predict_quality else None,
    )


def _say(request: EvaluationRequest, losses: "_Losses | None", progress: Callable[[int, int], None]) -> list[Said]:
    settings = GenerationRequest(
        model=request.model,
        scripts=(script_from_text("settings"),),
        cfg_scale=request.cfg_scale,
        num_diffusion_steps=request.num_diffusion_steps,
        max_length_sec=request.max_length_sec or 0.0,
        batch_size=request.batch_size,
    )
    voices = [Voice(BASE), *request.voices]
    folder = request.output / AUDIO_FOLDER
    with_model = None if losses is None else losses.compute
    return say_all(
        request.model, voices, request.rows, range(request.seeds), folder, settings, progress, with_model=with_model
    )


class _Losses:
    """Losses of every model, each computed once and kept beside the audio."""

    def __init__(self, request: EvaluationRequest) -> None:
        self._request = request
        self._by_voice: dict[str, dict[int, RowLosses]] = {}
        content = [
            (row.text, row.audio.digest(), [v.digest() for v in row.voice_prompts or ()]) for row in request.rows
        ]
        self._rows_digest = hashlib.sha256(repr(content).encode()).hexdigest()[:16]
        self._fixed: FixedRows | None = None

    def compute(self, voice: Voice, identity: str, model: Callable[[], SpeechModel]) -> None:
        """Compute one model's losses, or read them where they were computed before."""
        path = self._request.output / AUDIO_FOLDER / f"losses-{identity}-{self._rows_digest}.json"
        if not path.is_file():
            if self._fixed is None:
                folder = self._request.output / LATENTS_FOLDER
                self._fixed = prepare_rows(self._request.model, self._request.rows, folder)
            found = row_losses(model(), self._fixed)
            write_json(path, {str(row): asdict(losses) for row, losses in found.items()})
        stored = json.loads(path.read_text(encoding="utf-8"))
        self._by_voice[voice.name] = {int(row): RowLosses(**losses) for row, losses in stored.items()}

    def of(self, voice: str, row: int) -> RowLosses | None:
        """Losses of one row; None if it could not be trained on."""
        return self._by_voice[voice].get(row)


def _forgetting(request: EvaluationRequest, judges: Judges, tell: Progress) -> Forgetting:
    """Let all models say rows of other voices, one take each, and judge them by the same judges.

    The bundled rows are English, whatever the voice speaks, so an English recogniser hears them.
    """
    if request.forgetting_is_bundled and request.language != BUNDLED_LANGUAGE:
        judges = replace(
            judges,
            recogniser=load_recogniser(BUNDLED_RECOGNISER, BUNDLED_LANGUAGE),
            recogniser_name=BUNDLED_RECOGNISER,
            language=BUNDLED_LANGUAGE,
        )
    rows = tuple(with_voice_prompts(_of_one_speaker(request.forgetting)))
    reference = listen_to_real_clips(rows, judges)
    limit_sec = TOO_LONG * max(reference.duration_sec)
    own = replace(request, rows=rows, seeds=1, max_length_sec=limit_sec)
    takes = _say(own, None, lambda done, total: tell("speaking with other voices", done, total))
    judged = judge(takes, rows, reference, judges, lambda done, total: tell("listening to them", done, total))
    return Forgetting(tuple(judged), compare(judged, BASE), reference, len(rows))


def _warnings(request: EvaluationRequest, num_given: int) -> list[str]:
    warnings, rows = [], request.rows
    if len(rows) < FEW_ROWS:
        warnings.append(f"{len(rows)} rows are few: most differences will be inside the noise; give 20 or more.")
    if len(rows) < num_given:
        warnings.append(f"{num_given - len(rows)} rows of several speakers were left out.")
    if not any(row.voice_prompts for row in rows):
        warnings.append("no row has a voice prompt, so the base model speaks in a voice of its own choice.")
    return warnings
