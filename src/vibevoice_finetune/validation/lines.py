"""What a validation says on the terminal: problems by kind, worst first, then how much there is."""

from collections.abc import Iterator

from vibevoice_finetune.validation.findings import Severity, by_kind, counted
from vibevoice_finetune.validation.statistics import HISTOGRAM_EDGES_SEC, Statistics
from vibevoice_finetune.validation.validate import Validation

BAR = 30
MAX_SPEAKERS = 12


def report_lines(validation: Validation, max_shown: int, *, deep: bool) -> Iterator[str]:
    """The whole report, line by line.

    Args:
        validation: what was found.
        max_shown: problems of a kind that are listed; 0: all.
        deep: whether audio was decoded.
    """
    for kind, group in by_kind(validation.findings).items():
        yield f"{kind.severity}: {kind.name}, {counted(len(group), 'row')}: {kind.title}. What to do: {kind.advice}."
        shown = group if max_shown == 0 else group[:max_shown]
        yield from (f"  {finding.where}: {finding.found}" for finding in shown)
        if len(shown) < len(group):
            yield f"  … and {len(group) - len(shown):,} more (--max_shown 0 lists all)"
        yield ""
    yield from _statistics("training", validation.train)
    if validation.validation is not None:
        yield from _statistics("validation", validation.validation)
    errors, warnings = validation.count(Severity.ERROR), validation.count(Severity.WARNING)
    looked = "" if deep else " Audio was not decoded; --deep looks into it."
    yield f"{counted(validation.num_rows, 'row')}: {counted(errors, 'error')}, {counted(warnings, 'warning')}.{looked}"


def histogram(statistics: Statistics) -> list[tuple[str, int]]:
    """Lengths as (label, clips), empty ends left out."""
    edges = HISTOGRAM_EDGES_SEC
    bars = [
        (f"{low:g} to {high:g} s" if high < float("inf") else f"above {low:g} s", count)
        for low, high, count in zip(edges, edges[1:], statistics.histogram, strict=False)
    ]
    filled = [place for place, (_, count) in enumerate(bars) if count]
    return bars[filled[0] : filled[-1] + 1] if filled else []


def _statistics(name: str, found: Statistics) -> Iterator[str]:
    if found.clips == 0:
        yield f"{name}: no usable clip"
        return
    lengths = f"{found.shortest_sec:.1f} to {found.longest_sec:.1f} s, median {found.median_sec:.1f} s"
    yield f"{name}: {counted(found.clips, 'clip')}, {_duration(found.hours)}; {lengths}"
    yield (
        f"  the median row has {found.median_frames:,} frames and about {found.median_tokens:,} positions, the longest "
        f"{found.longest_frames:,} and {found.longest_tokens:,}; {counted(found.steps_an_epoch, 'step')} per epoch"
    )
    speakers = list(found.minutes_by_speaker.items())
    for speaker, minutes in speakers[:MAX_SPEAKERS]:
        yield f"  {speaker}: {minutes:,.1f} min"
    if len(speakers) > MAX_SPEAKERS:
        rest = sum(minutes for _, minutes in speakers[MAX_SPEAKERS:])
        yield f"  {len(speakers) - MAX_SPEAKERS:,} more speakers: {rest:,.1f} min"
    bars = histogram(found)
    most = max(count for _, count in bars)
    width = max(len(label) for label, _ in bars)
    for label, count in bars:
        yield f"  {label:>{width}} {'█' * -(-BAR * count // most)} {count:,}"
    yield ""


def _duration(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
