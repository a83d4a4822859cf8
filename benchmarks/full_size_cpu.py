"""Two training steps of a full-size model on the CPU, as a user would start them: how much memory, how long.

A random checkpoint of the 1.5B shape, original layout, bf16 (5.4 GB) is written to a temporary folder; then the real
command line trains on a few of the bundled clips while its memory is read from outside. No GPU is needed, about 15 GB
of memory and 6 GB of disk are.

    python -m benchmarks.full_size_cpu

Training is in bf16 where the processor has arithmetic for it (AVX-512), else in float32: without it, a product of bf16
matrices in the backward pass runs at 0.4 GFLOP/s, one in float32 at 60, and a step would take hours.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.ceiling import has_bf16
from benchmarks.watch import Peak, Watch
from vibevoice_finetune.base_model.random_model import write_random_model
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.memory.predict import predict

AIM_GB = 14.0
DISK_NEEDED = {"tiny": 10**8, "1.5b": 7 * 10**9, "7b": 24 * 10**9}
SPEECH = Path(__file__).parents[1] / "src" / "vibevoice_finetune" / "demo" / "speech" / "speech.jsonl"
PHASE_START, PHASE_ENCODE, PHASE_LOAD, PHASE_REPORT = "start, checks, fingerprint", "encode", "load", "prepare loop"


@dataclass(frozen=True)
class Mark:
    """How the watcher sees, from outside, that a phase ended and the next began."""

    next_phase: str
    file: Path | None = None
    num_lines: int = 0
    stderr_text: str = ""


def main() -> None:
    """Write the checkpoint, run the training, write the result."""
    flags = parse_flags()
    # Leave through the `finally` and `with` below, which end the training and remove its folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with tempfile.TemporaryDirectory(prefix="vibevoice-full-size-", dir=flags.work_dir) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < DISK_NEEDED[flags.size]:
            sys.exit(
                f"{free / 1e9:.1f} GB free in {folder}, {DISK_NEEDED[flags.size] / 1e9:.0f} needed; see --work_dir"
            )
        began = time.monotonic()
        write_random_model(folder / "model", flags.size, torch.bfloat16)
        write_sec = time.monotonic() - began
        checkpoint_bytes = sum(path.stat().st_size for path in (folder / "model").iterdir())
        print(f"checkpoint: {checkpoint_bytes / 1e9:.2f} GB in {write_sec:.0f} s")
        write_rows(folder / "train.jsonl", flags.clips)
        words = train_words(folder, flags)
        predicted = predict(parse([*words[1:], "--use_cpu", "True"])).memory
        code, watch, seconds = run(words, folder / "out", flags.steps)
        log = (folder / "stderr.txt").read_text(encoding="utf-8")
        print(log)
        if code:
            sys.exit(f"the training ended with exit code {code}")
        metrics = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        "benchmark": "full_size_cpu",
        "malloc_mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "train_command": "vibevoice-finetune " + " ".join(word.replace(str(folder), "TMP") for word in words),
        "checkpoint": {"size": flags.size, "bytes": checkpoint_bytes, "write_sec": round(write_sec, 1)},
        "estimate_gb": round(predicted.peak / 1e9, 2),
        **measured(watch, seconds),
        "metrics": metrics,
    }
    record.write(flags.name or f"full-size-cpu-{flags.size}-{'bf16' if flags.bf16 else 'float32'}", numbers)
    print_table(watch, seconds)


def parse_flags() -> argparse.Namespace:
    """The benchmark's own flags; words after `--` go to the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=DISK_NEEDED, default="1.5b")
    parser.add_argument("--clips", type=int, default=4, help="bundled clips, about 3 s each")
    parser.add_argument("--rows", type=int, default=1, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of an optimizer step")
    parser.add_argument(
        "--bf16", type=parse_bool, default=has_bf16(torch.device("cpu")), help="train in bf16; default: as said above"
    )
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--work_dir", help="where the temporary folder goes; default: the system's place")
    parser.add_argument("--name", help="name of the result file")
    parser.add_argument("train_words", nargs="*", help="more flags for the training, after --")
    return parser.parse_args()


def parse_bool(word: str) -> bool:
    """True or False, as the training's own flags are written."""
    return {"true": True, "false": False}[word.lower()]


def write_rows(path: Path, num_clips: int) -> None:
    """A JSONL file of the first bundled clips, with absolute paths."""
    rows = [json.loads(line) for line in SPEECH.read_text(encoding="utf-8").splitlines()][:num_clips]
    for row in rows:
        row["audio"] = str(SPEECH.parent / row["audio"])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_words(folder: Path, flags: argparse.Namespace) -> list[str]:
    """The command line after the program's name."""
    return [
        "train",
        *("--model_name_or_path", str(folder / "model")),
        *("--train_jsonl", str(folder / "train.jsonl")),
        *("--output_dir", str(folder / "out")),
        "--do_train",
        *("--bf16", str(flags.bf16)),
        *("--max_steps", str(flags.steps)),
        *("--per_device_train_batch_size", str(flags.rows)),
        *("--gradient_accumulation_steps", str(flags.accumulation)),
        *("--train_diffusion_head", "True"),
        *("--ddpm_batch_mul", "4"),
        *("--learning_rate", "2.5e-5"),
        *("--logging_steps", "1"),
        *("--save_strategy", "no"),
        *("--report_to", "none"),
        *flags.train_words,
    ]


def run(words: list[str], output_dir: Path, num_steps: int) -> tuple[int, Watch, float]:
    """Run the command and watch its memory by phase; the exit code, the watch, and the seconds it took."""
    log = output_dir.parent / "stderr.txt"
    program = Path(sys.executable).with_name("vibevoice-finetune")
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen([str(program), *words], stdout=stderr, stderr=stderr)
    watch = Watch(process.pid)
    watch.enter(PHASE_START)
    stopped = threading.Event()
    marks = threading.Thread(target=follow, args=(watch, phases(output_dir, num_steps), log, stopped))
    marks.start()
    try:
        code = process.wait()
    finally:  # also when this process is told to end: the training has 10 GB of memory
        process.kill()
        stopped.set()
        marks.join()
    return code, watch, watch.stop()


def phases(output_dir: Path, num_steps: int) -> Iterator[Mark]:
    """What ends each phase, in order."""
    yield Mark(PHASE_ENCODE, file=output_dir / "latents")
    yield Mark(PHASE_LOAD, stderr_text="latents: ")
    yield Mark(PHASE_REPORT, file=output_dir / "arguments.yaml")
    yield Mark("step 1", stderr_text="LoRA  ")
    for step in range(1, num_steps + 1):
        following = f"step {step + 1}" if step < num_steps else "save"
        yield Mark(following, file=output_dir / "metrics.jsonl", num_lines=step)


def follow(watch: Watch, marks: Iterator[Mark], log: Path, stopped: threading.Event) -> None:
    """Enter each phase when its mark shows; a phase whose mark never shows goes on until the end."""
    for mark in marks:
        while not reached(mark, log):
            if stopped.wait(0.05):
                return
        watch.enter(mark.next_phase)


def reached(mark: Mark, log: Path) -> bool:
    """Whether the mark is there to be seen."""
    if mark.file is None:
        return mark.stderr_text in log.read_text(encoding="utf-8")
    if not mark.num_lines:
        return mark.file.exists()
    return mark.file.exists() and len(mark.file.read_text(encoding="utf-8").splitlines()) >= mark.num_lines


def durations(watch: Watch, seconds: float) -> dict[str, float]:
    """Seconds of each phase."""
    began = list(watch.began_sec.values())
    return {phase: end - start for phase, start, end in zip(watch.began_sec, began, [*began[1:], seconds], strict=True)}


def measured(watch: Watch, seconds: float) -> dict[str, object]:
    """The numbers for the result file; bytes and seconds."""
    passed = durations(watch, seconds)
    peak = whole(watch)
    return {
        "aim_gb": AIM_GB,
        "peak_gb": {name: round(value / 1e9, 2) for name, value in asdict(peak).items()},
        "seconds": round(seconds, 1),
        "phases": [
            {"phase": phase, "seconds": round(passed[phase], 1)}
            | {f"{name}_gb": round(value / 1e9, 2) for name, value in asdict(peak).items()}
            for phase, peak in watch.peaks.items()
        ],
    }


def whole(watch: Watch) -> Peak:
    """The peak over all phases."""
    peaks = watch.peaks.values()
    return Peak(
        max(peak.resident for peak in peaks),
        max(peak.anonymous for peak in peaks),
        max(peak.file_backed for peak in peaks),
    )


def print_table(watch: Watch, seconds: float) -> None:
    """The phases on the terminal, in GB."""
    passed = durations(watch, seconds)
    print(f"{'phase':28} {'seconds':>8} {'resident':>9} {'anonymous':>10} {'files':>7}   GB at the peak")
    for phase, peak in [*watch.peaks.items(), ("all", whole(watch))]:
        print(
            f"{phase:28} {passed.get(phase, seconds):8.1f} {peak.resident / 1e9:9.2f} {peak.anonymous / 1e9:10.2f} "
            f"{peak.file_backed / 1e9:7.2f}"
        )


if __name__ == "__main__":
    main()
