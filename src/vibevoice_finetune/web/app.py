"""The page: a project at the top, a line that says what is going on, and four tabs in the order of the work.

Nothing is kept in the page: it starts commands as processes and reads their files. A closed browser, a restarted server
and a second tab all see the same.
"""

import hmac
import os
import signal
import threading
from pathlib import Path
from typing import Any

from vibevoice_finetune.errors import UserError
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.web import data_tab, jobs, listen_tab, render, result_tab, train_tab
from vibevoice_finetune.web.view import View, gradio, said_on_page
from vibevoice_finetune.web.workspace import Workspace

TICK_SEC = 2.0
UPLOADS = ".uploads"
KEEP_UPLOADS_SEC = 24 * 3600
TITLE = "VibeVoice fine-tuning"
SUMMARY = "From recordings to a voice of its own, in four steps."


def serve(folder: Path, host: str, port: int | None, password: str | None) -> None:
    """Serve the page until a signal ends it.

    Args:
        folder: the workspace.
        host: address to listen at.
        port: None: the first free one from 7860 on.
        password: that visitors must give; None: everybody who reaches the address may use the page.

    Raises:
        UserError: gradio is not installed, the port is taken, or another page has the workspace.
    """
    workspace = Workspace(folder)
    keep_to_itself(workspace)
    gr = gradio()
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with locked(workspace.root, "web", inside=True):
        page = build(workspace)
        auth = None if password is None else (lambda _name, given: hmac.compare_digest(given, password))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                auth=auth,
                auth_message="Any name; the password is that of --password.",
                allowed_paths=[str(workspace.root)],
                theme=theme(gr),
                css_paths=[Path(__file__).with_name("style.css")],
                footer_links=[],
                run_history=False,  # it would keep what is typed, tokens too, in the browser
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                quiet=True,
                prevent_thread_lock=True,
                inbrowser=False,
            )
        except OSError as error:
            raise UserError(f"--port {port}: the page cannot be served there: {error}") from error
        print(f"the page is {address}; the workspace is {workspace.root}; Ctrl-C ends the page", flush=True)  # noqa: T201
        stopped.wait()
        page.close(verbose=False)


def keep_to_itself(workspace: Workspace) -> None:
    """Before gradio is imported: no telemetry, no check for versions, temporary files in the workspace."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.root / UPLOADS)
    os.environ["GRADIO_SHARE"] = "False"


def theme(gr: Any) -> Any:
    """The reader's own fonts, and colours with enough contrast."""
    return gr.themes.Default(
        primary_hue="indigo",
        neutral_hue="slate",
        font=["system-ui", "Segoe UI", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
        button_cancel_text_color="white",
        button_cancel_background_fill_dark="#b91c1c",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
    )


def build(workspace: Workspace) -> Any:
    """The page, not served yet."""
    gr = gradio()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, KEEP_UPLOADS_SEC)) as page:
        gr.HTML(f"<h1>{TITLE}</h1><p>{SUMMARY}</p>", elem_classes="title")
        with gr.Row():
            choice = gr.Dropdown([], label="Project", value=None, elem_id="project")
            new = gr.Textbox(label="Name of a new project", placeholder="anna", max_length=60, max_lines=1)
            create = gr.Button("Create the project", scale=0, min_width=180, elem_classes="beside")
        status = gr.HTML(elem_id="status")
        tick = gr.Timer(TICK_SEC)
        seen = gr.State("")
        view = View(workspace, choice, status, tick, seen)
        with gr.Tabs():
            for title, tab in (
                ("Data", data_tab),
                ("Train", train_tab),
                ("Listen", listen_tab),
                ("Result", result_tab),
            ):
                with gr.Tab(title):
                    tab.build(view)
        page.load(_projects(view), [choice], [choice])
        create.click(_create(view), [new], [choice, new])
        new.submit(_create(view), [new], [choice, new])
        tick.tick(_status(view), [choice, seen, status], [status, seen], show_progress="hidden")
        choice.change(_status(view), [choice, seen, status], [status, seen], show_progress="hidden")
    return page


def _projects(view: View) -> Any:
    def projects(chosen: str | None) -> Any:
        names = view.workspace.names()
        return gradio().update(choices=names, value=chosen if chosen in names else next(iter(names), None))

    return projects


def _create(view: View) -> Any:
    @said_on_page
    def create(name: str) -> tuple[Any, str]:
        project = view.workspace.create(name)
        return gradio().update(choices=view.workspace.names(), value=project.name), ""

    return create


def _status(view: View) -> Any:
    """The line on top; `seen` changes when a job has begun or ended, and with it what the tabs show."""

    def show(name: str | None, seen: str, shown: str) -> tuple[Any, Any]:
        gr = gradio()
        project = view.project(name) if name else None
        state = jobs.status(project) if project else jobs.Status()
        line = render.status_line(project, state)
        now = f"{name} {state.kind} {state.running} {state.step} {state.code} {state.seconds}"
        return gr.skip() if line == shown else line, gr.skip() if now == seen else now

    return said_on_page(show)
