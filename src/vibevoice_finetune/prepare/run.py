"""`prepare`: from what people have to what `train` takes.

    DIR/
      train.jsonl  validation.jsonl     the rows
      rejected.jsonl                    what is not used, and why
      clips/RECORDING/0000.flac         24 kHz, mono
      recordings/RECORDING.json         what became of each recording: what a second run does not do again
      prepare.yaml                      the settings, to be repeated with --config
      source.txt                        what it was made of: no other source is mixed in

Recordings are done in processes, each by itself (`prepare/job.py`); then all records together become rows.
"""

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from vibevoice_finetune.errors import ArgumentError, DataError, UserError, require, shown
from vibevoice_finetune.files.atomic import check_writable, write_file
from vibevoice_finetune.files.locks import locked
from vibevoice_finetune.prepare.job import (
    CLIPS_FOLDER,
    RECORDS_FOLDER,
    JobSettings,
    Record,
    digest_of,
    process,
    read_record,
    record_path,
)
from vibevoice_finetune.prepare.recordings import Recording, Source
from vibevoice_finetune.prepare.rows import Split, make_rows
from vibevoice_finetune.prepare.sources.find import find, unpack

TRAIN_FILE, VALIDATION_FILE, REJECTED_FILE = "train.jsonl", "validation.jsonl", "rejected.jsonl"
SETTINGS_FILE = "prepare.yaml"
SOURCE_FILE = "source.txt"
UNPACKED_FOLDER = "unpacked"
NOT_SETTINGS = ("processes", "shard", "ray")
"""Flags that do not change what is written."""

Progress = Callable[[int, int, float], None]
"""Recordings done, recordings in all, seconds of audio done."""


@dataclass(frozen=True)
class PrepareRequest:
    """What is to be prepared, and how.

    Attributes:
        source: a folder, a table, a zip, or one audio or video file.
        output: the folder to write into.
        form: the format of the source; "auto" looks.
        columns: names of the columns of a table, by "audio", "text" and "speaker".
        speaker: who speaks where the source does not say.
        job: settings of each recording.
        validation_share: of the audio that is held out for validation.
        seed: of the choice of what is held out, and of voice prompts.
        processes: that work at the same time; None: as many as there are cores.
        shard: this job's number and how many there are, for job arrays; (0, 1) is the only one.
        use_ray: whether Ray spreads the recordings over its workers.
    """

    source: Path
    output: Path
    form: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    speaker: str | None = None
    job: JobSettings = field(default_factory=JobSettings)
    validation_share: float = 0.05
    seed: int = 42
    processes: int | None = None
    shard: tuple[int, int] = (0, 1)
    use_ray: bool = False


@dataclass(frozen=True)
class Prepared:
    """What came of it.

    Attributes:
        source: what was found.
        records: of the recordings, in their order; of other shards too, if they are done.
        split: the rows; None while other shards are not done.
        missing: recordings that other shards have still to do.
        reused: recordings that an earlier run had done.
    """

    source: Source
    records: tuple[Record, ...]
    split: Split | None
    missing: int
    reused: int

    def lines(self) -> Iterator[str]:
        """What to tell the user."""
        audio = sum(record.duration_sec for record in self.records)
        kept = sum(clip.duration_sec for r in self.records for clip in r.clips if clip.rejected is None)
        again = f", {self.reused:,} of them done before" if self.reused else ""
        yield f"recordings: {len(self.records):,} ({_duration(audio)}){again}"
        if self.split is None:
            yield f"{self.missing:,} recordings are still to be done by other shards; the last one writes the rows"
            return
        rows, held_out = len(self.split.training), len(self.split.validation)
        yield f"clips: {_duration(kept)} kept; rows: {rows:,} for training, {held_out:,} for validation"
        for speaker, (train_sec, validation_sec) in self.split.seconds.items():
            yield f"  {speaker}: {_duration(train_sec)} for training, {_duration(validation_sec)} for validation"
        for reason, count in _reasons(self.split.rejected):
            yield f"  not used: {count:,} × {reason}"


