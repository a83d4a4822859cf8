"""When somebody speaks in a recording: silero-vad tells speech from other sounds, the level finds its edges.

In come blocks of mono audio at 24 kHz, out go stretches of speech (`cut.Speech`) that hold no silence of
`cut.SHORTEST_GAP_SEC`. Memory is bounded: of a ten-hour recording only one level per 10 ms and one probability per
32 ms are kept, 20 MB.

silero-vad looks at 32 ms at a time, one after the other. Here `LANES` places of the recording are looked at together,
each from `WARM_UP_SEC` before it begins, so that the network has heard what came before: ten times as fast.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.audio.decode import SAMPLING_RATE_HZ
from vibevoice_finetune.errors import require
from vibevoice_finetune.preparation.cut import SHORTEST_GAP_SEC, Speech

Floats = NDArray[np.float32]

VAD_RATE_HZ = 16_000
CHUNK_SAMPLES = 512
"""What silero-vad takes at 16 kHz: 32 ms."""

LANES = 32
LANE_CHUNKS = 940
"""30.08 s."""

WARM_UP_CHUNKS = 94
"""3 s."""

STEP_SEC = 0.01
WINDOW_SEC = 0.02

SPEECH_PROBABILITY = 0.35
"""Lower than silero's own 0.5: the level decides at the edges, the network only between speech and other sounds."""

REACH_CHUNKS = 3
"""The network is up to 0.1 s late at onsets and lets go early: its answer counts that far to both sides."""

LEVEL_WINDOW_SEC = 30.0
FLOOR_PERCENTILE, SPEECH_PERCENTILE = 5, 95
DYNAMIC_RANGE_DB = 45.0
"""Further below the level of speech, a digital silence is no quieter than a quiet room."""

THRESHOLD_SHARE = 0.25
"""The edge of speech lies this share of the way up from the noise floor to the level of speech, in decibels."""

SHORTEST_SPEECH_SEC = 0.06
HIGH_PASS_HZ = 80.0
SILENCE_DB = -120.0


@dataclass(frozen=True)
class Activity:
    """What was measured of a recording.

    Attributes:
        duration_sec: of the recording.
        speech: stretches of speech, in order.
    """

    duration_sec: float
    speech: tuple[Speech, ...]


@cache
def _silero() -> tuple[Any, Any]:
    """PyTorch and the network, loaded once a process."""
    import torch  # noqa: PLC0415  seconds, and only wanted here

    threads = torch.get_num_threads()
    network: Any = require("prepare", "silero_vad").load_silero_vad()
    torch.set_num_threads(threads)  # silero-vad sets it to one for the whole process
    return torch, network


