"""The spoken clips in memory, as the model hears them: normalised to -25 dBFS, padded to whole frames."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from vibevoice_finetune.audio.source import normalize_rms, pad_to_frames


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip.

    Attributes:
        name: of its file, without the ending.
        text: what is said.
        speaker: by whom.
        phones: phones and the seconds at which they end, where known.
        audio_N: float16, to save memory.
    """

    name: str
    text: str
    speaker: str
    phones: list[tuple[str, float]] | None
    audio_N: Tensor

    def wave(self) -> Tensor:
        """The waveform in float32, (N,)."""
        return self.audio_N.float()


def read_clips(table: Path, hop: int, aligned: Path | None = None) -> list[Clip]:
    """All clips of one table; `aligned` holds phones for those that came without."""
    extra = json.loads(aligned.read_text()) if aligned is not None and aligned.exists() else {}
    found = []
    for line in table.read_text().splitlines():
        row = json.loads(line)
        samples, _ = soundfile.read(table.parent / row["audio"], dtype="float32")
        audio = pad_to_frames(normalize_rms(samples), hop).astype(np.float16)
        name = Path(row["audio"]).stem
        phones = row["phones"] or extra.get(name)
        found.append(Clip(name, row["text"], row["speaker"], phones, torch.from_numpy(audio)))
    return found


def batch_of(clips: list[Clip], frames: int, hop: int, rng: np.random.Generator, size: int) -> Tensor:
    """Random cuts with a little noise and a random gain, (size, frames * hop).

    The noise matters: digital silence makes the gradients of the norms explode.
    """
    length = frames * hop
    out = np.zeros((size, length), dtype=np.float32)
    for row in out:
        audio = clips[rng.integers(len(clips))].audio_N
        start = 0 if rng.random() < 0.25 else int(rng.integers(max(1, len(audio) - length // 2)))
        cut = audio[start : start + length].float().numpy()
        row[: len(cut)] = cut
    out *= rng.uniform(0.8, 1.2, size=(size, 1)).astype(np.float32)
    return torch.from_numpy(out + rng.normal(0, 3e-4, size=out.shape).astype(np.float32))
