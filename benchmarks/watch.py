"""The memory of a process over time, read from outside, so that the process itself runs as its user would run it.

Linux counts in a process's resident memory the pages of files that it has mapped: a checkpoint's weights, read through
safetensors, appear there although they are page cache that the kernel drops when it needs room. So three numbers are
kept apart: resident (all), anonymous (what the process owns), and file-backed.
"""

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

BYTES_PER_KB = 1024


@dataclass(frozen=True)
class Memory:
    """A process's memory at one moment, in bytes; `shared` is memory files such as those of data loading workers."""

    resident: int
    anonymous: int
    file_backed: int
    shared: int


@dataclass
class Peak:
    """The largest values seen within a phase; each may be of another moment."""

    resident: int = 0
    anonymous: int = 0
    file_backed: int = 0

    def see(self, memory: Memory) -> None:
        """Take a sample in."""
        self.resident = max(self.resident, memory.resident)
        self.anonymous = max(self.anonymous, memory.anonymous)
        self.file_backed = max(self.file_backed, memory.file_backed)


def read_memory(pid: int | str = "self") -> Memory | None:
    """The memory of a process now; None if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = dict(line.split(":", 1) for line in lines if line.startswith(("VmRSS", "Rss")))
    if "VmRSS" not in values:  # a process that ended and was not yet waited for
        return None
    size = {name: int(text.split()[0]) * BYTES_PER_KB for name, text in values.items()}
    return Memory(size["VmRSS"], size["RssAnon"], size["RssFile"], size["RssShmem"])


@dataclass
class Watch:
    """Samples a process's memory in a thread, and keeps the peak of each phase.

    Attributes:
        pid: the process.
        every_sec: time between two samples.
        peaks: by phase, in the order in which the phases began.
        began_sec: when each phase began, seconds after the watch did.
    """

    pid: int | str = "self"
    every_sec: float = 0.02
    peaks: dict[str, Peak] = field(default_factory=dict)
    began_sec: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._start_sec = time.monotonic()
        self._phase = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def enter(self, phase: str) -> None:
        """From now on, samples belong to this phase."""
        self.peaks[phase] = Peak()
        self.began_sec[phase] = time.monotonic() - self._start_sec
        self._phase = phase
        if not self._thread.is_alive():
            self._thread.start()

    def stop(self) -> float:
        """End the watch; seconds that it lasted."""
        self._stop.set()
        self._thread.join()
        return time.monotonic() - self._start_sec

    def _run(self) -> None:
        while not self._stop.is_set():
            memory = read_memory(self.pid)
            if memory is not None:
                self.peaks[self._phase].see(memory)
            self._stop.wait(self.every_sec)
