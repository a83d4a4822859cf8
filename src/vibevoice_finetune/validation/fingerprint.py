"""Whether two recordings are the same, whatever their file format, level, and the silence before them.

The idea of Wang's "An industrial-strength audio search algorithm" (ISMIR 2003): peaks of the spectrum survive encoders
and noise, pairs of them are rare enough to look up, and where two recordings are the same, many pairs agree about how
far one is shifted against the other.

Shapes: T frames, B bins, H hashes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.spectrum import Spectrum

LOW_BIN, HIGH_BIN = 9, 170
"""200 Hz to 4 kHz at 24 kHz: what telephones keep."""

REACH_FRAMES, REACH_BINS = 12, 8
FAN_OUT = 6
MAX_DISTANCE = 127
"""Frames between the two peaks of a pair: 1.3 s."""

COMMON = 40
"""A hash in more recordings than that says nothing; and it would cost the square of their number."""

COARSE_UP_TO = 2_000
"""So many recordings are compared by bins and frames in twos, which forgives small shifts of a peak. Among more, such
hashes become common by chance."""

SAMPLED_FROM = 20_000
"""Beyond so many recordings only a share of the hashes is looked at, so that time and memory stay in proportion."""

MIN_SHARE = 0.08
MIN_HASHES = 8


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Pairs of spectral peaks: two bins and a distance each (H, 3), and the frame of the first (H,)."""

    pairs_H3: NDArray[np.uint8]
    frames_H: NDArray[np.int32]


def fingerprint(spectrum_TB: Spectrum) -> Fingerprint:
    """Peaks that are the largest within ±0.13 s and ±190 Hz, each paired with the next six within 1.3 s.

    About 85 hashes a second.
    """
    power = spectrum_TB[:, LOW_BIN:HIGH_BIN] + np.float32(1e-9)
    if len(power) > 2:  # smoothed over three frames, so that a shift by part of a frame moves no peak
        power = np.concatenate([power[:1], (power[:-2] + 2 * power[1:-1] + power[2:]) / 4, power[-1:]])
    levels = np.log(power)
    highest = _sliding_max(_sliding_max(levels, REACH_FRAMES, 0), REACH_BINS, 1)
    is_peak = (levels == highest) & (levels > levels.max(initial=-20.0) - 10)  # 43 dB below the loudest
    frames, bins = np.nonzero(is_peak)
    pairs, starts = [np.zeros((0, 3), dtype=np.uint8)], [np.zeros(0, dtype=np.int32)]
    for step in range(1, FAN_OUT + 1):
        distance = frames[step:] - frames[:-step]
        near = (distance <= MAX_DISTANCE) & (distance > 0)
        pairs.append(np.stack([bins[:-step], bins[step:], distance], axis=1)[near].astype(np.uint8))
        starts.append(frames[:-step][near].astype(np.int32))
    return Fingerprint(np.concatenate(pairs), np.concatenate(starts))


def same_recordings(prints: Sequence[Fingerprint]) -> list[tuple[int, int, float]]:
    """Pairs of recordings of which one is for the most part the other.

    A pair counts if at least 8 % of the longer one's hashes are found in the other at one and the same shift (within a
    frame). Measured on 96 sentences: copies as OGG, at another level, or shifted by up to a second have 42 % or more,
    shifted and as MP3 31 %, with noise 20 dB below the speech 12 %, the same and shifted 8 % (nine of ten: 11 %).
    Different recordings have 2 % at most.

    Returns:
        (earlier number, later number, share), in order.
    """
    if len(prints) < 2:
        return []
    sizes = np.array([len(one.frames_H) for one in prints])
    step = 2 if len(prints) <= COARSE_UP_TO else 1
    pairs_H3 = np.concatenate([one.pairs_H3 for one in prints]).astype(np.uint32) // step
    hashes = (pairs_H3[:, 0] << 15 | pairs_H3[:, 1] << 7 | pairs_H3[:, 2]).astype(np.uint32)
    frames = np.concatenate([one.frames_H for one in prints]).astype(np.int64)
    owners = np.repeat(np.arange(len(prints)), sizes)
    sampled = 1 + len(prints) // SAMPLED_FROM
    kept = np.flatnonzero(hashes * np.uint32(2_654_435_761) % np.uint32(sampled) == 0)
    order = kept[np.argsort(hashes[kept], kind="stable")]
    counted, counts = _count_shifts(hashes[order], owners[order], frames[order], len(prints))
    found: dict[tuple[int, int], float] = {}
    for number in np.flatnonzero(counts * sampled >= MIN_HASHES / 2):
        pair, _ = divmod(int(counted[number]), 1 << _SHIFT_BITS)
        total = int(counts[number])
        if number + 1 < len(counted) and counted[number + 1] == counted[number] + 1:
            total += int(counts[number + 1])
        one, other = divmod(pair, len(prints))
        share = total * sampled / max(sizes[one], sizes[other])
        if total * sampled >= MIN_HASHES and share >= MIN_SHARE:
            found[one, other] = max(found.get((one, other), 0.0), float(min(share, 1.0)))
    return sorted((one, other, share) for (one, other), share in found.items())


_SHIFT_BITS = 16


def _count_shifts(
    hashes: NDArray[np.uint32], owners: NDArray[np.int64], frames: NDArray[np.int64], num_prints: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How often two recordings share a hash at a shift: keys (pair · 2^16 + shift) in order, and counts.

    All arrays are sorted by hash, and by owner among equal hashes.
    """
    borders = np.concatenate([[0], np.flatnonzero(np.diff(hashes)) + 1, [len(hashes)]])
    rare = np.repeat(np.diff(borders) <= COMMON, np.diff(borders))
    keys = [np.zeros(0, dtype=np.int64)]
    for distance in range(1, min(COMMON, len(hashes))):
        both = (hashes[distance:] == hashes[:-distance]) & rare[distance:] & (owners[distance:] != owners[:-distance])
        first = np.flatnonzero(both)
        if len(first) == 0:
            continue
        shift = np.clip(frames[first + distance] - frames[first], 1 - (1 << 15), (1 << 15) - 2) + (1 << 15)
        keys.append((owners[first] * num_prints + owners[first + distance]) << _SHIFT_BITS | shift)
    return np.unique(np.concatenate(keys), return_counts=True)


def _sliding_max(values: NDArray[np.float32], reach: int, axis: int) -> NDArray[np.float32]:
    """The largest within `reach` on either side, by doubling: a window of 2^k is two of half its width."""
    rows = np.moveaxis(values, axis, 0)
    padded = np.pad(rows, ((reach, reach), (0, 0)), constant_values=-np.inf)
    size, width = 2 * reach + 1, 1
    while 2 * width <= size:
        padded = np.maximum(padded[:-width], padded[width:])
        width *= 2
    rest = size - width
    largest = np.maximum(padded[: len(rows)], padded[rest : rest + len(rows)])
    return np.moveaxis(largest, 0, axis)
