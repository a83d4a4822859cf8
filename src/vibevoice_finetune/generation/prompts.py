"""From a script to what the language model is given: its text, and its voices encoded and drawn as training draws them.

In: a model, a script, a seed. Out: a `Prompt` for the loop.

Shapes: T tokens, V voice-prompt frames, C acoustic dim, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import VibeVoiceForConditionalGeneration

from vibevoice_finetune.adapters.apply import AppliedSummary
from vibevoice_finetune.audio.source import AudioSource, load_audio, normalize_rms, pad_to_frames
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import ENCODED_AT_ONCE_FRAMES
from vibevoice_finetune.data.dataset import voice_jitter
from vibevoice_finetune.data.prompt import Encode, SpecialTokens, generation_prompt
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.generation.loop import Prompt, acoustic_encoder
from vibevoice_finetune.generation.scripts import Script
from vibevoice_finetune.latents.arithmetic import computing_in, fastest
from vibevoice_finetune.latents.encode import encode_in_chunks
from vibevoice_finetune.objective.embeddings import draw_latents, embed_prompt

VOICE_STREAM, FRAME_STREAM = range(2)
"""Last number of a seed: keeps the voices' draws and the frames' apart."""


@dataclass(frozen=True, eq=False)
class SpeechModel:
    """A model in memory, ready to speak.

    Attributes:
        model: whole, its parts of one dtype (LoRA may be float32), its configuration with the ids of `special`.
        encode: its text tokenizer, without special tokens.
        special: ids of the control tokens.
        adapter: what was applied to it, if anything.
    """

    model: VibeVoiceForConditionalGeneration
    encode: Encode
    special: SpecialTokens
    adapter: AppliedSummary | None = None


@torch.no_grad()
def make_prompt(
    speaker: SpeechModel, script: Script, seed: int, max_frames: int, voice_means: dict[AudioSource, Tensor]
) -> Prompt:
    """What the language model is given for a script.

    Args:
        speaker: the model.
        script: what is said, with its voices.
        seed: of the voices' latents and of the frames' noise.
        max_frames: the most that may be said.
        voice_means: (V, C) of the voices that were encoded already; new ones are added.

    Raises:
        DataError: a voice cannot be read, or the script does not fit into the model's positions.
    """
    model = speaker.model
    facts = parts.facts(model.config)
    rng = np.random.default_rng((seed, VOICE_STREAM))
    for voice in script.voices:
        if voice not in voice_means:
            voice_means[voice] = encode_voice(model, voice)
    means = [voice_means[voice] for voice in script.voices]
    frames = [len(mean_VC) for mean_VC in means]
    ids, voice_positions = generation_prompt(speaker.encode, speaker.special, script.turns, frames, script.where)
    room = facts.max_positions - len(ids) - 2  # the two that end it
    if room < 1:
        raise DataError(
            f"{script.where}: the script with its voices takes {len(ids):,} of the model's {facts.max_positions:,} "
            "positions, which leaves none for speech; split it or give shorter voices."
        )
    device = parts.embed_tokens(model).weight.device
    mean_VC = torch.cat([torch.zeros(0, facts.acoustic_dim, device=device), *means])
    jitter_VC = torch.from_numpy(voice_jitter(rng, frames, facts.acoustic_dim)).to(device)
    voice_VC = draw_latents(model, mean_VC, jitter_VC)
    ids_T, voice_index_V = (torch.from_numpy(part).to(device) for part in (ids, voice_positions))
    return Prompt(
        embeddings_TD=embed_prompt(model, ids_T, voice_index_V, voice_VC),
        max_frames=min(max_frames, room),
        rng=np.random.default_rng((seed, FRAME_STREAM)),
    )


@torch.no_grad()
def encode_voice(model: nn.Module, voice: AudioSource) -> Tensor:
    """The acoustic means of a recording, (V, C) float32, made as the latent store makes them.

    Raises:
        AudioError: the recording cannot be used.
        DataError: it is longer than the model's positions.
    """
    encoder = acoustic_encoder(model)
    facts = parts.facts(parts.config(model))
    hop_length = facts.hop_length
    waveform_N = torch.from_numpy(pad_to_frames(normalize_rms(load_audio(voice)), hop_length))
    frames = len(waveform_N) // hop_length
    if frames >= facts.max_positions:  # before an hour of audio is encoded in vain
        raise DataError(
            f"{voice.label} has {frames:,} frames, and the model has {facts.max_positions:,} positions for voices, "
            "text and speech together; cut the recording, ten seconds are enough."
        )
    device = parts.embed_tokens(model).weight.device
    # bf16 would move the latents by 1.1 to 4.1 % (`latents/arithmetic.py`): the voice would not be the one trained on.
    # A model that speaks while it is trained runs under autocast, which would round them all the same.
    with _in_float32(encoder), computing_in(fastest(device)), torch.autocast(device.type, enabled=False):
        mean_1VC = encode_in_chunks(encoder, waveform_N.to(device)[None], ENCODED_AT_ONCE_FRAMES * hop_length)
    return mean_1VC[0]


@contextmanager
def _in_float32(module: nn.Module) -> Iterator[None]:
    """Within the context, the weights are float32; afterwards as they were, bit for bit."""
    dtype = next(module.parameters()).dtype
    module.float()
    try:
        yield
    finally:
        module.to(dtype)
