"""Audio of any length, block by block: a ten-hour recording or the sound of a film, in bounded memory.

`audio/intake.py` gives a whole clip; here a recording passes through that is going to be cut. Blocks are mono float32
at 24 kHz.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    wanted = _Spans(spans_sec, SAMPLING_RATE_HZ)
    for block in blocks:
        yield from wanted.add(block)
        if wanted.all_are_found:
            return
    yield from wanted.rest()


@dataclass(frozen=True, eq=False)
class Piece:
    """A span of a recording.

    Attributes:
        number: of the span.
        samples: (N,), mono, 24 kHz.
        original: (N,) or (N, C), as the file has it.
        rate_hz: of `original`.
    """

    number: int
    samples: Floats
    original: Floats
    rate_hz: int


def cut_out(path: Path, spans_sec: Sequence[tuple[float, float]]) -> Iterator[Piece]:
    """Take spans out of a recording, also as the file has them: what is clipped cannot be told after conversion.

    Raises:
        AudioError: as `stream` does.
    """
    intake: Intake | None = None
    mono, own = _Spans(spans_sec, SAMPLING_RATE_HZ), _Spans(spans_sec, SAMPLING_RATE_HZ)
    converted: dict[int, Floats] = {}
    originals: dict[int, Floats] = {}

    def complete(rate_hz: int) -> Iterator[Piece]:
        for number in [number for number in converted if number in originals]:
            yield Piece(number, converted.pop(number), originals.pop(number), rate_hz)

    rate_hz = SAMPLING_RATE_HZ
    for rate_hz, block_NC in decode_blocks(path, shown(path), max_sec=MAX_RECORDING_SEC):
        if intake is None:
            intake, own = Intake(rate_hz, shown(path), MAX_RECORDING_SEC), _Spans(spans_sec, rate_hz)
        converted |= mono.add(intake.add(block_NC))
        originals |= own.add(block_NC if block_NC.shape[1] > 1 else block_NC[:, 0])
        yield from complete(rate_hz)
        if mono.all_are_found and own.all_are_found:
            return
    if intake is not None:
        converted |= mono.add(intake.finish())
    converted |= mono.rest()
    originals |= own.rest()
    yield from complete(rate_hz)


class _Spans:
    """Collects spans from blocks (N,) or (N, C)."""

    def __init__(self, spans_sec: Sequence[tuple[float, float]], rate_hz: int) -> None:
        self._spans = sorted(
            (round(start * rate_hz), round(end * rate_hz), number) for number, (start, end) in enumerate(spans_sec)
        )
        self._kept: list[Floats] = []
        self._at = 0  # where `_kept` begins

    @property
    def all_are_found(self) -> bool:
        return not self._spans

    def add(self, block: Floats) -> list[tuple[int, Floats]]:
        """Take a block, which is copied; the spans that it completes, the first to end first."""
        kept = np.concatenate([*self._kept, block])
        until = self._at + len(kept)
        done = sorted((span for span in self._spans if span[1] <= until), key=lambda span: (span[1], span[2]))
        found = [(number, kept[start - self._at : end - self._at].copy()) for start, end, number in done]
        self._spans = [span for span in self._spans if span[1] > until]
        keep_from = min(max(self._spans[0][0], self._at), until) if self._spans else until
        self._kept, self._at = [kept[keep_from - self._at :].copy()], keep_from
        return found

    def rest(self) -> list[tuple[int, Floats]]:
        """Spans that reach behind the end: rounding may take the last one a few samples beyond it."""
        kept = self._kept[0] if self._kept else np.zeros(0, dtype=np.float32)
        return [(number, kept[max(start - self._at, 0) : end - self._at].copy()) for start, end, number in self._spans]
