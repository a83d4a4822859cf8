"""`prepare` killed at random moments and started again writes the same files, bit for bit."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.preparation.recording import record

pytest.importorskip("silero_vad")
LIMIT_SEC = 240


def command(source: Path, output: Path) -> list[str]:
    words = [sys.executable, "-m", "vibevoice_finetune", "prepare", str(source), "--output", str(output)]
    return [*words, "--processes", "2", "--validation_share", "0.2"]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that name the output or lie relative to it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("prepare.yaml", "source.txt"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def clips_in(folder: Path) -> int:
    return len(list(folder.rglob("*.flac")))


@pytest.mark.slow
def test_killed_at_ten_moments_the_files_are_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        truth = record(source / f"talk{number}.flac", ["alpha", "rms"], 8, seed=number)
        labels = [f"{s.start_sec:.2f}\t{s.end_sec:.2f}\t{s.text}" for s in truth]
        (source / f"talk{number}.labels.txt").write_text("\n".join(labels))
    began = time.monotonic()
    subprocess.run(command(source, tmp_path / "whole"), check=True, capture_output=True, timeout=LIMIT_SEC)
    whole_sec = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    num_clips = sum(name.endswith(".flac") for name in whole)
    rng = random.Random(0)
    in_the_middle = 0
    for number in range(10):
        output = tmp_path / f"killed{number}"
        process = subprocess.Popen(command(source, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if number % 2:  # at a random time, or once a random number of clips is there: machines differ in speed
            time.sleep(rng.uniform(0.4, 1.0) * whole_sec)
        else:
            wanted = rng.randrange(1, num_clips)
            while process.poll() is None and clips_in(output) < wanted:
                time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_the_middle += 0 < clips_in(output) < num_clips
        finished = subprocess.run(command(source, output), capture_output=True, timeout=LIMIT_SEC, check=False)
        assert finished.returncode == 0, finished.stderr
        assert contents(output) == whole
    assert in_the_middle, "no kill came while clips were written"
