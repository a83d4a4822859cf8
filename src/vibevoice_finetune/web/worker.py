"""The process of one job: `python -m vibevoice_finetune.web.worker PROJECT` does what `jobs/order.json` says."""

import os
import sys
import time
from pathlib import Path

from vibevoice_finetune.errors import StoppedRun, UserError
from vibevoice_finetune.files.locks import InUseError, locked
from vibevoice_finetune.tune import result, stages
from vibevoice_finetune.tune.words import EVALUATION
from vibevoice_finetune.web import clips, jobs
from vibevoice_finetune.web.workspace import Project

STOPPED = 75


def main(folder: Path) -> int:
    """Run a job to its end and write down how it ended."""
    project, place = Project(folder), folder / jobs.JOBS
    try:
        with locked(place, "the page's job", inside=True):
            job = jobs.read_order(project)
            began = time.monotonic()
            code, message = _run(project, job)
            jobs.write_last(place, job.kind, code, message, time.monotonic() - began)
            return code
    except InUseError:
        return 1  # another worker is there; what it writes counts


def _run(project: Project, job: jobs.Job) -> tuple[int, str]:
    place = project.folder / jobs.JOBS
    log = place / jobs.LOG
    log.unlink(missing_ok=True)
    for words in job.commands:
        jobs.write_current(place, job.kind, words[0], os.getpid())
        try:
            code = stages.run(words, log, lambda: None, words[0])
        except StoppedRun:
            return STOPPED, "stopped"
        if code != 0 and not (words[0] == "validate" and code == 1):  # errors in the data are shown beside the clips
            return code, stages.last_words(log)
        try:
            follow_up(project, words[0])
        except UserError as error:
            return 2, str(error)
    return 0, ""


def follow_up(project: Project, command: str) -> None:
    """Do what follows a command that succeeded.

    Raises:
        UserError: something cannot be written.
    """
    if command == "prepare":
        clips.apply_edits(project)
    elif command == "validate":
        log = project.folder / jobs.JOBS / jobs.LOG
        clips.note_problems(project, log.read_text(encoding="utf-8", errors="replace"))
    elif command in {"train", "evaluate"}:
        report = project.run / EVALUATION / "report.json"
        if command == "train":
            result.publish(project.run / result.RESULT, None, project.folder)
        else:
            chosen, _ = result.recommended(report, project.run)
            result.publish(chosen, report.with_name("index.html"), project.folder)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
