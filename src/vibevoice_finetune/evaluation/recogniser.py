"""What a recogniser understands of a recording.

Two are known. `moonshine`: English; its weights come inside the wheel of moonshine-voice 0.0.49, nothing is downloaded,
a tenth of real time on one core. Every other name is a Whisper model for faster-whisper: a size ("small", "large-v3"),
a repository of the Hub or a folder.

In comes mono float32 audio at any rate, out go words.
"""

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from vibevoice_finetune.errors import UserError, require

Floats = NDArray[np.float32]

RATE_HZ = 16_000
"""What both recognisers take."""

Recogniser = Callable[[Floats, int], str]
"""Audio (N,) and its sampling rate in, text out."""

MOONSHINE = "moonshine"
SILENCE_SEC = 0.5
"""Put around the audio for moonshine: without it first and last words are lost (error 8.2 against 3.9 %, measured)."""

CALLS_PER_LOAD = 50
"""Moonshine's library keeps 4 MB of every call until its recogniser is closed; loading it anew takes 0.3 s."""

PEAK = 0.9


def load_recogniser(name: str, language: str | None = None, device: str = "auto") -> Recogniser:
    """Load a recogniser.

    Args:
        name: "moonshine", or a Whisper model.
        language: two letters; None: English for moonshine, heard from the audio by Whisper.
        device: "auto", "cpu" or "cuda", for Whisper.

    Raises:
        UserError: its package is not installed, it does not know the language, or its weights cannot be had.
    """
    if name == MOONSHINE:
        if language not in (None, "en"):
            raise UserError(f"moonshine understands English only, not {language!r}; name a Whisper model, as in small.")
        return _Moonshine()
    return _Whisper(name, language, device)


class _Moonshine:
    def __init__(self) -> None:
        # It imports sounddevice for its microphone, which needs a system library; files need none.
        sys.modules.setdefault("sounddevice", types.ModuleType("sounddevice"))
        self._moonshine: Any = require("asr", "moonshine_voice")
        self._transcriber = self._load()
        self._calls = 0

    def _load(self) -> Any:
        return self._moonshine.Transcriber(
            model_path=str(self._moonshine.get_model_path("tiny-en")),
            model_arch=self._moonshine.ModelArch.TINY,
            options={"vad_threshold": 0.0},
        )

    def __call__(self, samples: Floats, rate_hz: int) -> str:
        self._calls += 1
        if self._calls % CALLS_PER_LOAD == 0:
            self._transcriber.close()
            self._transcriber = self._load()
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, RATE_HZ)
        audio = audio / (np.abs(audio).max(initial=0.0) + 1e-6) * PEAK
        silence = np.zeros(round(SILENCE_SEC * RATE_HZ), dtype=np.float32)
        padded = np.concatenate([silence, audio.astype(np.float32), silence])
        lines = self._transcriber.transcribe_without_streaming(padded.tolist(), RATE_HZ).lines
        return " ".join(line.text for line in lines).strip()


class _Whisper:
    def __init__(self, name: str, language: str | None, device: str) -> None:
        whisper: Any = require("asr", "faster_whisper")
        self._language = language
        try:
            self._model = whisper.WhisperModel(name, device=device, compute_type="default", cpu_threads=1)
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"the Whisper model {name!r} cannot be loaded ({' '.join(str(error).split())[:300]}); name a size such "
                "as small, a folder with a model of faster-whisper, or, for English, moonshine (without a download)."
            ) from error

    def __call__(self, samples: Floats, rate_hz: int) -> str:
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, RATE_HZ)
        segments, _ = self._model.transcribe(
            audio.astype(np.float32), language=self._language, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments).strip()
