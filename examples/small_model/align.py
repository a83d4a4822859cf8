"""Phones for the clips that came without: dynamic time warping onto flite's speech of the same sentence.

flite says where its phones end; the other engines do not. The same sentence from flite's `slt` is warped onto each clip
(log mels, mean and variance removed per mel), and its phone borders are carried over.

    python align.py --folder RUN/speech
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import torch
from spectra import mel_filters
from voices import SAMPLE_RATE_HZ, SPEAKERS, Phones, say

HOP_SAMPLES = 240
_FILTERS = mel_filters(1024, 40)
_WINDOW = torch.hann_window(1024)


def features(samples: np.ndarray) -> np.ndarray:
    """(steps, 40) log mels with mean and variance removed."""
    audio = torch.from_numpy(np.asarray(samples, dtype=np.float32))
    power = torch.stft(audio / audio.abs().max(), 1024, HOP_SAMPLES, window=_WINDOW, return_complex=True).abs()
    logs = torch.log(_FILTERS @ power + 1e-2).t()
    return ((logs - logs.mean(0)) / (logs.std(0) + 1e-3)).numpy()


def warp(reference: np.ndarray, clip: np.ndarray) -> np.ndarray:
    """For each step of the reference, the step of the clip that it falls on (mean over the path)."""
    cost = ((reference[:, None] - clip[None]) ** 2).mean(-1)
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0
    # A step along one side costs half of it more, so that the path stays near the diagonal.
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        before = np.minimum(total[i, j], np.minimum(total[i, j + 1], total[i + 1, j]) + 0.5 * cost[i, j])
        total[i + 1, j + 1] = before + cost[i, j]
    i, j, path = rows, columns, []
    while i > 0 and j > 0:
        path.append((i - 1, j - 1))
        options = (total[i - 1, j - 1], total[i - 1, j], total[i, j - 1])
        best = int(np.argmin(options))
        i, j = i - (best != 2), j - (best != 1)
    sums, counts = np.zeros(rows), np.zeros(rows)
    for row, column in path:
        sums[row] += column
        counts[row] += 1
    return sums / np.maximum(counts, 1)


def align(job: tuple[str, str]) -> Phones:
    """Phones of one clip."""
    path, text = job
    spoken, phones = say(text, SPEAKERS["slt2"])
    samples, _ = soundfile.read(path, dtype="float32")
    place = warp(features(spoken), features(samples))
    step = HOP_SAMPLES / SAMPLE_RATE_HZ
    ends = [float(np.interp(end / step, np.arange(len(place)), place)) * step for _, end in phones or []]
    return [(phone, round(end, 4)) for (phone, _), end in zip(phones or [], ends, strict=True)]


def main() -> None:
    """Write `phones.json` beside the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs = {}
    for split in ("train", "dev"):
        for line in (arguments.folder / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["phones"] is None:
                jobs[Path(row["audio"]).stem] = (str(arguments.folder / row["audio"]), row["text"])
    with ProcessPoolExecutor(arguments.workers) as pool:
        found = dict(zip(jobs, pool.map(align, jobs.values(), chunksize=16), strict=True))
    (arguments.folder / "phones.json").write_text(json.dumps(found))
    print(len(found), "clips aligned")


if __name__ == "__main__":
    main()
