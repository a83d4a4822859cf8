"""Every problem of a data set in one go.

In come rows (`read.py`), out goes a `Validation`: findings and statistics. Without `deep` no audio is decoded; lengths
come from headers. With it each recording is decoded once and reduced to numbers (`listen.py`), and the checks that
compare rows with each other follow.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ, AudioError
from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.script import num_speakers, parse_script
from vibevoice_finetune.errors import shown
from vibevoice_finetune.validation import audio_checks, duplicates, words_and_voices
from vibevoice_finetune.validation.findings import KINDS, Finding, Severity, by_kind
from vibevoice_finetune.validation.listen import Ears, Heard, Job, header_seconds, listen
from vibevoice_finetune.validation.read import ReadRows, check_rows, finding_of
from vibevoice_finetune.validation.statistics import ClipSize, Statistics, count
from vibevoice_finetune.validation.text_checks import spoken_length
from vibevoice_finetune.validation.words_and_voices import Voice, Words

FRAME_SAMPLES = 3_200
"""Of the released models: a shorter clip has no frame."""

Follow = Callable[[Iterable[Heard], int], Iterable[Heard]]
"""Shows progress: recordings as they come, and their number in all."""


@dataclass(frozen=True)
class Options:
    """How thoroughly to look.

    Attributes:
        deep: decode the audio.
        ears: a recogniser and a speaker encoder, where they are wanted; with `deep` only.
        rows_a_step: rows of an optimizer step, for the statistics.
        num_threads: that decode.
    """

    deep: bool = False
    ears: Ears = field(default_factory=Ears)
    rows_a_step: int = 8
    num_threads: int = min(8, len(os.sched_getaffinity(0)))


@dataclass(frozen=True, eq=False)
class Validation:
    """What was found.

    Attributes:
        findings: all of them.
        train, validation: statistics; None where there is no such set.
        sources: the recording at each place that a finding may name, for the report's players.
        notes: figures of recordings, by place.
        num_rows: rows that were looked at, unusable ones included.
    """

    findings: tuple[Finding, ...]
    train: Statistics
    validation: Statistics | None
    sources: dict[str, AudioSource]
    notes: dict[str, dict[str, str]]
    num_rows: int

    def count(self, severity: Severity) -> int:
        """How many findings there are of this severity."""
        return sum(KINDS[finding.kind].severity is severity for finding in self.findings)


def validate(
    train: ReadRows,
    validation: ReadRows | None = None,
    options: Options = Options(),  # frozen
    follow: Follow | None = None,
) -> Validation:
    """Look at everything.

    Args:
        train: the rows to train on, as `validation.read.read_file` and `read_hub` read them.
        validation: those to evaluate on, if there are any.
        options: how thoroughly to look.
        follow: shows progress while recordings are decoded.

    Raises:
        UserError: a package that `options.ears` needs is not installed.
    """
    read = [train] if validation is None else [train, validation]
    held_out = validation.rows if validation is not None else ()
    findings = [finding for one in read for finding in one.findings]
    rows = [*train.rows, *held_out]
    findings += check_links(rows)
    findings += duplicates.check_paths(train.rows, held_out)
    findings += duplicates.check_texts(train.rows, held_out)
    heard = _listen(rows, options, follow) if options.deep else {}
    seconds = [_seconds(row, heard, options.deep) for row in rows]
    findings += _check_rates(rows, seconds, heard)
    findings += _check_heard(train.rows, held_out, heard, _degraded(findings)) if options.deep else ()
    if not options.deep:
        for row, duration in zip(rows, seconds, strict=True):
            findings += audio_checks.check_length(duration, row.where) if duration is not None else ()
    sources = {source.where: source for row in rows for source in (row.audio, *(row.voice_prompts or ()))}
    sizes = [_size(row, duration) for row, duration in zip(rows, seconds, strict=True)]
    border = len(train.rows)
    return Validation(
        findings=tuple(_once(findings)),
        train=count([size for size in sizes[:border] if size], options.rows_a_step),
        validation=count([size for size in sizes[border:] if size], options.rows_a_step) if validation else None,
        sources=sources,
        notes={
            source.where: dict(audio_checks.describe(found.sound))
            for source in sources.values()
            if (found := heard.get(_key(source))) and found.sound
        },
        num_rows=sum(one.total for one in read),
    )


def cheap_warnings(rows: Sequence[Row]) -> list[str]:
    """What `train` says by itself: a line for each kind of warning, from texts and paths alone.

    Nothing is opened or decoded: about 15 µs a row.

    Args:
        rows: whose scripts can be parsed.
    """
    rows = list(rows)  # a data set makes each of its rows when it is asked for
    findings = [*check_rows(rows), *duplicates.check_paths(rows, ()), *duplicates.check_texts(rows, ())]
    return [
        f"{len(group):,} row{'s' if len(group) > 1 else ''}: {kind.title}, first {group[0].where}: {group[0].found}; "
        f"{kind.advice} (all of them: vibevoice-finetune validate)"
        for kind, group in by_kind(findings).items()
        if kind.severity is Severity.WARNING
    ]


def check_links(rows: Sequence[Row]) -> Iterator[Finding]:
    """Symbolic links that lead out of the folder that they lie in: copied elsewhere, the data would be incomplete."""
    for row in rows:
        for source in (row.audio, *(row.voice_prompts or ())):
            path = source.path
            if path is not None and path.is_symlink():
                target = path.resolve()
                if not target.is_relative_to(path.parent.resolve()):
                    yield Finding("outside-link", source.where, f"{shown(path)} leads to {shown(target)}")


def _listen(rows: Sequence[Row], options: Options, follow: Follow | None) -> dict[str, Heard]:
    """Every distinct recording once, targets before prompts, by `_key`."""
    jobs: dict[str, Job] = {}
    for row in rows:
        jobs.setdefault(_key(row.audio), Job(row.audio, is_target=True))
    for row in rows:
        for prompt in row.voice_prompts or ():
            jobs.setdefault(_key(prompt), Job(prompt, is_target=False))
    found: Iterable[Heard] = listen(jobs.values(), options.num_threads, options.ears)
    if follow is not None:
        found = follow(found, len(jobs))
    return dict(zip(jobs, found, strict=True))


def _degraded(findings: Iterable[Finding]) -> set[str]:
    """Places where something is wrong that explains why a model hears something else."""
    return {finding.where for finding in findings if finding.kind in words_and_voices.DEGRADING}


def _check_heard(
    train: Sequence[Row], held_out: Sequence[Row], heard: dict[str, Heard], degraded: set[str]
) -> Iterator[Finding]:
    of_sound = [finding for one in heard.values() for finding in _check_recording(one)]
    degraded = degraded | _degraded(of_sound)
    yield from of_sound
    yield from duplicates.check_prints(
        [
            (row, in_training, found.sound.fingerprint)
            for rows, in_training in ((train, True), (held_out, False))
            for row in rows
            if (found := heard[_key(row.audio)]).sound and found.source.where == row.where
        ]
    )
    rows = [*train, *held_out]
    by_row = [(row, heard[_key(row.audio)]) for row in rows]
    yield from words_and_voices.check_words(
        [
            Words(row.where, row.text, found.words, found.source.where in degraded, row.speaker)
            for row, found in by_row
            if found.words is not None
        ]
    )
    yield from words_and_voices.check_voices(
        [
            Voice(row.where, row.speaker, found.voice, found.source.where in degraded)
            for row, found in by_row
            if found.voice is not None
        ]
    )
    yield from words_and_voices.check_prompts(list(_prompt_pairs(rows, heard, degraded)))


def _prompt_pairs(
    rows: Sequence[Row], heard: dict[str, Heard], degraded: Collection[str]
) -> Iterator[tuple[Voice, Voice]]:
    def voice_of(source: AudioSource) -> Voice | None:
        found = heard[_key(source)]
        return None if found.voice is None else Voice(source.where, None, found.voice, found.source.where in degraded)

    for row in rows:
        if row.voice_prompts is None or num_speakers(parse_script(row.text, row.where)) != 1:
            continue
        target = voice_of(row.audio)
        for prompt in row.voice_prompts:
            if target is not None and (voice := voice_of(prompt)) is not None:
                yield target, voice


def _check_recording(heard: Heard) -> Iterator[Finding]:
    where = heard.source.where
    if heard.error is not None:
        yield _of_error(heard.error, where)
    elif heard.sound is not None and heard.sound.duration_sec * SAMPLING_RATE_HZ < FRAME_SAMPLES:
        yield Finding("too-short", where, f"{heard.sound.duration_sec:.2f} s; at least 0.14 s are needed")
    elif heard.sound is not None:
        yield from audio_checks.check_sound(heard.sound, where)


def _of_error(error: AudioError, where: str) -> Finding:
    found = finding_of(error, error.reason)
    kind = "unreadable-audio" if found.kind == "bad-row" else found.kind
    return replace(found, kind=kind, where=where, found=str(error).removeprefix(f"{where}: "))


def _check_rates(rows: Sequence[Row], seconds: Sequence[float | None], heard: dict[str, Heard]) -> Iterator[Finding]:
    """Levels and speaking rates; without decoding, by the whole length of the recording."""
    clips = []
    for row, duration in zip(rows, seconds, strict=True):
        found = heard.get(_key(row.audio))
        if duration is None:
            continue
        sound = found.sound if found else None
        if sound is not None and sound.cancels:
            continue
        clips.append(
            audio_checks.ClipInSet(
                where=row.where,
                speaker=row.speaker,
                level_dbfs=sound.level_dbfs if sound else None,
                speech_sec=sound.speech_sec if sound else duration,
                characters=spoken_length(row.text),
            )
        )
    return audio_checks.check_set(clips)


def _seconds(row: Row, heard: dict[str, Heard], deep: bool) -> float | None:
    if not deep:
        return header_seconds(row.audio)
    sound = heard[_key(row.audio)].sound
    return sound.duration_sec if sound else None


def _size(row: Row, duration: float | None) -> ClipSize | None:
    if duration is None:
        return None
    return ClipSize(duration, len(row.text.encode()), shown(row.speaker) if row.speaker else None)


def _key(source: AudioSource) -> str:
    """What tells recordings apart: the file, or the place where the audio stands in the data."""
    return duplicates.path_key(source) or f"\0{source.where}"


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Each kind once a place: the first."""
    seen: Counter[tuple[str, str]] = Counter()
    for finding in findings:
        seen[finding.kind, finding.where] += 1
        if seen[finding.kind, finding.where] == 1:
            yield finding
