"""Decoding ahead of the encoders: threads or worker processes, and how many cores a GPU needs beside it.

Real speech, end to end and cut into clips, is written in several formats; then every clip goes the way that
`latents/read_ahead.py` goes (decode, mix, resample, normalise, pad), in one thread, in several, and in as many
processes, which hand the waveforms back. Rates are seconds of audio a second, the median of the repetitions. Then what
threads may cost the encoders: the rate of small PyTorch operations in a loop, as a launching thread makes them, alone
and beside each kind of worker, and the workers' own rate meanwhile.

    python -m benchmarks.decode_ahead --speech FOLDER
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from benchmarks import record
from vibevoice_finetune.audio.decode import Floats
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio, parse_audio
from vibevoice_finetune.latents.digests import DigestCache
from vibevoice_finetune.latents.read_ahead import DecodedSource, SourceWork, decode_source
from vibevoice_finetune.latents.store import Segment

HOP = 3_200
DIGESTS = DigestCache(Path("none"))
AIM = 500.0
"""Times real time that one GPU is to encode at."""


@dataclass(frozen=True)
class Format:
    """A kind of file that data sets come in."""

    name: str
    suffix: str
    rate_hz: int
    channels: int
    subtype: str


FORMATS = (
    Format("wav 24 kHz", "wav", 24_000, 1, "PCM_16"),
    Format("wav 44.1 kHz", "wav", 44_100, 1, "PCM_16"),
    Format("flac 24 kHz", "flac", 24_000, 1, "PCM_16"),
    Format("flac 44.1 kHz stereo", "flac", 44_100, 2, "PCM_16"),
    Format("mp3 44.1 kHz", "mp3", 44_100, 1, "MPEG_LAYER_III"),
    Format("opus 48 kHz", "opus", 48_000, 1, "OPUS"),
)


def main() -> None:
    """Measure and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with flac or wav files of speech")
    parser.add_argument("--clip_sec", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=600.0, help="audio in each format")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(record.RESULTS), help="folder for the result")
    parser.add_argument("--name", default="decode-ahead-cpu", help="name of the result file")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    speech_N = read_speech(flags.speech, round(flags.seconds * SAMPLING_RATE_HZ))
    formats: list[record.Json] = []
    with tempfile.TemporaryDirectory() as name:
        for form in FORMATS:
            clips = write_clips(Path(name), form, speech_N, flags.clip_sec)
            formats.append(measure(form, clips, flags.clip_sec, flags.workers, flags.repeats))
            print(json.dumps(formats[-1]), flush=True)
    numbers: record.Json = {"benchmark": "decode_ahead", "clip_sec": flags.clip_sec, "clips": len(clips)}
    record.write(flags.name, numbers | {"workers": flags.workers, "aim": AIM, "formats": formats}, Path(flags.out))


def measure(form: Format, clips: list[SourceWork], clip_sec: float, workers: int, repeats: int) -> record.Json:
    """All numbers of a format."""
    audio_sec = len(clips) * clip_sec

    def rate(pool: Executor) -> float:
        return round(statistics.median(audio_sec / timed(lambda: work_off(pool, clips)) for _ in range(repeats)), 0)

    found: record.Json = {"format": form.name}
    for count in dict.fromkeys((1, workers)):
        with threads(count) as pool:
            found[f"threads_{count}"] = rate(pool)
        with processes(count) as pool:
            found[f"processes_{count}"] = rate(pool)
    alone = timed(lambda: [decode(work) for work in clips])
    found["one_core"] = round(audio_sec / alone, 0)
    found["cores_for_aim"] = round(AIM * alone / audio_sec, 2)
    found["operations_alone"] = operations_beside(lambda: time.sleep(1.0))[0]
    for kind, make in (("thread", threads), ("process", processes)):
        with make(1) as pool:
            operations, seconds = operations_beside(lambda pool=pool: work_off(pool, clips))  # type: ignore[misc]
        found[f"operations_beside_a_{kind}"] = operations
        found[f"{kind}_beside_operations"] = round(audio_sec / seconds, 0)
    return found


def operations_beside(job: Callable[[], object]) -> tuple[int, float]:
    """Small operations a second in this thread while a job runs, and the seconds that the job took.

    Thirty-two multiplications of small tensors, about as many operations as a block of an encoder launches, then a
    look at the job: a thread that never waits for a device.
    """
    small, number = torch.ones(64), 0
    done = threading.Event()
    seconds: list[float] = []

    def run() -> None:
        seconds.append(timed(job))
        done.set()

    runner = threading.Thread(target=run)
    began = time.perf_counter()
    runner.start()
    while not done.is_set():
        for _ in range(32):
            small = small * 1.0
        number += 32
    rate = number / (time.perf_counter() - began)
    runner.join()
    return round(rate), seconds[0]


@contextmanager
def threads(count: int) -> Iterator[Executor]:
    """Threads, as `decode_ahead` has them."""
    with ThreadPoolExecutor(count) as pool:
        yield pool


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """Processes that have imported everything; started anew rather than forked, as beside CUDA they must be."""
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        list(pool.map(warm_up, range(4 * count)))
        yield pool


def warm_up(_: int) -> None:
    """Take long enough that every process gets one."""
    time.sleep(0.2)


def decode(work: SourceWork) -> DecodedSource:
    """Decode a clip, as `decode_ahead` does."""
    return decode_source(work, HOP, DIGESTS)


def work_off(pool: Executor, clips: Sequence[SourceWork]) -> None:
    """Decode all clips; what comes back is looked at, so that it has arrived."""
    for future in [pool.submit(decode, work) for work in clips]:
        assert future.result().clips[0].waveform_N[-1] == future.result().clips[0].waveform_N[-1]


def timed(job: Callable[[], object]) -> float:
    """Seconds that a job takes."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def write_clips(folder: Path, form: Format, speech_N: Floats, clip_sec: float) -> list[SourceWork]:
    """The speech in clips of one format; files are in the page cache afterwards."""
    folder = folder / form.name.replace(" ", "-")
    folder.mkdir()
    length = int(clip_sec * SAMPLING_RATE_HZ)
    works = []
    for number, start in enumerate(range(0, len(speech_N) - length + 1, length)):
        samples_N = speech_N[start : start + length]
        if form.rate_hz != SAMPLING_RATE_HZ:
            samples_N = soxr.resample(samples_N, SAMPLING_RATE_HZ, form.rate_hz)
        path = folder / f"{number:05d}.{form.suffix}"
        container = "OGG" if form.suffix == "opus" else form.suffix.upper()
        channels_NC = np.repeat(samples_N[:, None], form.channels, axis=1)
        soundfile.write(path, channels_NC, form.rate_hz, format=container, subtype=form.subtype)
        segment = Segment(parse_audio(path, None, path.name), normalize=True, cut=None, semantic=True)
        works.append(SourceWork(segment.source, segment.source.digest(), ((number, segment),)))
    return works


def read_speech(folder: Path, num_samples: int) -> Floats:
    """The recordings end to end, over again until there are enough samples."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix in {".flac", ".wav"})
    speech_N = np.concatenate([load_audio(parse_audio(path, None, path.name)) for path in paths])
    return np.tile(speech_N, -(-num_samples // len(speech_N)))[:num_samples].astype(np.float32)


if __name__ == "__main__":
    main()
