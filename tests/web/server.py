"""A page for the browser tests: the command as a user starts it, on a free port, with a workspace of its own."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import vibevoice_finetune
from vibevoice_finetune.tune.data_check import rows_of

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"
START_SEC = 600  # a minute on an idle machine; one that is full of other tests takes ten times as long


@dataclass(frozen=True)
class Server:
    """A page that is served."""

    address: str
    workspace: Path
    process: "subprocess.Popen[str]"


@contextmanager
def serving(workspace: Path, *words: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "vibevoice_finetune", "web", "--workspace", str(workspace), *words]
    log = workspace.with_name(f"{workspace.name}.log")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        yield Server(_address(log, process), workspace, process)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(log: Path, process: "subprocess.Popen[str]") -> str:
    end = time.monotonic() + START_SEC
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"the page is (http://\S+?)/?;", log.read_text())
        if found:
            return found[1]
        time.sleep(0.5)
    raise AssertionError(log.read_text())


def bundled_recordings(folder: Path, count: int = 6) -> list[Path]:
    """Recordings that come with the package, each with its text beside it."""
    folder.mkdir(parents=True)
    files = []
    for row in list(rows_of(SPEECH))[:count]:
        source = SPEECH.parent / row["audio"]
        audio, text = folder / source.name, folder / f"{source.stem}.txt"
        audio.write_bytes(source.read_bytes())
        text.write_text(row["text"].removeprefix("Speaker 0: "))
        files += [audio, text]
    return files
