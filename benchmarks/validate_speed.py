"""How fast `validate --deep` is, and how much memory it takes: two hours of speech in clips of about 10 s.

The clips are bundled sentences joined with pauses, at random levels and in random order, as 24 kHz FLAC. Wall time
depends on what else the machine does, so processor time is given as well. Memory is the process's own, sampled every
0.1 s; growth counts from after the first tenth of the clips.

    python -m benchmarks.validate_speed --speech FOLDER --hours 2 --record
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import psutil
import soundfile

from benchmarks.record import write
from vibevoice_finetune.data.rows import Columns
from vibevoice_finetune.validation.listen import Heard
from vibevoice_finetune.validation.read import read_file
from vibevoice_finetune.validation.validate import Options, validate

RATE = 24_000


def build(speech: Path, folder: Path, hours: float) -> float:
    """Write clips and their list; gives the seconds of audio."""
    rng = np.random.default_rng(0)
    lines = [json.loads(line) for line in (speech / "speech.jsonl").read_text(encoding="utf-8").splitlines()]
    sentences = [(soundfile.read(speech / line["audio"], dtype="float32")[0], line) for line in lines]
    total, rows = 0, []
    while total < hours * 3600 * RATE:
        speaker = rng.choice(sorted({line["speaker"] for line in lines}))
        chosen = rng.permutation([k for k, (_, line) in enumerate(sentences) if line["speaker"] == speaker])[:3]
        gain = 10 ** (rng.uniform(-9, 0) / 20)
        parts = [np.concatenate([sentences[k][0] * gain, np.zeros(rng.integers(RATE // 4, RATE))]) for k in chosen]
        samples = np.concatenate(parts)
        name = f"{len(rows):05d}.flac"
        soundfile.write(folder / name, samples, RATE)
        text = " ".join(sentences[k][1]["text"].removeprefix("Speaker 0: ") for k in chosen)
        rows.append({"audio": name, "text": f"Speaker 0: {text}", "speaker": str(speaker)})
        total += len(samples)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return total / RATE


class Watch:
    """The process's memory while recordings are listened to."""

    def __init__(self) -> None:
        self.heard, self.total = 0, 1
        self.after_a_tenth, self.peak, self.at_the_end = 0, 0, 0
        self._done = threading.Event()

    def follow(self, heard: Iterable[Heard], total: int) -> Iterator[Heard]:
        """Count recordings as they come."""
        self.total = total
        for one in heard:
            self.heard += 1
            yield one

    def sample(self) -> None:
        """Runs in a thread until `stop`."""
        process = psutil.Process()
        while not self._done.wait(0.1):
            now = process.memory_info().rss
            if self.heard * 10 < self.total:
                self.after_a_tenth = now
            self.peak = max(self.peak, now)
            if self.heard < self.total:
                self.at_the_end = now

    def stop(self) -> None:
        """End the thread."""
        self._done.set()


def main() -> None:
    """Build, validate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="folder with speech.jsonl and the voices")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds = build(chosen.speech, folder, chosen.hours)
        watch = Watch()
        sampler = threading.Thread(target=watch.sample)
        sampler.start()
        wall, cpu = time.perf_counter(), time.process_time()
        found = validate(
            read_file(folder / "train.jsonl", Columns()),
            None,
            Options(deep=True, num_threads=chosen.threads),
            watch.follow,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        watch.stop()
        sampler.join()
    result = {
        "audio_hours": round(seconds / 3600, 3),
        "clips": found.num_rows,
        "threads": chosen.threads,
        "wall_sec": round(wall, 1),
        "processor_sec": round(cpu, 1),
        "times_real_time": round(seconds / wall),
        "times_real_time_per_processor_second": round(seconds / cpu),
        "memory_after_a_tenth_mb": round(watch.after_a_tenth / 1e6),
        "memory_when_all_are_heard_mb": round(watch.at_the_end / 1e6),
        "memory_peak_mb": round(watch.peak / 1e6),
    }
    print(json.dumps(result, indent=1))
    if chosen.record:
        write("validate-speed", result)


if __name__ == "__main__":
    main()
