"""Curves of a training as pictures in a page: SVG, drawn from `metrics.jsonl`, whatever its length."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MOST_POINTS = 300
MOST_BYTES = 4_000_000
"""Of the log that is read: some 20,000 rows, its end."""

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 200, 72, 26, 12


@dataclass(frozen=True)
class Curve:
    """One figure over the steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """One picture: a title, and the figures in it by the name that its legend gives them."""

    title: str
    figures: tuple[tuple[str, str], ...]


PANELS = (
    Panel("Loss (should fall)", (("training", "loss"), ("held out", "eval_loss"))),
    Panel("Learning rate", (("learning rate", "learning_rate"),)),
    Panel(
        "Right decisions: go on, stop (should reach 1)",
        (("go on", "control_go_accuracy"), ("stop", "control_stop_accuracy")),
    ),
)


def read_curves(metrics: Path, names: Sequence[str]) -> dict[str, Curve]:
    """The figures of a log that are there, thinned out.

    Args:
        metrics: `metrics.jsonl` of a run.
        names: of the figures.
    """
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in names}
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, metrics.stat().st_size - MOST_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:  # the first line may be cut, the last one is being written
            continue
        for name in names:
            if isinstance(row.get(name), (int, float)) and row.get(name) == row.get(name):
                points[name].append((int(row["step"]), float(row[name])))
    return {name: thinned(found) for name, found in points.items() if found}


def thinned(points: Sequence[tuple[int, float]], most: int = MOST_POINTS) -> Curve:
    """At most so many points: means of neighbours.

    >>> thinned([(1, 1.0), (2, 3.0), (3, 5.0), (4, 7.0)], most=2)
    Curve(steps=(2, 4), values=(2.0, 6.0))
    """
    size = -(-len(points) // most)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return Curve(
        tuple(group[-1][0] for group in groups),
        tuple(sum(value for _, value in group) / len(group) for group in groups),
    )


def draw(metrics: Path) -> str:
    """The pictures of a run as HTML; what it says where there is nothing yet."""
    curves = read_curves(metrics, [figure for panel in PANELS for _, figure in panel.figures])
    drawn = [_panel(panel, curves) for panel in PANELS if any(figure in curves for _, figure in panel.figures)]
    if not drawn:
        return '<p class="quiet">The curves appear here after the first steps.</p>'
    return f'<div class="charts">{"".join(drawn)}</div>'


def _panel(panel: Panel, curves: dict[str, Curve]) -> str:
    own = [(label, curves[figure]) for label, figure in panel.figures if figure in curves]
    values = [value for _, curve in own for value in curve.values]
    steps = [step for _, curve in own for step in curve.steps]
    low, high, first, last = min(values), max(values), min(steps), max(steps)
    high = high if high > low else low + (abs(low) or 1.0)
    last = max(last, first + 1)

    def place(step: int, value: float) -> str:
        x = LEFT + (WIDTH - LEFT - 10) * (step - first) / (last - first)
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)
        return f"{x:.1f},{y:.1f}"

    lines = "".join(
        f'<polyline class="curve curve-{number}" points="'
        f'{" ".join(place(step, value) for step, value in zip(curve.steps, curve.values, strict=True))}"/>'
        for number, (_, curve) in enumerate(own)
    )
    ends = (place(curve.steps[-1], curve.values[-1]).split(",") for _, curve in own)  # one value alone makes no line
    lines += "".join(f'<circle class="end-{n}" cx="{x}" cy="{y}" r="3"/>' for n, (x, y) in enumerate(ends))
    said = "; ".join(f"{label}: {curve.values[0]:.3g} at first, {curve.values[-1]:.3g} now" for label, curve in own)
    legend = "".join(
        f'<span class="key key-{number}">{html.escape(label)} {curve.values[-1]:.3g}</span>'
        for number, (label, curve) in enumerate(own)
    )
    floor = HEIGHT - BOTTOM
    return (
        f'<figure class="chart"><figcaption>{html.escape(panel.title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(panel.title)}. {html.escape(said)}">'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{floor}" y2="{floor}"/>'
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{first:,}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">step {last:,}</text>'
        f"{lines}</svg><p>{legend}</p></figure>"
    )
