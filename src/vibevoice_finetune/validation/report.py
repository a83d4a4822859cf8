"""A validation as one HTML page that needs nothing else: plots as SVG, and players for the worst rows of each kind.

The page makes no request: no script, no font, no style sheet from elsewhere; recordings are embedded as MP3.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioError, AudioSource, load_audio
from vibevoice_finetune.errors import require
from vibevoice_finetune.files.atomic import write_file
from vibevoice_finetune.validation.findings import Finding, Kind, Severity, by_kind
from vibevoice_finetune.validation.lines import histogram
from vibevoice_finetune.validation.validate import Validation

PLAYERS_A_KIND = 3
MAX_PLAYED_SEC = 15.0
MAX_LISTED = 200
MAX_SPEAKERS = 20


@dataclass(frozen=True)
class Entry:
    """One finding on the page: its recording as a data address, if it has a player, and its figures."""

    finding: Finding
    player: str | None
    notes: str


@dataclass(frozen=True)
class Section:
    """A kind with its findings; `hidden` more are not listed."""

    kind: Kind
    entries: tuple[Entry, ...]
    total: int

    @property
    def hidden(self) -> int:
        """How many findings are not on the page."""
        return self.total - len(self.entries)


@dataclass(frozen=True)
class Bar:
    """One bar of a plot: its label, its value in words, and its length as a share of the longest."""

    label: str
    value: str
    share: float


def write_page(path: Path, validation: Validation, title: str) -> None:
    """Write the page.

    Args:
        path: where to; what is there is replaced.
        validation: what was found.
        title: the data's name.

    Raises:
        UserError: jinja2 is not installed.
        WriteError: it cannot be written.
    """
    sections = [_section(kind, group, validation) for kind, group in by_kind(validation.findings).items()]
    speakers = list(validation.train.minutes_by_speaker.items())
    page = template("report", Path(__file__).parent / "report.html.j2").render(
        title=title,
        rows=validation.num_rows,
        errors=validation.count(Severity.ERROR),
        warnings=validation.count(Severity.WARNING),
        train=validation.train,
        held_out=validation.validation,
        sections=sections,
        by_kind=bars([(one.kind.name, float(one.total)) for one in sections], "{:,.0f}"),
        lengths=bars([(label, float(count)) for label, count in histogram(validation.train)], "{:,.0f}"),
        speakers=bars(speakers[:MAX_SPEAKERS], "{:,.1f} min"),
        more_speakers=max(0, len(speakers) - MAX_SPEAKERS),
    )
    write_file(path, page)


def template(extra: str, path: Path) -> Any:
    """A page's template; it may extend `page.html.j2` and import from `parts.html.j2`, which lie beside this file.

    Raises:
        UserError: jinja2 is not installed; `extra` brings it.
    """
    jinja2 = require(extra, "jinja2")
    loader = jinja2.FileSystemLoader([path.parent, Path(__file__).parent])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template(path.name)


def bars(values: Sequence[tuple[str, float]], form: str) -> list[Bar]:
    """Bars for a plot.

    >>> bars([("a", 2.0), ("b", 4.0)], "{:.0f}")
    [Bar(label='a', value='2', share=0.5), Bar(label='b', value='4', share=1.0)]
    """
    longest = max((value for _, value in values), default=0.0)
    return [Bar(label, form.format(value), value / longest if longest else 0.0) for label, value in values]


def _section(kind: Kind, group: Sequence[Finding], validation: Validation) -> Section:
    entries = []
    for place, finding in enumerate(group[:MAX_LISTED]):
        source = validation.sources.get(finding.where) if place < PLAYERS_A_KIND else None
        notes = validation.notes.get(finding.where, {})
        described = ", ".join(f"{name} {value}" for name, value in notes.items())
        entries.append(Entry(finding, data_address(source) if source else None, described))
    return Section(kind, tuple(entries), len(group))


def data_address(source: AudioSource) -> str | None:
    """The first 15 s of a recording as a ``data:`` address; None if it cannot be decoded."""
    try:
        samples = load_audio(source)[: round(MAX_PLAYED_SEC * SAMPLING_RATE_HZ)]
    except AudioError:
        return None
    encoded = io.BytesIO()
    # Every browser plays MP3, and unlike Ogg it is the same each time: an Ogg stream gets a random number.
    with soundfile.SoundFile(encoded, "w", SAMPLING_RATE_HZ, 1, format="MP3", subtype="MPEG_LAYER_III") as file:
        file.write(samples)
    return f"data:audio/mpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
