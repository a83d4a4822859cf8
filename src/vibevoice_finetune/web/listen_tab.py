"""The tab Listen: the base model and the tuned one say the same text; blind, if wished."""

import json
import random
from pathlib import Path
from typing import Any

from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.tune import result
from vibevoice_finetune.tune.words import DATA
from vibevoice_finetune.web import clips, jobs, orders, render
from vibevoice_finetune.web.view import View, gradio, said_on_page
from vibevoice_finetune.web.workspace import Project, safe_name

VOTES_FILE = "votes.json"
BEST, NO_VOICE = "the result", "none"
LABELS = ("Base model", "Your voice")
BLIND_LABELS = ("A", "B")


def build(view: View) -> None:
    """Add the tab's parts to the page under construction."""
    gr = gradio()
    gr.Markdown("### Let it speak\nThe same text, once by the base model and once by yours.")
    text = gr.Textbox(
        "The kettle was still warm when she came home.", label="Text", lines=3, info="Plain; or “Speaker 0: …” lines."
    )
    with gr.Row():
        voice = gr.Dropdown([NO_VOICE], value=NO_VOICE, label="Voice prompt: a clip of the speaker")
        upload = gr.Audio(label="or a recording of your own", sources=["upload"], type="filepath")
    with gr.Row():
        adapter = gr.Dropdown([BEST], value=BEST, label="Adapter")
        scale = gr.Slider(0, 1.5, value=1.0, step=0.05, label="Strength (0: base model, 1: as trained)")
        seed = gr.Number(42, label="Seed", precision=0, minimum=0)
    with gr.Row():
        speak = gr.Button("Speak", variant="primary")
        blind = gr.Checkbox(label="Blind: do not tell me which is which", value=False)
    with gr.Row():
        one = gr.Audio(label=LABELS[0], interactive=False, visible=False, elem_id="take-one")
        other = gr.Audio(label=LABELS[1], interactive=False, visible=False, elem_id="take-two")
    with gr.Row(visible=False) as voting:
        vote_one = gr.Button("A sounds more like the speaker")
        vote_other = gr.Button("B sounds more like the speaker")
        same = gr.Button("No difference")
    verdict = gr.HTML()
    take, order = gr.State(""), gr.State((0, 1))

    choices = [view.choice, text, voice, upload, adapter, scale, seed]
    players = [one, other, voting, order, verdict]
    speak.click(_speak(view), choices, [take, view.status])
    for event in (view.seen.change, blind.change, take.change):
        event(_show(view), [view.choice, take, blind], players, show_progress="hidden")
    view.seen.change(_options(view), [view.choice, voice, adapter], [voice, adapter], show_progress="hidden")
    view.choice.change(lambda: "", None, [take], show_progress="hidden")
    for number, button in enumerate((vote_one, vote_other, same)):
        button.click(_vote(view, number), [view.choice, take, order], [verdict])


def _options(view: View) -> Any:
    @said_on_page
    def options(name: str | None, voice: str, adapter: str) -> tuple[Any, Any]:
        gr = gradio()
        if not name:
            return gr.update(choices=[NO_VOICE], value=NO_VOICE), gr.update(choices=[BEST], value=BEST)
        project = view.project(name)
        found = [clip for clip in clips.clips_of(project) if 3 <= clip.seconds <= 15][:100]
        voices = [(f"{clip.seconds:.0f} s: {clip.text[:60]}", clip.audio) for clip in found]
        adapters = [BEST, *(folder.name for folder in result.checkpoint_folders(project.run))]
        known = {value for _, value in voices}
        chosen = voice if voice in known else (voices[0][1] if voices else NO_VOICE)
        return (
            gr.update(choices=[*voices, (NO_VOICE, NO_VOICE)], value=chosen),
            gr.update(choices=adapters, value=adapter if adapter in adapters else BEST),
        )

    return options


def _speak(view: View) -> Any:
    @said_on_page
    def speak(
        name: str | None, text: str, voice: str, upload: str | None, adapter: str, scale: float, seed: float | None
    ) -> tuple[str, str]:
        project = view.project(name)
        folder = _adapter(project, adapter)
        order = orders.SpeakOrder(
            text, _voice(project, voice, upload), str(folder) if folder else "", float(scale), int(seed or 0)
        )
        job, place = orders.speak_job(project, order)
        if job.commands:
            jobs.start(project, job)
        else:
            gradio().Info("This was said before.")
        return place.name, render.status_line(project, jobs.status(project))

    return speak


def _adapter(project: Project, chosen: str) -> Path | None:
    """The folder of an adapter by the name that the page gives it."""
    known = {folder.name: folder / result.RESULT for folder in result.checkpoint_folders(project.run)}
    folder = known.get(chosen, project.folder / result.RESULT)
    return folder if folder.is_dir() else None


def _voice(project: Project, clip: str, upload: str | None) -> str:
    """The recording that was chosen; an upload goes before a clip, and is kept in the project."""
    if upload:
        kept = project.folder / orders.TAKES / safe_name(Path(upload).name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(Path(upload).read_bytes())
        return str(kept)
    known = {one.audio for one in clips.clips_of(project)}
    return str(project.folder / DATA / clip) if clip in known else ""


def _take_folder(project: Project, take: str) -> Path | None:
    """The folder of what was said, by the name in the page's state; the last one without a name."""
    takes = project.folder / orders.TAKES
    found = [path.parent for path in takes.glob(f"*/{orders.TAKE_FILE}")] if takes.is_dir() else []
    if take:
        return next((folder for folder in found if folder.name == take), None)
    return max(found, key=lambda folder: (folder / orders.TAKE_FILE).stat().st_mtime, default=None)


def _show(view: View) -> Any:
    @said_on_page
    def show(name: str | None, take: str, blind: bool) -> tuple[Any, Any, Any, Any, Any]:
        gr = gradio()
        folder = _take_folder(view.project(name), take) if name else None
        files = [folder / orders.BASE_AUDIO, folder / orders.TUNED_AUDIO] if folder else []
        if not files or not all(file.is_file() for file in files):
            empty = (gr.update(value=None, visible=False, label=label) for label in LABELS)
            return (*empty, gr.update(visible=False), (0, 1), "")
        order = (0, 1) if not blind else tuple(random.sample((0, 1), 2))
        labels = BLIND_LABELS if blind else LABELS
        shown = (
            gr.update(value=str(files[which]), visible=True, label=label)
            for which, label in zip(order, labels, strict=True)
        )
        return (*shown, gr.update(visible=blind), order, "")

    return show


def _vote(view: View, button: int) -> Any:
    @said_on_page
    def vote(name: str | None, take: str, order: tuple[int, int]) -> str:
        project = view.project(name)
        folder = _take_folder(project, take)
        if folder is None:
            return ""
        choice = ("base", "tuned")[order[button]] if button < 2 else "same"
        votes = count_votes(project, folder.name, choice)
        which = "A" if order[0] == 1 else "B"
        return render.note(
            f"{which} is your voice. Votes so far: {votes['tuned']} for your voice, {votes['base']} for the base "
            f"model, {votes['same']} without a difference.",
            "good",
        )

    return vote


def count_votes(project: Project, take: str, choice: str) -> dict[str, int]:
    """Keep a vote, one for each take, and count them all."""
    path = project.folder / orders.TAKES / VOTES_FILE
    votes: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    votes[take] = choice
    write_json(path, votes)
    return {kind: sum(vote == kind for vote in votes.values()) for kind in ("tuned", "base", "same")}
