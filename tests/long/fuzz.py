"""Hostile files by the hundred thousand: ``python -m tests.long.fuzz --minutes 20 --cases 200000 [--atheris TARGET]``.

Seeds are mutated (bits, bytes, cuts, repeats, numbers at their borders, pieces of other seeds) and read by every
target in turn, each with its share of the time. A case that raises something else than a `UserError`, takes longer
than ten seconds or asks for more than 3 GB more memory ends the run, and its bytes are kept. ``--atheris`` lets
coverage guide the mutations of one target instead. ``--command_lines 2000`` tries command lines instead of files.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import random
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import psutil

from tests.fuzz.targets import Target, make_targets, run

MORE_BYTES = 3_000_000_000
MAX_SEC = 10
WORDS = (
    b"null", b"NaN", b"-1", b"1e999", b"[]", b"{}", b'"', b"\\ud800", b"..", b"/etc/passwd", b"../" * 5, b"\x00",
    b"!!python/object/apply:os.system", b"&a [*a]", b"2024-99-99", b"9" * 400, b"[" * 3000, b"Speaker 1:", b"\xff\xfe",
    b"data", b"fmt ",
)  # fmt: skip
BORDERS = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x00",
    b"\x80\x00\x00\x00",
    b"\x01",
)


def mutate(seed: bytes, others: tuple[bytes, ...], rng: random.Random) -> bytes:
    """One to six changes of a seed."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        # Headers are at the front, so half of the changes go there.
        at = rng.randrange(max(1, min(len(data), 64 if rng.random() < 0.5 else len(data))))
        kind = rng.randrange(8)
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.choice([1, 2, 4, 16, 256])]
        elif kind == 3:
            data[at:at] = bytes(data[at : at + rng.choice([1, 4, 16, 64])]) * rng.randint(1, 4)
        elif kind == 4:
            border = rng.choice(BORDERS)
            data[at : at + len(border)] = border
        elif kind == 5:
            data[at:at] = rng.choice(WORDS)
        elif kind == 6:
            other = rng.choice(others)
            start = rng.randrange(max(1, len(other)))
            data[at:at] = other[start : start + rng.choice([4, 16, 64])]
        elif kind == 7 and rng.random() < 0.3:
            del data[at:]
    return bytes(data)


class TooLongError(BaseException):
    """A case took too much time; no kind of error that a reader might catch."""


def case(target: Target, data: bytes) -> bool:
    """One case under the limits of time and memory."""
    signal.alarm(MAX_SEC)
    try:
        return run(target, data)
    finally:
        signal.alarm(0)


def fuzz(minutes: float, cases: int, seed: int, only: str | None) -> None:
    """Run targets in turn until time or cases are used up; print the counts as JSON. The first failure ends it."""
    warnings.simplefilter("ignore")
    logging.disable()
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    ends = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as temporary:
        targets = {name: t for name, t in make_targets(Path(temporary)).items() if only in (None, name)}
        limit = psutil.Process().memory_info().vms + MORE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        while time.monotonic() < ends and counts.total() < cases:
            # The target that has had the least time is next, so that slow ones take no more than quick ones.
            name = min(targets, key=lambda name: seconds[name])
            target = targets[name]
            began = time.monotonic()
            for _ in range(50):
                data = mutate(rng.choice(target.seeds), target.seeds, rng)
                counts[name] += 1
                try:
                    accepted[name] += case(target, data)
                except BaseException:
                    path = Path(tempfile.gettempdir()) / "fuzz-failure"
                    path.write_bytes(data)
                    print(f"{name}: case {counts[name]:,} is kept as {path}", file=sys.stderr)
                    raise
            seconds[name] += time.monotonic() - began
            if counts[name] % 5000 == 0:
                gc.collect()
                print(json.dumps({"cases": counts.total(), **counts}), file=sys.stderr, flush=True)
    each = {name: {"cases": counts[name], "results": accepted[name]} for name in targets}
    print(json.dumps({"cases": counts.total(), "minutes": minutes, "targets": each}, indent=1))


def guided(name: str, cases: int) -> None:
    """Let atheris (pip install atheris) look for cases; it ends the process itself."""
    import atheris

    for module in [name for name in sys.modules if name.startswith(("vibevoice_finetune", "tests.fuzz"))]:
        del sys.modules[module]  # imported again, so that coverage is seen
    with atheris.instrument_imports(include=["vibevoice_finetune", "json", "yaml"]):
        from tests.fuzz import targets as instrumented

    target = instrumented.make_targets(Path(tempfile.mkdtemp()))[name]

    def one(data: bytes) -> None:
        instrumented.run(target, data)

    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-runs={cases}", f"-timeout={MAX_SEC}", str(corpus)], one)
    atheris.Fuzz()


def command_lines(cases: int, seed: int) -> None:
    """Try command lines, each in its time; the first that is not answered ends it."""
    from tests.fuzz.command_lines import answer, command_line, occupy

    logging.disable()
    warnings.simplefilter("ignore")
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        occupy(Path())
        for _ in range(cases):
            words = command_line(rng)
            counts[words[0]] += 1
            signal.alarm(MAX_SEC)
            try:
                answer(words)
            except BaseException:
                print(f"{words}: case {counts.total():,} of seed {seed}", file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
    print(json.dumps({"cases": counts.total(), "commands": counts}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only")
    parser.add_argument("--atheris")
    parser.add_argument("--command_lines", type=int, help="so many command lines instead of files")
    chosen = parser.parse_args()

    if chosen.atheris:
        guided(chosen.atheris, chosen.cases)
    else:

        def too_long(number: int, frame: object) -> None:
            raise TooLongError(f"longer than {MAX_SEC} s")

        signal.signal(signal.SIGALRM, too_long)
        if chosen.command_lines:
            command_lines(chosen.command_lines, chosen.seed)
        else:
            fuzz(chosen.minutes, chosen.cases, chosen.seed, chosen.only)
