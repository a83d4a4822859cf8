"""WavLM with an x-vector head: a speaker encoder that transformers can load.

`microsoft/wavlm-base-plus-sv` (MIT, 512 values, 0.4 GB) is downloaded from the Hub once; a folder with such a model
works too. In: mono float32 audio at any rate. Out: unit vectors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from transformers import AutoFeatureExtractor, WavLMForXVector

from vibevoice_finetune.base_model.hub import Wanted, locate
from vibevoice_finetune.errors import UserError

WAVLM = "microsoft/wavlm-base-plus-sv"
RATE_HZ = 16_000
SHORTEST_SAMPLES = 8_000
"""The x-vector layers need a context; what is shorter is padded with silence."""

FILES = Wanted("speaker encoder", ("*.json", "*.safetensors", "pytorch_model.bin"), "hf download {}")


class WavLMSpeakerEncoder:
    """WavLM with an x-vector head, on the processor.

    Args:
        name_or_path: a folder, or a repository of the Hub.
        cache_dir: where downloads are kept; None for the Hub's own place.

    Raises:
        BaseModelError: there is no such folder or repository, or it cannot be downloaded.
        UserError: what is there is not a WavLM model for speakers.
    """

    def __init__(self, name_or_path: str = WAVLM, cache_dir: Path | None = None) -> None:
        folder, _ = locate(name_or_path, FILES, cache_dir)
        try:
            self._features = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
            loaded: Any = WavLMForXVector.from_pretrained(folder, output_loading_info=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"--speaker_encoder {name_or_path}: cannot be loaded as a WavLM speaker encoder "
                f"({' '.join(str(error).split())[:200]}); expected a model such as {WAVLM}, or campplus."
            ) from error
        model, loading = loaded
        if loading["missing_keys"]:
            raise UserError(
                f"--speaker_encoder {name_or_path}: has no weights for {min(loading['missing_keys'])}; expected "
                f"a WavLM model that was trained to tell speakers apart, such as {WAVLM}."
            )
        self._model = model.eval()

    @torch.no_grad()
    def __call__(self, samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
        """The unit vector of one recording."""
        audio = soxr.resample(np.asarray(samples, dtype=np.float32), rate_hz, RATE_HZ)
        audio = np.pad(audio, (0, max(SHORTEST_SAMPLES - len(audio), 0)))
        inputs = self._features(audio, sampling_rate=RATE_HZ, return_tensors="pt")
        vector = self._model(**inputs).embeddings[0]
        unit: NDArray[np.float32] = (vector / vector.norm()).numpy()
        return unit
