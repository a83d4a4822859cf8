"""A long run of a small model: ``python -m tests.long.soak --steps 5000``. Memory must stay flat, descriptors too.

It evaluates and saves every 250 steps, keeps two checkpoints and an average of the weights. The first fifth is warm-up;
then the median of the resident memory of each tenth of the rest may lie 2 % from the mean of all tenths.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.processes import environment, logs, python, train_words, write_rows

SHARE = 0.02


def soak(steps: int, folder: Path) -> dict[str, object]:
    """Run and watch; the measurements."""
    jsonl = write_rows(folder / "rows")
    out = folder / "out"
    every = max(1, steps // 20)
    flags = ("--max_steps", steps, "--save_strategy", "steps", "--save_steps", every, "--save_total_limit", 2)
    evaluated = ("--eval_strategy", "steps", "--eval_steps", every, "--validation_jsonl", jsonl, "--ema_decay", 0.99)
    rate = ("--learning_rate", 1e-3, "--per_device_train_batch_size", 2, "--train_diffusion_head", "True")
    command = python("vibevoice_finetune", *train_words(jsonl, out, *flags, *evaluated, *rate))
    began = time.monotonic()
    seen: list[tuple[int, int, int]] = []  # step, resident bytes, descriptors
    with (folder / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment())
        process = psutil.Process(run.pid)
        metrics = out / "metrics.jsonl"
        while run.poll() is None:
            time.sleep(0.5)
            try:
                with metrics.open("rb") as file:
                    file.seek(max(0, metrics.stat().st_size - 4000))
                    step = json.loads(file.read().splitlines()[-1])["step"]
                seen.append((step, process.memory_info().rss, process.num_fds()))
            except (OSError, ValueError, IndexError, psutil.Error):
                continue  # nothing logged yet, a line half written, or the end
    assert run.returncode == 0, (folder / "log").read_text()[-3000:]
    warm = [entry for entry in seen if entry[0] > steps / 5]
    tenths = [[e for e in warm if k <= (e[0] - steps / 5) / (steps * 0.8) * 10 <= k + 1] for k in range(10)]
    memory = [round(statistics.median(rss for _, rss, _ in tenth) / 1e6, 1) for tenth in tenths if tenth]
    descriptors = [max(number for _, _, number in tenth) for tenth in tenths if tenth]
    losses = [log["loss"] for log in logs(out) if "loss" in log]
    assert len(losses) == steps
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - began),
        "samples": len(warm),
        "resident_mb_by_tenth": memory,
        "largest_distance_percent": round(100 * max(abs(value / statistics.mean(memory) - 1) for value in memory), 2),
        "descriptors_by_tenth": descriptors,
        "loss_first_and_last": [round(losses[0], 3), round(losses[-1], 3)],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    with tempfile.TemporaryDirectory() as temporary:
        found = soak(parser.parse_args().steps, Path(temporary))
    print(json.dumps(found, indent=1))
    flat = found["largest_distance_percent"] <= 100 * SHARE
    steady = len(set(found["descriptors_by_tenth"])) <= 2 and found["descriptors_by_tenth"][-1] <= max(
        found["descriptors_by_tenth"][:2]
    )
    sys.exit(0 if flat and steady else 1)