class VoiceDetector:
    """silero-vad over blocks of any length.

    Raises:
        UserError: silero-vad is not installed.
    """

    def __init__(self) -> None:
        self._torch, self._model = _silero()
        self._resampler = soxr.ResampleStream(SAMPLING_RATE_HZ, VAD_RATE_HZ, 1, dtype="float32", quality="HQ")
        self._waiting: list[Floats] = []
        self._num_waiting = 0
        self._before = np.zeros(WARM_UP_CHUNKS * CHUNK_SAMPLES, dtype=np.float32)
        self._probabilities: list[Floats] = []

    def add(self, block: Floats) -> None:
        """Take the next samples, (N,) at 24 kHz."""
        self._take(self._resampler.resample_chunk(block))

    def finish(self) -> Floats:
        """Probabilities of speech, one for each 32 ms, (M,)."""
        self._take(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
        if self._num_waiting:
            self._look(np.concatenate(self._waiting))
        return np.concatenate(self._probabilities) if self._probabilities else np.zeros(0, dtype=np.float32)

    def _take(self, samples: Floats) -> None:
        self._waiting.append(samples)
        self._num_waiting += len(samples)
        whole = LANES * LANE_CHUNKS * CHUNK_SAMPLES
        while self._num_waiting >= whole:
            waiting = np.concatenate(self._waiting)
            self._look(waiting[:whole])
            self._waiting, self._num_waiting = [waiting[whole:]], self._num_waiting - whole

    def _look(self, samples: Floats) -> None:
        """Look at up to `LANES` places at a time; the last, partial chunk is filled up with zeros."""
        chunks = -(-len(samples) // CHUNK_SAMPLES)
        lanes = -(-chunks // LANE_CHUNKS)
        length = WARM_UP_CHUNKS + LANE_CHUNKS
        heard = np.zeros((WARM_UP_CHUNKS + lanes * LANE_CHUNKS) * CHUNK_SAMPLES, dtype=np.float32)
        heard[: len(self._before)] = self._before
        heard[len(self._before) : len(self._before) + len(samples)] = samples
        starts = np.arange(lanes) * LANE_CHUNKS
        windows = np.stack([heard[s * CHUNK_SAMPLES : (s + length) * CHUNK_SAMPLES] for s in starts])
        x = self._torch.from_numpy(windows).view(lanes, length, CHUNK_SAMPLES)
        self._model.reset_states()
        with self._torch.inference_mode():
            found = [self._model(x[:, number], VAD_RATE_HZ)[:, 0] for number in range(length)]
        probabilities = self._torch.stack(found[WARM_UP_CHUNKS:], 1).numpy().reshape(-1)[:chunks]
        self._probabilities.append(probabilities.astype(np.float32))
        self._before = heard[len(samples) : len(samples) + len(self._before)].copy()


class LevelMeter:
    """The level of every 10 ms, in decibels below full scale, over 20 ms windows without rumble."""

    def __init__(self) -> None:
        self._step = round(STEP_SEC * SAMPLING_RATE_HZ)
        self._rest = np.zeros(0, dtype=np.float32)
        self._powers: list[NDArray[np.float64]] = []
        self._smooth = 0.0
        self.num_samples = 0

    def add(self, block: Floats) -> None:
        """Take the next samples, (N,) at 24 kHz."""
        self.num_samples += len(block)
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // self._step * self._step
        self._rest = samples[whole:]
        if whole:
            steps = samples[:whole].reshape(-1, self._step).astype(np.float64)
            # Rumble is what a window's mean holds: 10 ms average out all above some 80 Hz.
            self._powers.append(np.mean((steps - steps.mean(axis=1, keepdims=True)) ** 2, axis=1))

    def finish(self) -> Floats:
        """Decibels, one for each 10 ms, (M,)."""
        if not self._powers:
            return np.zeros(0, dtype=np.float32)
        power = np.concatenate(self._powers)
        smooth = np.convolve(power, np.full(2, 0.5), mode="full")[: len(power)]
        later = np.append(power[1:], power[-1])
        smooth = np.maximum(smooth, (power + later) / 2)  # a window that begins here, or ends here
        levels: Floats = (10 * np.log10(np.maximum(smooth, 10 ** (SILENCE_DB / 10)))).astype(np.float32)
        return levels


def listen(blocks: Iterable[Floats]) -> Activity:
    """Find the speech in a recording.

    Args:
        blocks: mono audio at 24 kHz, in order.
    """
    detector, meter = VoiceDetector(), LevelMeter()
    for block in blocks:
        detector.add(block)
        meter.add(block)
    levels_db = meter.finish()
    speech = find_speech(levels_db, detector.finish())
    return Activity(meter.num_samples / SAMPLING_RATE_HZ, tuple(speech))


def find_speech(levels_db: Floats, probabilities: Floats) -> list[Speech]:
    """Stretches of speech.

    Args:
        levels_db: one for each 10 ms.
        probabilities: of speech, one for each 32 ms.
    """
    if not len(levels_db) or not len(probabilities):
        return []
    loud = levels_db > thresholds_db(levels_db)
    chunk = np.minimum((np.arange(len(levels_db)) * STEP_SEC / 0.032).astype(int), len(probabilities) - 1)
    reach = np.full(2 * REACH_CHUNKS + 1, 1)
    likely = np.convolve(probabilities >= SPEECH_PROBABILITY, reach, mode="same") > 0
    runs = list(_runs(loud & likely[chunk]))
    joined: list[list[int]] = []
    for start, end in runs:
        if joined and (start - joined[-1][1]) * STEP_SEC < SHORTEST_GAP_SEC:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    return [
        Speech(round(start * STEP_SEC, 3), round(end * STEP_SEC, 3))
        for start, end in joined
        if (end - start) * STEP_SEC >= SHORTEST_SPEECH_SEC
    ]


def thresholds_db(levels_db: Floats) -> Floats:
    """The level above which a sound can be speech, for each 10 ms, (M,).

    Of each half minute the noise floor and the level of speech are taken, and lines drawn between them.
    """
    width = round(LEVEL_WINDOW_SEC / STEP_SEC)
    centers, found = [], []
    for start in range(0, len(levels_db), width // 2):
        window = levels_db[start : start + width]
        if start and len(window) < width // 2:
            break
        speech = float(np.percentile(window, SPEECH_PERCENTILE))
        floor = max(float(np.percentile(window, FLOOR_PERCENTILE)), speech - DYNAMIC_RANGE_DB)
        centers.append(start + len(window) / 2)
        found.append(floor + THRESHOLD_SHARE * (speech - floor))
    return np.interp(np.arange(len(levels_db)), centers, found).astype(np.float32)


def _runs(flags: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(np.int8), [0]])))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield int(start), int(end)
