"""What splitting work over many processes costs, simulated: ``python -m tests.long.scale``.

Clips have log-normal lengths (median 7 s, sigma 0.6, at most 60 s). Encoding: how much longer the busiest process works
than the average one when clips are split by their hash. Training: how much of the processes' time is spent waiting for
the one with the most tokens, for micro-batches of rows and for micro-batches of tokens.
"""

import json
import time
import zlib

import numpy as np

from vibevoice_finetune.data.sampler import RowBatches, TokenBatches

FRAMES_A_SEC = 7.5
OVERHEAD_TOKENS = 60


def lengths_sec(hours: float, seed: int = 0) -> np.ndarray:
    """Lengths of clips of so many hours together."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(rng.lognormal(np.log(7), 0.6, int(hours * 3600 / 7)), 60)
    return lengths[: int(np.searchsorted(np.cumsum(lengths), hours * 3600))]


def encoding(hours: float, processes: int) -> float:
    """The busiest process's audio over the mean."""
    lengths = lengths_sec(hours)
    owners = [zlib.crc32(f"{number:032x}".encode()) % processes for number in range(len(lengths))]
    work = np.bincount(owners, weights=lengths, minlength=processes)
    return float(work.max() / work.mean())


def waiting(kind: str, tokens: list[int], processes: int, steps: int = 200) -> float:
    """Share of the processes' time spent waiting for the longest micro-batch, time taken as tokens."""
    parts = []
    for rank in range(processes):
        if kind == "rows":
            batches = RowBatches(len(tokens), 8, seed=1, rank=rank, world_size=processes)
        else:
            batches = TokenBatches(tokens, 2048, seed=1, rank=rank, world_size=processes)
        sizes = []
        for draws, _ in zip(batches, range(steps), strict=False):
            sizes.append(0 if draws[0].ghost else sum(tokens[draw.row] for draw in draws))
        parts.append(sizes)
    work = np.array(parts)
    return float(1 - work.mean(axis=0).sum() / work.max(axis=0).sum())


if __name__ == "__main__":
    tokens = [OVERHEAD_TOKENS + round(FRAMES_A_SEC * length) for length in lengths_sec(20)]
    began = time.monotonic()
    TokenBatches(tokens, 2048, seed=1)
    found = {
        "encoding, busiest over mean": {
            f"{hours:,} h, {processes} processes": round(encoding(hours, processes), 3)
            for hours, processes in [(100, 8), (1_000, 8), (1_000, 64), (5_000, 64)]
        },
        "rows": len(tokens),
        "layout by tokens, seconds": round(time.monotonic() - began, 2),
        "waiting": {
            f"{kind}, {processes} processes": round(waiting(kind, tokens, processes), 3)
            for kind in ("rows", "tokens")
            for processes in (2, 8, 16)
        },
    }
    print(json.dumps(found, indent=1))
