"""`prepare`: from what people have to what `train` takes.

    DIR/
      train.jsonl  validation.jsonl     the rows
      rejected.jsonl                    what is not used, and why
      report.html                       all of it to look at and to listen to
      clips/RECORDING/0000.flac         24 kHz, mono
      recordings/RECORDING.json         what became of each recording: what a second run does not do again
      prepare.yaml                      the settings, to be repeated with --config
      source.txt                        what it was made of: no other source is mixed in

Recordings are done in processes, each by itself (`preparation/job.py`); then all records together become rows.
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
from vibevoice_finetune.preparation.job import (
    CLIPS_FOLDER,
    RECORDS_FOLDER,
    JobSettings,
    digest_of,
    process,
    read_record,
    record_path,
)
from vibevoice_finetune.preparation.quality import compare_clips, leave_out
from vibevoice_finetune.preparation.recordings import Record, Recording, Source
from vibevoice_finetune.preparation.report import write_page
from vibevoice_finetune.preparation.result import Prepared, reasons
from vibevoice_finetune.preparation.rows import Split, make_rows
from vibevoice_finetune.preparation.sources.find import check_exists, find, unpack
from vibevoice_finetune.preparation.sources.hub import is_saved_dataset, read_dataset

TRAIN_FILE, VALIDATION_FILE, REJECTED_FILE = "train.jsonl", "validation.jsonl", "rejected.jsonl"
REPORT_FILE = "report.html"
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
        dataset_config: of a Hugging Face data set.
        split: of it.
        speaker: who speaks where the source does not say.
        job: settings of each recording.
        validation_share: of the audio that is held out for validation.
        seed: of the choice of what is held out, and of voice prompts.
        processes: that work at the same time; None: as many as there are cores.
        reject: kinds of warnings, as of `validate`, that leave a clip out.
        shard: this job's number and how many there are, for job arrays; (0, 1) is the only one.
        use_ray: whether Ray spreads the recordings over its workers.
    """

    source: Path
    output: Path
    form: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    dataset_config: str | None = None
    split: str = "train"
    speaker: str | None = None
    job: JobSettings = field(default_factory=JobSettings)
    validation_share: float = 0.05
    seed: int = 42
    processes: int | None = None
    reject: tuple[str, ...] = ()
    shard: tuple[int, int] = (0, 1)
    use_ray: bool = False


def prepare(request: PrepareRequest, progress: Progress | None = None, say: Callable[[str], None] = print) -> Prepared:
    """Prepare a data set. What an earlier run did is not done again.

    Args:
        request: what and how.
        progress: told after every recording.
        say: told what was found, before the work begins.

    Raises:
        DataError: the source is not there, nothing was found, or nothing of it can be used.
        UserError: the output cannot be written, another run is writing there, or a package is missing.
    """
    if request.form != "dataset":
        check_exists(request.source)
    check_writable(request.output, "--output")
    require("prepare", "jinja2")  # for the report, which comes after hours
    output = Path(os.path.realpath(request.output))
    if request.source.is_dir() and output.is_relative_to(os.path.realpath(request.source)):
        raise ArgumentError(f"--output {request.output}: lies inside the source; choose a folder beside it.")
    with locked(request.output if request.shard[1] == 1 else _shard_place(request), "prepare"):
        mark = _check_same_source(request)
        source = _find(request)
        write_file(request.output / SOURCE_FILE, mark)
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
        records = tuple(leave_out(compare_clips(records), request.reject))
        split = make_rows(records, request.speaker or "speaker", request.validation_share, request.seed)
        result = Prepared(source, records, split, 0, len(before))
        write_page(request.output / REPORT_FILE, result, Path(os.path.realpath(request.source)).name, request.output)
        _write_rows(request, records, split)
        return result


def _check_same_source(request: PrepareRequest) -> str:
    """What tells this source from others: a data set is made of one, or another's would replace its rows and clips.

    Raises:
        ArgumentError: the output holds the data set of another source, or one that was not made here.
    """
    mark = request.output / SOURCE_FILE
    # Both may be moved together. A data set on the Hub lies nowhere here.
    here = request.source.exists()
    source = os.path.relpath(os.path.realpath(request.source), os.path.realpath(request.output))
    source = source if here else str(request.source)
    before = mark.read_text(encoding="utf-8").strip() if mark.is_file() else None
    if before is None and (request.output / TRAIN_FILE).exists():
        raise ArgumentError(f"--output {shown(request.output)}: holds a {TRAIN_FILE} already; choose another folder.")
    if before is not None and before != source:
        raise ArgumentError(
            f"--output {shown(request.output)}: holds the data set of {shown(before)}; choose another folder. If the "
            f"source has only been moved, write its new place, {shown(source)}, into {SOURCE_FILE} there."
        )
    return source + "\n"


def _shard_place(request: PrepareRequest) -> Path:
    return request.output / f"shard-{request.shard[0]}-of-{request.shard[1]}"


def _find(request: PrepareRequest) -> Source:
    folder = request.output / UNPACKED_FOLDER
    if request.form == "dataset" or (request.form == "auto" and is_saved_dataset(request.source)):
        return read_dataset(str(request.source), request.dataset_config, request.split, request.columns, folder)
    place = request.source
    if place.is_file() and place.suffix.lower() == ".zip":
        place = unpack(place, folder)
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


def _write_rows(request: PrepareRequest, records: Sequence[Record], split: Split) -> None:
    """Write the rows; clips and records of recordings that are gone from the source are deleted."""
    output = request.output
    write_file(output / REJECTED_FILE, _lines(split.rejected))
    if not split.training:
        failed = [record for record in records if record.failed is not None]
        why = ", ".join(f"{count:,} × {reason}" for reason, count in reasons(split.rejected)[:3])
        if len(records) == 1 and failed:
            why = f"{failed[0].recording}: {str(failed[0].failed).rstrip('.')}"
        raise DataError(f"nothing can be used: {why}; {output / REJECTED_FILE} lists every piece.")
    for name, rows in ((TRAIN_FILE, split.training), (VALIDATION_FILE, split.validation)):
        write_file(output / name, _lines(rows))
    keep = {record.recording for record in records}
    for path in sorted((output / RECORDS_FOLDER).rglob("*.json")):
        name = path.relative_to(output / RECORDS_FOLDER).with_suffix("").as_posix()
        if name not in keep:
            shutil.rmtree(output / CLIPS_FOLDER / name, ignore_errors=True)
            path.unlink()


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_settings(output: Path, values: Mapping[str, Any]) -> None:
    """Write the flags, so that `prepare --config prepare.yaml` does the same again."""
    given = {name: value for name, value in values.items() if value is not None and name not in NOT_SETTINGS}
    write_file(output / SETTINGS_FILE, yaml.safe_dump(given, sort_keys=False, allow_unicode=True))
