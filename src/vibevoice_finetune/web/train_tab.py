"""The tab Train: what fits this machine, start and stop, and what comes of it while it runs."""

from pathlib import Path
from typing import Any

from vibevoice_finetune.tune import result
from vibevoice_finetune.tune.recipe import NAMES, purpose_of, values_of
from vibevoice_finetune.web import charts, jobs, orders, render
from vibevoice_finetune.web.view import View, gradio, said_on_page
from vibevoice_finetune.web.workspace import Project

AUTO = "auto"
MODELS = [
    ("Choose for this machine", AUTO),
    ("VibeVoice 1.5B", "microsoft/VibeVoice-1.5B"),
    ("VibeVoice 7B", "aoi-ot/VibeVoice-Large"),
    ("Small: to try everything out without a GPU", "small"),
]

START, GO_ON, AGAIN = "Start the training", "Go on with the training", "The training is done"


def build(view: View) -> None:
    """Add the tab's parts to the page under construction."""
    gr = gradio()
    gr.Markdown("### What is trained\nThe proposal below follows from this machine; you can leave it as it is.")
    with gr.Row():
        model = gr.Dropdown(MODELS, value=AUTO, label="Model")
        recipe = gr.Dropdown([(f"{name}: {purpose_of(name)}", name) for name in NAMES], value="voice", label="Recipe")
        steps = gr.Number(0, label="Steps (0: as the recipe says)", minimum=0, precision=0)
    check = gr.Button("What fits this machine?", size="sm")
    fits = gr.HTML('<p class="quiet">Press the button to count what the training needs.</p>')
    with gr.Row():
        start = gr.Button(START, variant="primary")
        stop = gr.Button("Stop (saves first)", variant="stop", interactive=False)
        anew = gr.Button("Start another run", visible=False)
    curves, samples = gr.HTML(label="Curves"), gr.HTML(label="Samples")
    with gr.Accordion("What the programs say", open=False):
        log = gr.Textbox(label="Log, its last lines", lines=12, max_lines=12, elem_classes="log", interactive=False)

    choices = [view.choice, model, recipe, steps]
    for event in (check.click, model.change, recipe.change, steps.submit):
        event(_fits, [model, recipe, steps], [fits])
    start.click(_start(view, anew=False), choices, [view.status])
    anew.click(_start(view, anew=True), choices, [view.status])
    stop.click(_stop(view), [view.choice], [view.status])
    shown = gr.State("")
    live = [curves, samples, log, shown]
    view.tick.tick(_live(view), [view.choice, shown], live, show_progress="hidden")
    view.seen.change(_buttons(view), [view.choice], [start, stop, anew], show_progress="hidden")


def plan_of(model: str, recipe: str, steps: float | None) -> Any:
    """The plan for what was chosen; brings torch, so it is asked for only then.

    Raises:
        UserError: it does not fit this machine.
    """
    from vibevoice_finetune.tune.plan import make_plan, this_machine

    fixed: dict[str, Any] = {"max_steps": int(steps)} if steps else {}
    return make_plan(this_machine(), values_of(recipe), None if model == AUTO else model, fixed)


@said_on_page
def _fits(model: str, recipe: str, steps: float | None) -> str:
    plan = plan_of(model, recipe, steps)
    return "".join(render.note(line) for line in (*plan.notes, f"Memory: {plan.memory.line()}"))


def _start(view: View, *, anew: bool) -> Any:
    @said_on_page
    def start(name: str | None, model: str, recipe: str, steps: float | None) -> str:
        project = view.project(name)
        if jobs.status(project).running:
            raise jobs.BusyError("Something is running for this project already; wait for it, or press Stop.")
        jobs.start(project, orders.train_job(project, plan_of(model, recipe, steps), anew=anew))
        return render.status_line(project, jobs.status(project))

    return start


def _buttons(view: View) -> Any:
    """What can be pressed now."""

    @said_on_page
    def buttons(name: str | None) -> tuple[Any, Any, Any]:
        gr = gradio()
        if not name:
            return gr.update(value=START, interactive=False), gr.update(interactive=False), gr.update(visible=False)
        project = view.project(name)
        running, run = jobs.status(project).running, project.run
        done = (run / result.RESULT).is_dir()
        label = AGAIN if done else GO_ON if run.is_dir() else START
        return (
            gr.update(value=label, interactive=not running and not done),
            gr.update(interactive=running),
            gr.update(visible=run.is_dir(), interactive=not running),
        )

    return buttons


def _stop(view: View) -> Any:
    @said_on_page
    def stop(name: str | None) -> str:
        project = view.project(name)
        if not jobs.stop(project):
            gradio().Info("Nothing is running.")
        return render.status_line(project, jobs.status(project))

    return stop


def _live(view: View) -> Any:
    """Curves, samples and log, drawn again only when a file has changed."""

    def live(name: str | None, shown: str) -> tuple[Any, Any, Any, Any]:
        gr = gradio()
        if not name:
            return "", "", "", ""
        project = view.project(name)
        now = f"{name} {_stamp(project)}"
        if now == shown:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        run = project.run
        return charts.draw(run / "metrics.jsonl"), render.samples(run), jobs.tail(_log(project)), now

    return said_on_page(live)


def _stamp(project: Project) -> str:
    samples = project.run / "samples"
    files = [project.run / "metrics.jsonl", _log(project), *(samples.glob("step-*/*.flac") if samples.is_dir() else ())]
    return " ".join(str(file.stat().st_mtime_ns) for file in files if file.is_file())


def _log(project: Project) -> Path:
    return project.folder / jobs.JOBS / jobs.LOG
