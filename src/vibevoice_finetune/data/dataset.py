"""From planned rows to examples: every random draw of a training step.

`SpeechDataset` turns a visit of a row (`Draw`) into an `Example` by reading latents and drawing noise. All draws come
from a generator seeded by (seed, epoch, row), so that they do not depend on workers, processes, batch size or where a
run was stopped.

Shapes: F target frames, V voice-prompt frames, C acoustic dim, S semantic dim, K = ddpm_batch_mul.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.data.prompt import (
    Encode,
    SpecialTokens,
    TokenSequence,
    training_sequence,
    unconditional_sequence,
)
from vibevoice_finetune.data.voice_prompts import PlannedRow
from vibevoice_finetune.latents.store import LatentStore

Floats = NDArray[np.float32]

TRAIN_STREAM, EVAL_STREAM = 1, 2
"""Last number of a seed: keeps training draws and evaluation draws apart, and from the cuts of voice prompts."""


@dataclass(frozen=True)
class Draw:
    """One visit of a row: what a sampler yields and `SpeechDataset` takes; with `--mix`, the epoch is its set's own.

    A ghost is a row that a process runs without counting it, where the rows of a step do not suffice for all processes.
    """

    epoch: int
    row: int
    ghost: bool = False


@dataclass(frozen=True, eq=False)
class Example:
    """One row of a step with all its draws.

    Attributes:
        where: the row, for messages.
        ghost: whether the row's losses do not count.
        sequence: ids and positions.
        voice_mean_VC: acoustic means of the voice prompts, speakers in order.
        voice_jitter_VC: standard normal noise times one standard normal factor a clip.
        target_mean_FC: acoustic means of the target.
        target_jitter_FC: as `voice_jitter_VC`.
        target_semantic_FS: semantic features of the target.
        timestep_FK: diffusion timesteps.
        noise_FKC: diffusion noise.
    """

    where: str
    ghost: bool
    sequence: TokenSequence
    voice_mean_VC: Floats
    voice_jitter_VC: Floats
    target_mean_FC: Floats
    target_jitter_FC: Floats
    target_semantic_FS: Floats
    timestep_FK: NDArray[np.int64]
    noise_FKC: Floats


@dataclass(frozen=True)
class DrawSettings:
    """What the draws depend on besides the row.

    Attributes:
        seed: the run's data seed.
        ddpm_batch_mul: K, noise draws a frame.
        num_timesteps: length of the noise tables.
        voice_prompt_drop_rate: share of rows that lose their whole "Voice input" section.
        unconditional_rate: share of rows presented as the unconditional branch of guidance.
        evaluation: fixed draws, nothing dropped.
    """

    seed: int
    ddpm_batch_mul: int
    num_timesteps: int
    voice_prompt_drop_rate: float = 0.0
    unconditional_rate: float = 0.0
    evaluation: bool = False


class SpeechDataset:
    """Planned rows as training examples; indexed by `Draw`, safe to copy into workers."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        store: LatentStore,
        encode: Encode,
        special: SpecialTokens,
        settings: DrawSettings,
        mix: Mix | None = None,
    ) -> None:
        self.rows = rows
        self.store = store
        self.encode = encode
        self.special = special
        self.settings = settings
        self.mix = mix

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> Example:
        settings = self.settings
        row = self.rows[draw.row]
        if settings.evaluation:
            rng = np.random.default_rng((settings.seed, draw.row, EVAL_STREAM))
        else:
            rng = np.random.default_rng((settings.seed, draw.epoch, draw.row, TRAIN_STREAM))
        unconditional = rng.random() < settings.unconditional_rate and not settings.evaluation
        dropped = rng.random() < settings.voice_prompt_drop_rate and not settings.evaluation
        drawn = row.draw_prompts(rng)
        voice_keys = () if unconditional or dropped else drawn
        voices = [self.store.read(key).acoustic_FC for key in voice_keys]
        target = self.store.read(row.target_key)
        assert target.semantic_FS is not None, f"{row.where}: stored without semantic features"
        num_frames, acoustic_dim = target.acoustic_FC.shape
        if unconditional:
            sequence = unconditional_sequence(self.special, num_frames)
        else:
            sequence = training_sequence(self.encode, self.special, row.turns, [len(v) for v in voices], num_frames)
        nothing = np.zeros((0, acoustic_dim), dtype=np.float32)
        return Example(
            where=row.where,
            ghost=draw.ghost,
            sequence=sequence,
            target_mean_FC=target.acoustic_FC,
            target_jitter_FC=jitter(rng, target.acoustic_FC.shape),
            target_semantic_FS=target.semantic_FS,
            timestep_FK=rng.integers(settings.num_timesteps, size=(num_frames, settings.ddpm_batch_mul)),
            noise_FKC=rng.standard_normal((num_frames, settings.ddpm_batch_mul, acoustic_dim), dtype=np.float32),
            voice_mean_VC=np.concatenate([nothing, *voices]),
            voice_jitter_VC=voice_jitter(rng, [len(voice) for voice in voices], acoustic_dim),
        )


def jitter(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Noise of one clip's latents (F, C): one standard normal factor times elementwise standard normal noise."""
    return np.float32(rng.standard_normal()) * rng.standard_normal(shape, dtype=np.float32)


def voice_jitter(rng: np.random.Generator, num_frames: Sequence[int], acoustic_dim: int) -> Floats:
    """Noise of the voice prompts of a row, clip after clip, (V, C); generation draws its voices with it too."""
    nothing = np.zeros((0, acoustic_dim), dtype=np.float32)
    return np.concatenate([nothing, *(jitter(rng, (frames, acoustic_dim)) for frames in num_frames)])
