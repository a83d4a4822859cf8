"""The tab Data: recordings go in, clips come out, and are listened to."""

from typing import Any

from vibevoice_finetune.web import clips, jobs, orders, render
from vibevoice_finetune.web.view import View, gradio, said_on_page
from vibevoice_finetune.web.workspace import ACCEPTED_SUFFIXES, add_recordings

RECOGNISERS = [
    ("moonshine: English, comes with the package", "moonshine"),
    ("Whisper small: other languages, downloads 0.5 GB", "small"),
    ("Whisper large-v3: the most exact, downloads 3 GB", "large-v3"),
    ("none: every recording has its text beside it", "none"),
]


def build(view: View) -> None:
    """Add the tab's parts to the page under construction."""
    gr = gradio()
    gr.Markdown(
        "### 1. Recordings\nOne speaker, little noise, no music. If you have the text of `a.wav`, upload it as `a.txt`."
    )
    upload = gr.File(label="Recordings (audio or video, and texts)", file_count="multiple", type="filepath", height=140)
    uploaded = gr.HTML()
    with gr.Row():
        recogniser = gr.Dropdown(RECOGNISERS, value="moonshine", label="Who writes down what is said")
        language = gr.Textbox("en", label="Language, two letters", max_length=2, scale=0, min_width=180)
    make = gr.Button("Make clips", variant="primary")
    gr.Markdown("### 2. Clips\nListen to some. A wrong word teaches the model a wrong word.")
    summary = gr.HTML()
    table = gr.HTML()
    with gr.Row():
        back = gr.Button("Earlier clips", size="sm")
        forward = gr.Button("Later clips", size="sm")
    page = gr.State(0)
    with gr.Accordion("Correct a clip", open=False):
        number = gr.Number(1, label="Number of the clip", minimum=1, precision=0)
        text = gr.Textbox(label="What is said", lines=2)
        with gr.Row():
            save = gr.Button("Save the text")
            leave_out = gr.Button("Leave this clip out", variant="stop")
    with gr.Accordion("What was left out, and why", open=False):
        rejected = gr.HTML()

    shown = [summary, table, rejected, page]
    load = _loader(view)
    upload.upload(_take(view), [view.choice, upload], [uploaded, upload, summary])
    make.click(_make(view), [view.choice, recogniser, language], [view.status])
    view.seen.change(load, [view.choice, page], shown, show_progress="hidden")
    back.click(lambda name, at: load(name, at - 1), [view.choice, page], shown)
    forward.click(lambda name, at: load(name, at + 1), [view.choice, page], shown)
    number.change(_text_of(view), [view.choice, number], [text], show_progress="hidden")
    view.seen.change(_text_of(view), [view.choice, number], [text], show_progress="hidden")
    save.click(_correct(view, leave_out=False), [view.choice, number, text, page], [*shown, text])
    leave_out.click(_correct(view, leave_out=True), [view.choice, number, text, page], [*shown, text])


def _loader(view: View) -> Any:
    @said_on_page
    def load(name: str | None, page: int) -> tuple[str, str, str, int]:
        if not name:
            return "", '<p class="quiet">No clips yet.</p>', "", 0
        project = view.project(name)
        found = clips.clips_of(project)
        last = max(0, (len(found) - 1) // render.CLIPS_ON_A_PAGE)
        page = min(max(page, 0), last)
        return (
            render.data_summary(project),
            render.clip_table(project, found, page),
            render.rejected_table(clips.rejected_of(project)),
            page,
        )

    return load


def _take(view: View) -> Any:
    @said_on_page
    def take(name: str | None, files: list[str] | None) -> tuple[str, None, str]:
        project = view.project(name)
        found = add_recordings(project, files or [])
        refused = [f"{one.name}: {one.refused}" for one in found if one.refused]
        lines = [render.note(line, "bad") for line in refused]
        taken = len(found) - len(refused)
        if taken:
            lines.insert(0, render.note(f"{taken:,} file{'s' if taken != 1 else ''} added. Next: press “Make clips”."))
        if refused:
            lines.append(render.note(f"Accepted are {', '.join(ACCEPTED_SUFFIXES)}."))
        return "".join(lines), None, render.data_summary(project)

    return take


def _make(view: View) -> Any:
    @said_on_page
    def make(name: str | None, recogniser: str, language: str) -> str:
        project = view.project(name)
        jobs.start(project, orders.prepare_job(project, recogniser, language.strip().lower() or "en"))
        return render.status_line(project, jobs.status(project))

    return make


def _text_of(view: View) -> Any:
    @said_on_page
    def text_of(name: str | None, number: float | None) -> str:
        found = clips.clips_of(view.project(name)) if name else []
        at = int(number or 0)
        return found[at - 1].text if 1 <= at <= len(found) else ""

    return text_of


def _correct(view: View, *, leave_out: bool) -> Any:
    load = _loader(view)

    @said_on_page
    def correct(name: str | None, number: float | None, text: str, page: int) -> tuple[str, str, str, int, str]:
        project = view.project(name)
        found, at = clips.clips_of(project), int(number or 0)
        if 1 <= at <= len(found):
            clips.correct(project, found[at - 1].audio, None if leave_out else text)
            gradio().Info(f"Clip {at} is left out." if leave_out else f"The text of clip {at} is saved.")
        else:
            gradio().Warning(f"There is no clip {at}; the table has {len(found)}.")
        return (*load(name, page), _text_of(view)(name, number))

    return correct