def prepare(request: PrepareRequest, progress: Progress | None = None, say: Callable[[str], None] = print) -> Prepared:
    """Prepare a data set. What an earlier run did is not done again.

    Args:
        request: what and how.
        progress: told after every recording.
        say: told what was found, before the work begins.

    Raises:
        DataError: nothing was found, or nothing of it can be used.
        UserError: the output cannot be written, another run is writing there, or a package is missing.
    """
    check_writable(request.output, "--output")
    if (
        request.source.resolve() in (request.output.resolve(), *request.output.resolve().parents)
        and request.source.is_dir()
    ):
        raise ArgumentError(f"--output {request.output}: lies inside the source; choose a folder beside it.")
    with locked(request.output if request.shard[1] == 1 else _shard_place(request), "prepare"):
        _check_same_source(request)
        source = _find(request)
        say(source.summary())
        for ignored in source.ignored[:5]:
            say(f"  not used: {ignored.where}: {ignored.reason}")
        if len(source.ignored) > 5:
            say(f"  not used: {len(source.ignored) - 5:,} more")
        _check_texts(source, request.job)
        own = [r for number, r in enumerate(source.recordings) if number % request.shard[1] == request.shard[0]]
        before = {r.name for r in own if _done(request, r) is not None}
        done = {record.recording: record for record in _run(request, own, progress)}
        for recording in source.recordings:
            if recording.name not in done and (found := _done(request, recording)) is not None:
                done[recording.name] = found
        records = tuple(done[r.name] for r in source.recordings if r.name in done)
        missing = len(source.recordings) - len(records)
        if missing:
            return Prepared(source, records, None, missing, len(before))
        split = make_rows(records, request.speaker or "speaker", request.validation_share, request.seed)
        _write(request, records, split)
        return Prepared(source, records, split, 0, len(before))


def _check_same_source(request: PrepareRequest) -> None:
    """A data set is made of one source; another's would take the place of its rows and clips.

    Raises:
        ArgumentError: the output holds the data set of another source, or one that was not made here.
    """
    mark = request.output / SOURCE_FILE
    source = os.path.relpath(request.source.resolve(), request.output.resolve())  # both may be moved together
    before = mark.read_text(encoding="utf-8").strip() if mark.is_file() else None
    if before is None and (request.output / TRAIN_FILE).exists():
        raise ArgumentError(f"--output {shown(request.output)}: holds a {TRAIN_FILE} already; choose another folder.")
    if before is not None and before != source:
        raise ArgumentError(
            f"--output {shown(request.output)}: holds the data set of {shown(before)}; choose another folder. If the "
            f"source has only been moved, write its new place, {shown(source)}, into {SOURCE_FILE} there."
        )
    if before is None:
        write_file(mark, source + "\n")


def _shard_place(request: PrepareRequest) -> Path:
    return request.output / f"shard-{request.shard[0]}-of-{request.shard[1]}"


def _find(request: PrepareRequest) -> Source:
    place = request.source
    if place.is_file() and place.suffix.lower() == ".zip":
        folder = request.output / UNPACKED_FOLDER
        if not folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            place = unpack(place, folder)
        else:
            inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
            place = inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
    return find(place, request.form, request.columns)


def _check_texts(source: Source, job: JobSettings) -> None:
    """Say before hours of cutting that there is nobody to write the texts."""
    silent = [r for r in source.recordings if r.text is None and not r.passages]
    long_text = [r for r in source.recordings if r.text is not None and not r.is_clip]
    if job.recogniser == "none" and (silent or long_text):
        count = len(silent) or len(long_text)
        kind, has = "recording" if silent else "transcript", "text" if silent else "times"
        what = f"{count:,} {kind} has no {has}" if count == 1 else f"{count:,} {kind}s have no {has}"
        raise ArgumentError(
            f"{what}; name a recogniser: --recognizer small (Whisper, any language) or --recognizer moonshine "
            "(English, without a download)."
        )


