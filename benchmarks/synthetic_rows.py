"""Training rows without recordings: random latents in a real latent store, of the size that speech has.

In come a number of rows and their length, out goes the data set that `train` would make of such recordings.
"""

from pathlib import Path

import numpy as np

from vibevoice_finetune.base_model.parts import ModelFacts
from vibevoice_finetune.data.dataset import DrawSettings, SpeechDataset
from vibevoice_finetune.data.prompt import SpecialTokens, generation_prompt
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.data.voice_prompts import PlannedRow, PromptSource
from vibevoice_finetune.latents.store import Latents, LatentStore

PROMPT_SEC = 5.0
CHARACTERS_A_SEC = 15  # of English speech


def make_rows(
    folder: Path, num_rows: int, clip_sec: float, draws: int, model_facts: ModelFacts, special: SpecialTokens
) -> SpeechDataset:
    """Rows of equal length over a latent store with random entries; a voice prompt each."""
    store = LatentStore(folder, "random", model_facts.acoustic_dim, model_facts.semantic_dim)
    rng = np.random.default_rng(0)
    rate = model_facts.sampling_rate_hz / model_facts.hop_length
    frames, prompt_frames = round(clip_sec * rate), round(PROMPT_SEC * rate)
    turns = parse_script("Speaker 0: " + ("word " * 1000)[: int(clip_sec * CHARACTERS_A_SEC)], "benchmark")
    planned = []
    with store.writer() as writer:
        for row in range(num_rows):
            target_key, prompt_key = f"{2 * row:032x}", f"{2 * row + 1:032x}"
            writer.add(target_key, latents(rng, frames, model_facts))
            writer.add(prompt_key, latents(rng, prompt_frames, model_facts))
            ids, _ = generation_prompt(encode, special, turns, [prompt_frames])
            planned.append(
                PlannedRow(
                    where=f"benchmark:{row}",
                    turns=turns,
                    target_key=target_key,
                    target_frames=frames,
                    prompt_choices=((prompt_key,),),
                    own_choice=None,
                    num_tokens=len(ids) + frames + 2,
                    speaker=None,
                    source=PromptSource.GIVEN,
                )
            )
    store.reload()
    settings = DrawSettings(seed=0, ddpm_batch_mul=draws, num_timesteps=model_facts.num_train_timesteps)
    return SpeechDataset(planned, store, encode, special, settings)


def encode(text: str) -> list[int]:
    """A token for four characters, as Qwen's tokenizer has for English on average."""
    data = text.encode()
    return [sum(data[start : start + 4]) % 250 for start in range(0, len(data), 4)]


def latents(rng: np.random.Generator, frames: int, model_facts: ModelFacts) -> Latents:
    """Random latents of a clip."""
    return Latents(
        rng.standard_normal((frames, model_facts.acoustic_dim), dtype=np.float32),
        rng.standard_normal((frames, model_facts.semantic_dim), dtype=np.float32),
    )
