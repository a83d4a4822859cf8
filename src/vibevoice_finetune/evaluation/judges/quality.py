"""How good a recording sounds, as a model guesses that people would say: 1 (bad) to 5 (excellent).

DistillMOS 0.9.1 (MIT; its 17 MB of weights come inside its wheel) was trained on telephone speech and denoising, not on
speech synthesis. It hears noise, gaps and muffled sound; a wrong voice or a missing sentence does not trouble it. So
the figure is shown if it is asked for and never used to choose.

In: mono float32 audio at any rate. Out: one number.
"""

import contextlib
import importlib
import importlib.util
import io
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from vibevoice_finetune.errors import UserError

NAME = "DistillMOS 0.9.1"
RATE_HZ = 16_000
INSTALL = "pip install --no-deps distillmos==0.9.1 xls-r-sqa==0.1.0"
Quality = Callable[[NDArray[np.float32], int], float]
"""Audio (N,) and its sampling rate in, a mean opinion score out."""


def load_quality() -> Quality:
    """Load DistillMOS.

    Raises:
        UserError: it is not installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("distillmos", "xls_r_sqa")):
        raise UserError(f"--predict_quality: distillmos is not installed; run: {INSTALL}")
    package: Any = _import_without_torchaudio()
    with contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
        model = package.ConvTransformerSQAModel()
    model.eval()

    @torch.no_grad()
    def quality(samples: NDArray[np.float32], rate_hz: int) -> float:
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, RATE_HZ)
        return float(model(torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))[None])[0])

    return quality


def _import_without_torchaudio() -> types.ModuleType:
    """The package; it imports torchaudio for reading files, which is not needed here."""
    if importlib.util.find_spec("torchaudio") is not None:
        return importlib.import_module("distillmos")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        return importlib.import_module("distillmos")
    finally:
        del sys.modules["torchaudio"]