def _done(request: PrepareRequest, recording: Recording) -> Record | None:
    if not record_path(request.output, recording).is_file():
        return None
    try:
        return read_record(request.output, recording, digest_of(recording, request.job))
    except OSError:
        return None


def _run(request: PrepareRequest, recordings: Sequence[Recording], progress: Progress | None) -> Iterable[Record]:
    work = partial(process, settings=request.job, output=request.output)
    total, done, seconds = len(recordings), 0, 0.0
    for record in _by_ray(work, recordings) if request.use_ray else _by_processes(request, work, recordings):
        done, seconds = done + 1, seconds + record.duration_sec
        if progress is not None:
            progress(done, total, seconds)
        yield record


def _by_processes(
    request: PrepareRequest, work: Callable[[Recording], Record], recordings: Sequence[Recording]
) -> Iterator[Record]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = min(request.processes or cores, len(recordings))
    if processes <= 1:
        yield from map(work, recordings)
        return
    # The longest first, so that no process is left alone with it at the end.
    ordered = sorted(recordings, key=lambda recording: -recording.path.stat().st_size)
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("forkserver"), initializer=_begin_worker)
    try:
        futures = [pool.submit(work, recording) for recording in ordered]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended, probably because memory ran out; try again with a smaller --processes: what is "
            "done is kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """One thread a process; Ctrl-C is answered by the parent alone; a killed parent takes its workers with it.

    A worker that outlived its parent would write beside the workers of the next run.
    """
    import torch  # noqa: PLC0415  only in a worker, where nothing else is loaded

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _by_ray(work: Callable[[Recording], Record], recordings: Sequence[Recording]) -> Iterator[Record]:
    """Ray's workers, here or on the cluster that RAY_ADDRESS names; source and output lie on a disk that all share."""
    ray: Any = require("ray", "ray")
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    remote = ray.remote(num_cpus=1)(work.func if isinstance(work, partial) else work)
    keywords = work.keywords if isinstance(work, partial) else {}
    waiting = [remote.remote(recording, **keywords) for recording in recordings]
    while waiting:
        finished, waiting = ray.wait(waiting)
        yield from ray.get(finished)


def _write(request: PrepareRequest, records: Sequence[Record], split: Split) -> None:
    """Write the rows; clips and records of recordings that are gone from the source are deleted."""
    output = request.output
    if not split.training:
        failed = [record.failed for record in records if record.failed is not None]
        counts = [f"{count:,} × {reason}" for reason, count in _reasons(split.rejected)[:3]]
        reasons = failed[0].rstrip(".") if len(records) == 1 and failed else ", ".join(counts)
        write_file(output / REJECTED_FILE, _lines(split.rejected))
        raise DataError(f"nothing can be used: {reasons}; {output / REJECTED_FILE} lists every piece.")
    for name, rows in (
        (TRAIN_FILE, split.training),
        (VALIDATION_FILE, split.validation),
        (REJECTED_FILE, split.rejected),
    ):
        write_file(output / name, _lines(rows))
    keep = {record.recording for record in records}
    for path in sorted((output / RECORDS_FOLDER).rglob("*.json")):
        name = path.relative_to(output / RECORDS_FOLDER).with_suffix("").as_posix()
        if name not in keep:
            shutil.rmtree(output / CLIPS_FOLDER / name, ignore_errors=True)
            path.unlink()


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _reasons(rejected: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    """Reasons without their numbers and texts, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rejected:
        kind = str(row["reason"]).split(":")[0].split(" (")[0]
        kind = " ".join(word for word in kind.split() if not word[:1].isdigit()) if "at least" in kind else kind
        counts[kind] = counts.get(kind, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])


def _duration(seconds: float) -> str:
    """A length as a person says it.

    >>> _duration(75), _duration(7_260)
    ('1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def write_settings(output: Path, values: Mapping[str, Any]) -> None:
    """Write the flags, so that `prepare --config prepare.yaml` does the same again."""
    given = {name: value for name, value in values.items() if value is not None and name not in NOT_SETTINGS}
    write_file(output / SETTINGS_FILE, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
