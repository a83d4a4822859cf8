"""Damaged models by the thousand: ``python -m tests.long.fuzz_models --cases 2000``.

The first case that raises something else than a `UserError`, or takes longer than a minute, ends the run; its file is
kept. See `tests/fuzz/models.py`.
"""

import argparse
import random
import signal
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from tests.fuzz.models import damage, damaged, make_models, use

MAX_SEC = 60


class TooLongError(BaseException):
    """A case took too much time; no kind of error that a reader might catch."""


def too_long(number: int, frame: object) -> None:
    """Handle the alarm."""
    raise TooLongError(f"longer than {MAX_SEC} s")


def fuzz(cases: int, seed: int) -> None:
    """Run cases over all files in turn and print the counts."""
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        models = make_models(Path(temporary))
        files = [(model, name) for model in models for name in model.files]
        for case in range(cases):
            model, name = files[case % len(files)]
            data = damage((model.folder / name).read_bytes(), name.endswith(".json"), rng)
            signal.alarm(MAX_SEC)
            try:
                with damaged(model, name, data) as folder:
                    counts[f"{model.folder.name} {name}: {'used' if use(folder) else 'refused'}"] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"fuzz-failure-{name}"
                kept.write_bytes(data)
                print(f"case {case:,}: {model.folder.name}/{name} is kept as {kept}", file=sys.stderr)
                raise
            finally:
                signal.alarm(0)
    for what, count in sorted(counts.items()):
        print(f"{count:6,} {what}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    fuzz(chosen.cases, chosen.seed)
