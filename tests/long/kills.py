"""A hundred kills at random moments (`tests/crash/kills.py`): ``python -m tests.long.kills --kills 100``.

The run ends inside an epoch: seven rows to learn from are two steps an epoch, the second one smaller.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tests.crash.kills import kill_and_resume
from tests.processes import write_rows

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=float, default=4.3)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        jsonl = write_rows(base / "rows", 9)
        flags = ("--num_train_epochs", chosen.epochs, "--train_diffusion_head", "True")
        tally = kill_and_resume(base, jsonl, chosen.kills, chosen.seed, *flags)
    print(json.dumps({**vars(tally), "kills": tally.kills, "seconds": round(time.monotonic() - began)}))
