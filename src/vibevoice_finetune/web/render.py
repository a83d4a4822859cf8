"""Pieces of the page as HTML. Everything that comes from a file or a user is escaped."""

import html
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from vibevoice_finetune.preparation.job import RECORDS_FOLDER
from vibevoice_finetune.tune.data_check import account, duration
from vibevoice_finetune.tune.progress import training_progress
from vibevoice_finetune.tune.words import DATA, EVALUATION
from vibevoice_finetune.web.clips import Clip, Rejected
from vibevoice_finetune.web.jobs import JOBS, LOG, Status
from vibevoice_finetune.web.workspace import Project, recordings_of

DOING = {
    "prepare": "Making clips",
    "train": "Training",
    "evaluate": "Judging the result",
    "speak": "Speaking",
    "merge": "Merging",
}
DONE = {
    "prepare": "The clips are made. Look through them, then go to the Train tab.",
    "train": "The training is done. Try the voice on the Listen tab.",
    "evaluate": "The report is ready on the Result tab.",
    "speak": "Spoken.",
    "merge": "The merged model is in the project's folder, under “merged”.",
}
STOPPED = 75
CLIPS_ON_A_PAGE = 20


def file_address(path: Path) -> str:
    """Where the page's server gives out a file of the workspace."""
    return f"gradio_api/file={quote(str(path))}"


def status_line(project: Project | None, status: Status) -> str:
    """What is going on, in a line with a bar."""
    if project is None:
        return note("To begin, give your voice a name and press “Create the project”.")
    if status.running:
        return _running(project, status)
    return _ended(project, status)


def _ended(project: Project, status: Status) -> str:
    doing = DOING.get(status.kind, status.kind)
    if status.code == STOPPED:
        return note(f"{doing} was stopped. Press the same button again to go on.")
    if status.code:
        return note(f"{doing} failed: {status.message}", "bad")
    if status.kind:
        return note(f"{DONE.get(status.kind, 'Done.')} ({duration(status.seconds)})", "good")
    if not recordings_of(project):
        return note("First step: upload recordings of one speaker below. 10 to 30 minutes are good, 3 are the least.")
    return note("Next step: press “Make clips”.")


def _running(project: Project, status: Status) -> str:
    done, total = _progress(project, status)
    passed = time.time() - status.since
    text = DOING.get(status.kind, status.kind)
    if total and done:
        left = passed * (total - done) / done
        text += f": {done:,} of {total:,}, about {duration(left)} left"
    else:
        text += f" … ({duration(passed)})"
    share = min(done / total, 1.0) if total else 0.0
    bar = (
        f'<div class="bar" role="progressbar" aria-label="progress" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div>'
    )
    return f'<div class="note busy">{html.escape(text)}{bar}</div>'


def _progress(project: Project, status: Status) -> tuple[int, int | None]:
    if status.kind == "prepare":
        records = sum(1 for _ in (project.folder / DATA / RECORDS_FOLDER).rglob("*.json"))
        return records, len(recordings_of(project)) or None
    if status.kind == "train":
        return training_progress(project.run / "metrics.jsonl", project.folder / JOBS / LOG)
    if status.kind == "evaluate":
        audio = project.run / EVALUATION / "audio"
        return (sum(1 for _ in audio.rglob("*.*")) if audio.is_dir() else 0), None
    return 0, None


def note(text: str, kind: str = "") -> str:
    """A sentence in a box; `kind` may be good or bad."""
    return f'<div class="note {kind}">{html.escape(text)}</div>'


def data_summary(project: Project) -> str:
    """How much speech there is, and whether it is enough."""
    files = recordings_of(project)
    if not (project.folder / DATA).is_dir():
        names = ", ".join(path.name for path in files[:8]) + (" …" if len(files) > 8 else "")
        return note(f"{len(files):,} files uploaded: {names}") if files else ""
    found = account(project.folder / DATA)
    if not found.num_training:
        return ""
    objections = "".join(note(text, "bad") for text in found.objections())
    return note(found.line(), "" if objections else "good") + objections


def clip_table(project: Project, clips: Sequence[Clip], page: int) -> str:
    """A page of the table of clips: number, player, text, problems."""
    if not clips:
        return '<p class="quiet">No clips yet.</p>'
    first = page * CLIPS_ON_A_PAGE
    rows = []
    for number, clip in enumerate(clips[first : first + CLIPS_ON_A_PAGE], first + 1):
        source = html.escape(file_address(project.folder / DATA / clip.audio))
        problems = "".join(f'<li class="bad">{html.escape(problem)}</li>' for problem in clip.problems)
        side = '<span class="tag">held out</span> ' if clip.held_out else ""
        rows.append(
            f'<tr><td class="number">{number}</td>'
            f'<td class="player"><audio controls preload="none" src="{source}" aria-label="Clip {number}"></audio></td>'
            f'<td class="said">{side}{html.escape(clip.text)}<ul>{problems}</ul></td>'
            f'<td class="number">{clip.seconds:.1f} s</td></tr>'
        )
    return (
        '<table class="clips"><thead><tr><th scope="col">Clip</th><th scope="col">Listen</th>'
        f'<th scope="col">Text and problems</th><th scope="col">Length</th></tr></thead><tbody>{"".join(rows)}'
        "</tbody></table>"
    )


def rejected_table(rejected: Sequence[Rejected], most: int = 200) -> str:
    """Pieces that are not used, and why."""
    if not rejected:
        return '<p class="quiet">Nothing was left out.</p>'
    rows = "".join(
        f"<tr><td>{html.escape(one.recording)}</td><td>{one.from_sec:.1f} s to {one.to_sec:.1f} s</td>"
        f"<td>{html.escape(one.reason)}</td></tr>"
        for one in rejected[:most]
    )
    more = f'<p class="quiet">and {len(rejected) - most:,} more</p>' if len(rejected) > most else ""
    return (
        '<table class="clips"><thead><tr><th scope="col">Recording</th><th scope="col">From, to</th>'
        f'<th scope="col">Why</th></tr></thead><tbody>{rows}</tbody></table>{more}'
    )


def samples(run: Path) -> str:
    """What was said in the course of a training: for each text the base and every step side by side."""
    folders = sorted(
        (path for path in (run / "samples").glob("step-*") if path.name[5:].isdecimal()),
        key=lambda path: int(path.name[5:]),
    )
    names = sorted({path.name for folder in folders for path in folder.iterdir() if path.suffix in (".wav", ".flac")})
    if not names:
        return '<p class="quiet">Samples of the voice appear here while it is trained.</p>'
    shown = [folders[0], *folders[-4:]] if len(folders) > 5 else folders
    heads = "".join(
        f'<th scope="col">{"before" if folder.name == "step-0" else folder.name.replace("-", " ")}</th>'
        for folder in shown
    )
    rows = "".join(f"<tr>{''.join(_sample(folder / name) for folder in shown)}</tr>" for name in names)
    return f'<div class="wide"><table class="clips"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _sample(path: Path) -> str:
    if not path.is_file():
        return "<td></td>"
    label = html.escape(f"{path.parent.name} {path.stem}")
    return (
        f'<td><audio controls preload="none" src="{html.escape(file_address(path))}" aria-label="{label}"></audio></td>'
    )
