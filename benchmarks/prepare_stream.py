"""How fast `prepare` is, and how little memory it takes, on one long recording.

The bundled clips are joined with pauses of 0.3 to 2 s, and a label file says what is spoken when, so nothing is
transcribed. Each length is prepared in a process of its own, whose memory is read from outside; rates are seconds of
audio a second, by the clock and by processor time.

    python -m benchmarks.prepare_stream --minutes 30 120
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

import vibevoice_finetune
from benchmarks import record
from benchmarks.watch import Watch

RATE_HZ = 24_000
SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech"
PREPARE = """
import sys
from pathlib import Path
from vibevoice_finetune.preparation.run import PrepareRequest, prepare
prepare(PrepareRequest(Path(sys.argv[1]), Path(sys.argv[2]), processes=1))
"""


def main() -> None:
    """Measure the lengths that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[30, 120])
    parser.add_argument("--output_dir", type=Path, default=record.RESULTS)
    flags = parser.parse_args()
    rows = [measure(minutes) for minutes in flags.minutes]
    for row in rows:
        print(row)
    record.write("prepare-stream-cpu", {"lengths": rows}, flags.output_dir)


def measure(minutes: float) -> dict[str, object]:
    """Prepare one recording of this length."""
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        duration_sec, sentences = write_recording(source / "talk.flac", minutes * 60)
        began, before = time.monotonic(), os.times()
        command = [sys.executable, "-c", PREPARE, str(source), str(output)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        watch = Watch(process.pid)
        watch.enter("prepare")
        code = process.wait()
        watch.stop()
        assert code == 0
        wall_sec, after = time.monotonic() - began, os.times()
        cpu_sec = after.children_user + after.children_system - before.children_user - before.children_system
        clips = len(list((output / "clips").rglob("*.flac")))
    return {
        "audio_min": round(duration_sec / 60, 1),
        "sentences": sentences,
        "clips": clips,
        "times_real_time": round(duration_sec / wall_sec),
        "times_real_time_per_core": round(duration_sec / cpu_sec),
        "peak_anonymous_mb": round(watch.peaks["prepare"].anonymous / 1e6),
    }


def write_recording(path: Path, at_least_sec: float) -> tuple[float, int]:
    """Write a recording and its labels; its length and the number of its sentences."""
    rng = np.random.default_rng(0)
    files = sorted(SPEECH.rglob("*.flac"))
    clips = [soundfile.read(file, dtype="float32")[0] for file in files]
    labels, at, number = [], 0.0, 0
    with soundfile.SoundFile(path, "w", RATE_HZ, 1) as file:
        while at < at_least_sec:
            samples = clips[number % len(clips)]
            pause = np.zeros(round(rng.uniform(0.3, 2.0) * RATE_HZ), dtype=np.float32)
            file.write(np.concatenate([pause, samples]))
            start = at + len(pause) / RATE_HZ
            at = start + len(samples) / RATE_HZ
            labels.append(f"{start:.3f}\t{at:.3f}\tSentence number {number}.")
            number += 1
    path.with_suffix(".labels.txt").write_text("\n".join(labels))
    return at, number


if __name__ == "__main__":
    main()
