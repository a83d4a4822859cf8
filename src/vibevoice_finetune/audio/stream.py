"""Audio of any length, block by block: a ten-hour recording or the sound of a film, in bounded memory.

`audio/intake.py` gives a whole clip; here a recording passes through that is going to be cut. Blocks are mono float32
at 24 kHz.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ, Floats, decode_blocks
from vibevoice_finetune.audio.intake import Intake
from vibevoice_finetune.errors import shown

MAX_RECORDING_SEC = 24 * 3600.0


def stream(path: Path) -> Iterator[Floats]:
    """Yield a recording's samples, (N,), block by block.

    Raises:
        AudioError: it cannot be opened or decoded, is cut short, holds more than it states, or is longer than a day.
    """
    intake: Intake | None = None
    for rate_hz, block_NC in decode_blocks(path, shown(path), max_sec=MAX_RECORDING_SEC):
        intake = intake or Intake(rate_hz, shown(path), MAX_RECORDING_SEC)
        yield intake.add(block_NC)
    if intake is not None:
        yield intake.finish()


def pieces(blocks: Iterator[Floats], spans_sec: Sequence[tuple[float, float]]) -> Iterator[tuple[int, Floats]]:
    """Take spans out of a stream; only the samples that a span still needs are kept.

    Args:
        blocks: mono at 24 kHz.
        spans_sec: begin and end of each, in seconds, in any order; they may overlap.

    Yields:
        The number of a span and its samples (N,), in the order in which they are complete.
    """
    spans = sorted(
        (round(start * SAMPLING_RATE_HZ), round(end * SAMPLING_RATE_HZ), number)
        for number, (start, end) in enumerate(spans_sec)
    )
    kept = np.zeros(0, dtype=np.float32)
    at = 0  # where `kept` begins
    for block in blocks:
        kept = np.concatenate([kept, block])
        until = at + len(kept)
        done = [span for span in spans if span[1] <= until]
        for start, end, number in sorted(done, key=lambda span: (span[1], span[2])):
            yield number, kept[start - at : end - at].copy()
        spans = [span for span in spans if span[1] > until]
        if not spans:
            return
        keep_from = min(max(spans[0][0], at), until)
        kept, at = kept[keep_from - at :], keep_from
    for start, end, number in spans:  # rounding may take the last span a few samples beyond the end
        yield number, kept[max(start - at, 0) : end - at].copy()
