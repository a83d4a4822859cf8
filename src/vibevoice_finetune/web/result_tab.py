"""The tab Result: did it help, and taking it along."""

import html
import zipfile
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.atomic import writing_file
from vibevoice_finetune.tune import result
from vibevoice_finetune.tune.words import EVALUATION
from vibevoice_finetune.web import jobs, orders, render
from vibevoice_finetune.web.view import View, gradio, said_on_page
from vibevoice_finetune.web.workspace import Project


def build(view: View) -> None:
    """Add the tab's parts to the page under construction."""
    gr = gradio()
    gr.Markdown(
        "### Did it help?\nBase model and checkpoints say sentences that were held out; a recogniser and a speaker "
        "encoder judge them, and the best checkpoint becomes the result."
    )
    judge = gr.Button("Judge the result", variant="primary")
    verdict = gr.HTML()
    show = gr.Button("Show the report here")
    report = gr.HTML(elem_classes="report")
    gr.Markdown("### Take it along")
    with gr.Row():
        pack = gr.Button("Make a zip of the result")
        download = gr.DownloadButton("Download the zip", visible=False, variant="primary")
        merge = gr.Button("Merge into a whole model")
    how = gr.HTML()
    with gr.Accordion("Put it on the Hugging Face Hub", open=False):
        repository = gr.Textbox(label="Repository, as in me/my-voice")
        token = gr.Textbox(label="Token with write access; used once, never stored", type="password")
        private = gr.Checkbox(True, label="Private")
        push = gr.Button("Upload")
        pushed = gr.HTML()

    judge.click(_judge(view), [view.choice], [view.status])
    view.seen.change(_verdict(view), [view.choice], [verdict, how, download], show_progress="hidden")
    view.choice.change(lambda: "", None, [report], show_progress="hidden")
    show.click(_report(view), [view.choice], [report])
    pack.click(_pack(view), [view.choice], [download])
    merge.click(_merge(view), [view.choice], [view.status])
    push.click(_push(view), [view.choice, repository, token, private], [pushed, token])


def _judge(view: View) -> Any:
    @said_on_page
    def judge(name: str | None) -> str:
        project = view.project(name)
        recogniser, language = orders.heard_by(project)
        jobs.start(project, orders.evaluate_job(project, recogniser, language))
        return render.status_line(project, jobs.status(project))

    return judge


def _verdict(view: View) -> Any:
    @said_on_page
    def verdict(name: str | None) -> tuple[str, str, Any]:
        gr = gradio()
        if not name:
            return "", "", gr.update(visible=False)
        project = view.project(name)
        lines = result.verdict(project.run / EVALUATION / "report.json")
        said = "".join(render.note(line) for line in lines) or '<p class="quiet">Not judged yet.</p>'
        planned = orders.read_plan(project.run)
        has_result = planned is not None and (project.folder / result.RESULT).is_dir()
        use = ""
        if has_result and planned is not None:
            commands = "\n".join(result.how_to_use(project.folder, planned[0], None))
            use = f"<h4>How to use it elsewhere</h4><div class='wide'><pre>{html.escape(commands)}</pre></div>"
        return said, use, gr.update(visible=False)

    return verdict


def _report(view: View) -> Any:
    @said_on_page
    def report(name: str | None) -> str:
        page = view.project(name).run / EVALUATION / "index.html"
        if not page.is_file():
            raise UserError("There is no report yet; press “Judge the result”.")
        inside = html.escape(page.read_text(encoding="utf-8"), quote=True)
        return f'<iframe title="Report" sandbox="allow-scripts allow-downloads" srcdoc="{inside}"></iframe>'

    return report


def _pack(view: View) -> Any:
    @said_on_page
    def pack(name: str | None) -> Any:
        return gradio().update(value=str(make_zip(view.project(name))), visible=True)

    return pack


def make_zip(project: Project) -> Path:
    """The result and its report in one file, not compressed: weights do not get smaller.

    Raises:
        UserError: nothing was trained.
    """
    folder = project.folder / result.RESULT
    if not folder.is_dir():
        raise UserError("Nothing is trained yet: start a training on the Train tab first.")
    target = project.folder / f"{project.name}.zip"
    report = project.folder / result.REPORT
    with writing_file(target) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, Path(project.name) / path.relative_to(folder))
        if report.is_file():
            archive.write(report, Path(project.name) / "report.html")
    return target


def _merge(view: View) -> Any:
    @said_on_page
    def merge(name: str | None) -> str:
        project = view.project(name)
        jobs.start(project, orders.merge_job(project))
        return render.status_line(project, jobs.status(project))

    return merge


def _push(view: View) -> Any:
    @said_on_page
    def push(name: str | None, repository: str, token: str, private: bool) -> tuple[str, str]:
        from vibevoice_finetune.export.upload import Upload, push_result

        project = view.project(name)
        if not (project.folder / result.RESULT).is_dir():
            raise UserError("Nothing is trained yet: start a training on the Train tab first.")
        if not repository.strip() or not token.strip():
            raise UserError("Write the repository, as in me/my-voice, and a token with write access.")
        address = push_result(project.folder / result.RESULT, Upload(repository.strip(), private, None, token.strip()))
        return render.note(f"Uploaded: {address}", "good"), ""

    return push
