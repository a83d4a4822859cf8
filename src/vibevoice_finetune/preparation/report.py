"""`report.html`: what was kept and what was not, to look at and to listen to. One page that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.audio.span import Span
from vibevoice_finetune.files.atomic import write_file
from vibevoice_finetune.preparation.recordings import Clip, Recording
from vibevoice_finetune.preparation.result import Prepared, reason_of, reasons
from vibevoice_finetune.validation.findings import Finding, Kind
from vibevoice_finetune.validation.lines import histogram
from vibevoice_finetune.validation.report import Entry, Section, bars, data_address, template
from vibevoice_finetune.validation.statistics import ClipSize, count

KEPT_PLAYERS = 12
REJECTED_PLAYERS = 3
"""Of a reason."""

WARNED_PLAYERS = 3
"""Of a kind."""

MAX_LISTED = 100
MAX_REASONS, MAX_SPEAKERS = 20, 20
LARGEST_SOUGHT_BYTES = 200_000_000
"""In a larger file a rejected piece is not looked for: where a format cannot seek, all before it has to be decoded."""


@dataclass(frozen=True)
class Shown:
    """A clip on the page: its file or its place, what is said, its figures, and its sound as a data address."""

    place: str
    text: str
    notes: str
    player: str | None


@dataclass(frozen=True)
class Group:
    """Pieces that were left out for the same reason; of `total` only some are shown."""

    reason: str
    clips: tuple[Shown, ...]
    total: int


def write_page(path: Path, found: Prepared, title: str, output: Path) -> None:
    """Write the page.

    Args:
        path: what is there is replaced.
        found: the result, with its rows.
        title: the source's name.
        output: the folder that clips lie in.

    Raises:
        WriteError: it cannot be written.
    """
    assert found.split is not None
    kept = [clip for record in found.records for clip in record.clips if clip.rejected is None and clip.audio]
    sizes = [ClipSize(clip.duration_sec, 0, clip.speaker) for clip in kept]
    figures = count(sizes, rows_a_step=1)
    seconds = {speaker: sum(both) / 60 for speaker, both in found.split.seconds.items()}
    speakers = sorted(seconds.items(), key=lambda item: -item[1])
    by_reason = reasons(found.split.rejected)
    sections = [_section(kind, group, output) for kind, group in found.warnings().items()]
    page = template("prepare", Path(__file__).parent / "report.html.j2").render(
        title=title,
        found=found.source.summary().capitalize(),
        recorded_hours=sum(record.duration_sec for record in found.records) / 3600,
        kept_hours=figures.hours,
        kept_clips=len(kept),
        rejected=len(found.split.rejected),
        warnings=sum(section.total for section in sections),
        training=len(found.split.training),
        validation=len(found.split.validation),
        lengths=bars([(label, float(number)) for label, number in histogram(figures)] if kept else [], "{:,.0f}"),
        speakers=bars(speakers[:MAX_SPEAKERS], "{:,.1f} min"),
        more_speakers=max(0, len(speakers) - MAX_SPEAKERS),
        reasons=bars([(reason, float(number)) for reason, number in by_reason[:MAX_REASONS]], "{:,.0f}"),
        kept=[_kept(clip, output) for clip in _spread(kept, KEPT_PLAYERS)],
        sections=sections,
        groups=_groups(found, by_reason),
    )
    write_file(path, page)


def _spread(clips: Sequence[Clip], wanted: int) -> list[Clip]:
    """Clips from the whole set, at equal distances."""
    if len(clips) <= wanted:
        return list(clips)
    return [clips[number * len(clips) // wanted] for number in range(wanted)]


def _kept(clip: Clip, output: Path) -> Shown:
    figures = ", ".join(_figures(clip.figures))
    notes = f"{clip.speaker or 'speaker not named'}, {clip.duration_sec:.1f} s" + (f", {figures}" if figures else "")
    return Shown(str(clip.audio), clip.text or "", notes, _player(output / str(clip.audio)))


def _figures(figures: Mapping[str, float]) -> list[str]:
    """Figures for a reader.

    >>> _figures({"signal_to_noise_db": 41.2, "bandwidth_hz": 12_000.0})
    ['noise 41 dB below the speech', 'up to 12.0 kHz']
    """
    words = []
    if "signal_to_noise_db" in figures:
        words.append(f"noise {figures['signal_to_noise_db']:.0f} dB below the speech")
    if "bandwidth_hz" in figures:
        words.append(f"up to {figures['bandwidth_hz'] / 1000:.1f} kHz")
    if "character_error" in figures:
        words.append(f"{figures['character_error']:.0%} of the letters differ from what is heard")
    return words


def _section(kind: Kind, group: Sequence[Finding], output: Path) -> Section:
    entries = [
        Entry(finding, _player(output / finding.where) if place < WARNED_PLAYERS else None, "")
        for place, finding in enumerate(group[:MAX_LISTED])
    ]
    return Section(kind, tuple(entries), len(group))


def _groups(found: Prepared, by_reason: Sequence[tuple[str, int]]) -> list[Group]:
    assert found.split is not None
    recordings = {recording.name: recording for recording in found.source.recordings}
    groups = []
    for reason, total in by_reason:
        rows = [row for row in found.split.rejected if reason_of(row) == reason][:MAX_LISTED]
        clips = []
        for place, row in enumerate(rows):
            name = str(row["recording"])
            is_piece = "from_sec" in row
            where = f"{name}, {row['from_sec']:.1f} to {row['to_sec']:.1f} s" if is_piece else name
            player = None
            if is_piece and place < REJECTED_PLAYERS:
                player = _cut(recordings.get(name), float(row["from_sec"]), float(row["to_sec"]))
            notes = str(row["reason"])
            clips.append(Shown(where, str(row.get("text") or ""), "" if notes == reason else notes, player))
        groups.append(Group(reason, tuple(clips), total))
    return groups


def _player(path: Path) -> str | None:
    if not path.is_file():
        return None
    return data_address(AudioSource(path=path, data=None, array=None, sampling_rate_hz=None, where=str(path)))


def _cut(recording: Recording | None, start_sec: float, end_sec: float) -> str | None:
    """A piece of a recording; None where it would take long to find."""
    if recording is None or recording.path.stat().st_size > LARGEST_SOUGHT_BYTES:
        return None
    source = AudioSource(
        path=recording.path,
        data=None,
        array=None,
        sampling_rate_hz=None,
        where=recording.name,
        span=Span(start_sec, end_sec),
    )
    return data_address(source)
