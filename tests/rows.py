"""Small training rows without audio: a latent store with random entries, and data sets over it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vibevoice_finetune.base_model.load import load_for_training, open_base_model, with_special_tokens
from vibevoice_finetune.base_model.parts import facts
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.dataset import DrawSettings, SpeechDataset
from vibevoice_finetune.data.prompt import generation_prompt
from vibevoice_finetune.data.script import num_speakers, parse_script
from vibevoice_finetune.data.voice_prompts import PlannedRow, PromptSource
from vibevoice_finetune.latents.store import Latents, LatentStore
from vibevoice_finetune.objective.objective import Objective

SCRIPTS = (
    "Speaker 0: One.",
    "Speaker 0: A longer line.",
    "Speaker 1: Hi.\nSpeaker 2: Yes?",
    "Speaker 0: Two words.",
    "Speaker 0: And then the last one of them.",
    "Speaker 3: Well.",
    "Speaker 0: No.",
    "Speaker 0: Go on.",
)
TARGET_FRAMES = (5, 9, 3, 7, 12, 2, 4, 6)
VOICE_FRAMES = ((3,), (), (2, 4), (5,), (), (1,), (2,), ())


class Small:
    """A small model and rows for it.

    Args:
        model_dir: a checkpoint with a text tokenizer.
        folder: where the latent store goes.
        processor_dir: the text tokenizer, if the checkpoint has none.
    """

    def __init__(self, model_dir: Path, folder: Path, processor_dir: Path | None = None) -> None:
        checkpoint = open_base_model(str(model_dir))
        self.tokenizer = load_tokenizer(checkpoint, str(processor_dir) if processor_dir else None)
        self.special = special_tokens(self.tokenizer)
        self.checkpoint = with_special_tokens(checkpoint, self.special)
        self.facts = facts(checkpoint.config)
        self.encode = partial(self.tokenizer.encode, add_special_tokens=False)
        self.store = LatentStore(folder, "random", self.facts.acoustic_dim, self.facts.semantic_dim)
        rng = np.random.default_rng(7)

        def floats(frames: int, dim: int) -> np.ndarray:
            return rng.standard_normal((frames, dim), dtype=np.float32)

        with self.store.writer() as writer:
            for row, frames in enumerate(TARGET_FRAMES):
                own = Latents(floats(frames, self.facts.acoustic_dim), floats(frames, self.facts.semantic_dim))
                writer.add(_key(row, 0), own)
                for speaker, voice in enumerate(VOICE_FRAMES[row]):
                    writer.add(_key(row, speaker + 1), Latents(floats(voice, self.facts.acoustic_dim), None))
        self.store.reload()

    def rows(self, numbers: Sequence[int] = range(8)) -> list[PlannedRow]:
        """Planned rows by number, with uneven lengths, with and without voice prompts, one with two speakers."""
        planned = []
        for row in numbers:
            turns = parse_script(SCRIPTS[row], f"rows:{row}")
            assert len(VOICE_FRAMES[row]) in (0, num_speakers(turns))
            ids, _ = generation_prompt(self.encode, self.special, turns, VOICE_FRAMES[row])
            keys = tuple(_key(row, speaker + 1) for speaker in range(len(VOICE_FRAMES[row])))
            planned.append(
                PlannedRow(
                    where=f"rows:{row}",
                    turns=turns,
                    target_key=_key(row, 0),
                    target_frames=TARGET_FRAMES[row],
                    prompt_choices=(keys,) if keys else (),
                    own_choice=None,
                    num_tokens=len(ids) + TARGET_FRAMES[row] + 2,
                    speaker=None,
                    source=PromptSource.GIVEN if keys else PromptSource.NONE,
                )
            )
        return planned

    def dataset(self, numbers: Sequence[int] = range(8), **settings: object) -> SpeechDataset:
        """The rows as a data set; `settings` are fields of `DrawSettings`."""
        chosen = {"seed": 5, "ddpm_batch_mul": 2, "num_timesteps": 1000, **settings}
        return SpeechDataset(self.rows(numbers), self.store, self.encode, self.special, DrawSettings(**chosen))

    def objective(self, dtype: torch.dtype = torch.float32) -> Objective:
        """The model freshly loaded, nothing attached."""
        return Objective(load_for_training(self.checkpoint, dtype, "cpu"), self.special)


def _key(row: int, speaker: int) -> str:
    return f"{row * 10 + speaker:032x}"
