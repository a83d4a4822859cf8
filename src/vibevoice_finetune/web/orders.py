"""The jobs that the page starts: from what was chosen on it to command lines."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.preparation.run import SETTINGS_FILE, TRAIN_FILE, VALIDATION_FILE
from vibevoice_finetune.tune import result, words
from vibevoice_finetune.tune.data_check import rows_of, seconds_of
from vibevoice_finetune.web.jobs import Job
from vibevoice_finetune.web.workspace import Project, recordings_of

if TYPE_CHECKING:
    from vibevoice_finetune.tune.plan import TrainingPlan  # brings torch, which the page's server can do without

TAKES, TAKE_FILE, BASE_AUDIO, TUNED_AUDIO = "takes", "take.json", "base.wav", "tuned.wav"
PLAN_FILE = "plan.json"
EVALUATION_ROWS, EVALUATION_TAKES = 20, 2
LONGEST_SPEECH = 5_000


def prepare_job(project: Project, recogniser: str, language: str) -> Job:
    """Make clips of the recordings, and look for problems.

    Raises:
        UserError: there are no recordings.
    """
    files = recordings_of(project)
    if not files:
        raise UserError("Upload recordings first.")
    seconds = sum(map(seconds_of, files))
    share = words.validation_share(seconds)
    flags: dict[str, Any] = {"recognizer": recogniser, "language": language, "validation_share": share}
    check = (*words.validate_words(project.folder), "--max_shown", "0")
    return Job("prepare", (tuple(words.prepare_words(project.recordings, project.folder, flags)), check))


def train_job(project: Project, plan: "TrainingPlan", *, anew: bool) -> Job:
    """Train, or go on with a training that was stopped.

    Args:
        project: with clips.
        plan: model and flags.
        anew: begin another run beside the ones that are there.

    Raises:
        UserError: there are no clips.
    """
    if not (project.folder / words.DATA / TRAIN_FILE).is_file():
        raise UserError("There are no clips yet: upload recordings on the Data tab and press “Make clips”.")
    run = project.run
    if anew and run.exists():
        number = int(run.name.removeprefix("run-")) if run.name.startswith("run-") else 1
        run = project.folder / f"run-{number + 1}"
    planned = run.with_name(f"{run.name}-{PLAN_FILE}")
    if not planned.exists() or not run.exists():
        write_json(planned, {"model": plan.model, "values": plan.values})
    model, values = read_plan(run) or (plan.model, plan.values)  # a run goes on with what it was begun with
    words_of_run = words.train_words(project.folder, run, model, values)
    return Job("train", (tuple(words_of_run),))


def read_plan(run: Path) -> tuple[str, dict[str, Any]] | None:
    """Model and flags that a run was begun with."""
    path = run.with_name(f"{run.name}-{PLAN_FILE}")
    if not path.is_file():
        return None
    entry = json.loads(path.read_text(encoding="utf-8"))
    return str(entry["model"]), dict(entry["values"])


def heard_by(project: Project) -> tuple[str, str]:
    """Recogniser and language that the clips were made with."""
    path = project.folder / words.DATA / SETTINGS_FILE
    settings = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    language = str(settings.get("language", "en"))
    named = str(settings.get("recognizer", "none"))
    return named if named != "none" else ("moonshine" if language == "en" else "small"), language


def evaluate_job(project: Project, recogniser: str, language: str) -> Job:
    """Judge base and checkpoints on what was held out.

    Raises:
        UserError: nothing was trained or held out yet.
    """
    planned = read_plan(project.run)
    if planned is None or not (project.run / result.RESULT).is_dir():
        raise UserError("Nothing is trained yet: start a training on the Train tab first.")
    rows = sum(1 for _ in rows_of(project.folder / words.DATA / VALIDATION_FILE))
    if not rows:
        raise UserError("No clips were held out to judge by; add recordings and make the clips again.")
    adapters = result.checkpoint_folders(project.run) or [project.run / result.RESULT]
    flags = {
        "seeds": EVALUATION_TAKES,
        "max_rows": min(EVALUATION_ROWS, rows),
        "recognizer": recogniser,
        "language": language,
    }
    return Job("evaluate", (tuple(words.evaluate_words(project.folder, project.run, planned[0], adapters, flags)),))


@dataclass(frozen=True)
class SpeakOrder:
    """What is to be said.

    Attributes:
        text: plain, or with "Speaker N: " before each line.
        voice: a recording of the speaker; empty without one.
        adapter: folder of the adapter.
        scale: how much of it.
        seed: of the draws.
    """

    text: str
    voice: str
    adapter: str
    scale: float
    seed: int


def speak_job(project: Project, order: SpeakOrder) -> tuple[Job, Path]:
    """Say a text with the base model and with the tuned one; the job and the folder of the audio.

    Raises:
        UserError: nothing to say, or nothing was trained.
    """
    planned = read_plan(project.run)
    if planned is None or not order.adapter:
        raise UserError("Nothing is trained yet: start a training on the Train tab first.")
    text = order.text.strip()
    if not text:
        raise UserError("Write what is to be said.")
    if len(text) > LONGEST_SPEECH:
        raise UserError(f"The text has {len(text):,} letters; at most {LONGEST_SPEECH:,} are said at once.")
    name = hashlib.sha256(json.dumps(asdict(order), sort_keys=True).encode()).hexdigest()[:16]
    folder = project.folder / TAKES / name
    write_json(folder / TAKE_FILE, asdict(order))
    common = ["generate", "--model_name_or_path", planned[0], f"--text={text}", "--seed", str(order.seed)]
    common += ["--voice", order.voice] if order.voice else []
    commands = []
    if not (folder / BASE_AUDIO).is_file():
        commands.append((*common, "--output", str(folder / BASE_AUDIO)))
    if not (folder / TUNED_AUDIO).is_file():
        tuned = ("--adapter", order.adapter, "--adapter_scale", str(order.scale))
        commands.append((*common, *tuned, "--output", str(folder / TUNED_AUDIO)))
    return Job("speak", tuple(commands)), folder


def merge_job(project: Project) -> Job:
    """Put the result into its base model.

    Raises:
        UserError: nothing was trained.
    """
    planned = read_plan(project.run)
    if planned is None or not (project.folder / result.RESULT).is_dir():
        raise UserError("Nothing is trained yet: start a training on the Train tab first.")
    adapter, merged = project.folder / result.RESULT, project.folder / "merged"
    return Job(
        "merge",
        (("merge", "--model_name_or_path", planned[0], "--adapter", str(adapter), "--output", str(merged)),),
    )
