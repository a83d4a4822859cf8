"""Who speaks when, in a recording of several people: voices are compared and put into groups.

A window of speech becomes a voice embedding (`evaluation/speaker_similarity.py`), embeddings that are close become one
speaker, and each phrase goes to the speaker of most of its windows. A change of speaker then is a border that no cut
crosses. It is meant for conversations in which people take turns; two people who speak at once are heard as one.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ
from vibevoice_finetune.audio.stream import pieces
from vibevoice_finetune.preparation.cut import Speech

Floats = NDArray[np.float32]
Encode = Callable[[Floats, int], Floats]
"""Audio (N,) and its rate in, a unit vector out."""

WINDOW_SEC = 1.6
HOP_SEC = 0.8
SHORTEST_WINDOW_SEC = 0.5
SAME_SPEAKER = 0.45
"""Cosine between the means of two groups above which they are one speaker. CAM++: 0.38 to 0.53 between speakers for
whole sentences, 0.83 to 0.88 within one; means of many windows lie closer to the latter."""

MAX_CLUSTERED = 1_500
"""Windows that are compared with one another; the others go to the nearest group."""

SMALLEST_SHARE = 0.03
"""A group with less of the speech is noise, laughter or two voices at once: its windows go to the nearest other."""


def name_speakers(
    speech: Sequence[Speech], blocks: Iterator[Floats], encode: Encode, num_speakers: int | None
) -> list[Speech]:
    """Give each stretch of speech its speaker: "speaker0", "speaker1" … in the order in which they are first heard.

    Args:
        speech: in order, from a recording of several people.
        blocks: of the recording, mono at 24 kHz.
        encode: the speaker encoder.
        num_speakers: how many there are; None: to be found.
    """
    windows = [window for number, one in enumerate(speech) for window in _windows(one, number)]
    vectors = np.zeros((len(windows), 0), dtype=np.float32)
    for number, samples in pieces(blocks, [(start, end) for start, end, _ in windows]):
        vector = encode(samples, SAMPLING_RATE_HZ)
        if not vectors.shape[1]:
            vectors = np.zeros((len(windows), len(vector)), dtype=np.float32)
        vectors[number] = vector
    if not windows:
        return list(speech)
    labels = cluster(vectors, num_speakers)
    votes: dict[int, Counter[int]] = {}
    for (start, end, owner), label in zip(windows, labels, strict=True):
        votes.setdefault(owner, Counter())[int(label)] += round((end - start) * 100)
    order: dict[int, int] = {}
    named = []
    for number, one in enumerate(speech):
        label = votes[number].most_common(1)[0][0]
        named.append(replace(one, speaker=f"speaker{order.setdefault(label, len(order))}"))
    return named


def cluster(vectors: NDArray[np.float32], num_groups: int | None) -> NDArray[np.int64]:
    """Group unit vectors: the two groups whose means are closest become one, again and again.

    Args:
        vectors: (N, D), of length 1.
        num_groups: how many groups to end with; None: until no two are closer than `SAME_SPEAKER`.

    Returns:
        The group of each, (N,).

    >>> cluster(np.eye(3, dtype=np.float32)[[0, 0, 1, 0, 1]], None).tolist()
    [0, 0, 1, 0, 1]
    """
    chosen = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), MAX_CLUSTERED)).astype(int))
    sums = vectors[chosen].astype(np.float64)
    sizes = np.ones(len(chosen))
    alive = np.ones(len(chosen), dtype=bool)
    similar = sums @ sums.T
    np.fill_diagonal(similar, -np.inf)
    while alive.sum() > (num_groups or 1):
        one, other = np.unravel_index(int(np.argmax(similar)), similar.shape)
        if num_groups is None and similar[one, other] < SAME_SPEAKER:
            break
        sums[one] += sums[other]
        sizes[one] += sizes[other]
        alive[other] = False
        similar[other, :] = similar[:, other] = -np.inf
        means = sums[alive] / np.linalg.norm(sums[alive], axis=1, keepdims=True)
        row = means @ (sums[one] / np.linalg.norm(sums[one]))
        similar[one, alive] = similar[alive, one] = row
        similar[one, one] = -np.inf
    keep = alive & (sizes >= SMALLEST_SHARE * len(chosen)) if num_groups is None else alive
    means = sums[keep if keep.any() else alive]
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    nearest: NDArray[np.int64] = np.argmax(vectors @ means.T, axis=1).astype(np.int64)
    return nearest


def _windows(speech: Speech, owner: int) -> Iterator[tuple[float, float, int]]:
    start = speech.start_sec
    while True:
        end = min(start + WINDOW_SEC, speech.end_sec)
        if end - start >= SHORTEST_WINDOW_SEC or start == speech.start_sec:
            yield start, end, owner
        if end >= speech.end_sec:
            return
        start += HOP_SEC
