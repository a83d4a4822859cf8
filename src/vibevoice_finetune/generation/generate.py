"""From a request to waveforms: what the `generate` command, evaluation and programs call.

Why: a fine-tune is judged by what it says. So the model hears here exactly what it was trained on: the prompt comes
from `data/prompt.py`, voices are decoded, normalised, padded and encoded as the latent store does it, frames of voices
enter as in `objective/objective.py`. The loop is transformers' own, see `generation/loop.py`.

In: a `GenerationRequest`. Out: a `Generation` with one `Speech` for each script.

Randomness comes from the seed alone: one stream for the voices' latents, one for the frames' noise, both started anew
for each script. So a script sounds the same whatever else is in the request; for another take, give another seed.

Shapes: T tokens, V voice-prompt frames, F frames, C acoustic dim, D hidden size, N samples.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import VibeVoiceForConditionalGeneration

from vibevoice_finetune.adapters.apply import AppliedSummary, load_adapter
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio, normalize_rms, pad_to_frames
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.hub import Wanted, locate
from vibevoice_finetune.base_model.load import (
    ENCODED_AT_ONCE_FRAMES,
    load_for_generation,
    model_fingerprint,
    open_checkpoint,
    with_special_tokens,
)
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.data.dataset import voice_jitter
from vibevoice_finetune.data.prompt import Encode, SpecialTokens, generation_prompt
from vibevoice_finetune.errors import ArgumentError, DataError, require
from vibevoice_finetune.generation.loop import Prompt, Spoken, acoustic_encoder, speak
from vibevoice_finetune.generation.scripts import Script
from vibevoice_finetune.latents.encode import encode_in_chunks
from vibevoice_finetune.objective.embeddings import draw_latents, embed_prompt

ADAPTER_FILES = Wanted("adapter", ("*.json", "*.safetensors", "*.bin"), "hf download {}")
VOICE_STREAM, FRAME_STREAM = range(2)
"""Last number of a seed: keeps the voices' draws and the frames' apart."""


@dataclass(frozen=True)
class ModelSource:
    """A model to be loaded.

    Attributes:
        name_or_path: a checkpoint: a folder or a Hub id, in either layout.
        adapter: a folder (`OUT/lora`, `OUT/checkpoint-N`) or a Hub id; None for the base model.
        adapter_scale: how much of the adapter: 0 the base, 1 as trained.
        dtype: of the weights; None: bf16 on an NVIDIA GPU, else float32.
        device: as torch names it; None: an NVIDIA GPU if there is one, else the CPU.
        processor_name_or_path: the text tokenizer, if it is not the model's own.
        cache_dir: where downloads are kept.
    """

    name_or_path: str
    adapter: str | None = None
    adapter_scale: float = 1.0
    dtype: torch.dtype | None = None
    device: str | None = None
    processor_name_or_path: str | None = None
    cache_dir: Path | None = None


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


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """What is to be said, by which model, and how.

    Attributes:
        model: loaded already, or to be loaded.
        scripts: what is said, each with its voices.
        cfg_scale: guidance: how far the latents go from what the model would say without text and voice; 1 is none.
        num_diffusion_steps: solver steps a frame.
        seed: of all randomness.
        max_length_sec: where a script is cut off if it does not end by itself.
        batch_size: scripts that are spoken at the same time.

    Raises:
        ArgumentError: a value that cannot be.
    """

    model: ModelSource | SpeechModel
    scripts: tuple[Script, ...]
    cfg_scale: float = 1.3
    num_diffusion_steps: int = 10
    seed: int = 42
    max_length_sec: float = 300.0
    batch_size: int = 8

    def __post_init__(self) -> None:
        checks = (
            ("cfg_scale", math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "at least 0, such as 1.3"),
            ("num_diffusion_steps", 1 <= self.num_diffusion_steps <= 1000, "from 1 to 1000"),
            ("seed", self.seed >= 0, "at least 0"),
            ("max_length_sec", self.max_length_sec > 0, "above 0"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        )
        for name, holds, expected in checks:
            if not holds:
                raise ArgumentError(f"--{name} {vars(self)[name]}: must be {expected}.")
        if not self.scripts:
            raise ArgumentError("nothing to say: give a text or a script.")


@dataclass(frozen=True, eq=False)
class Speech:
    """What was made of one script.

    Attributes:
        waveform_N: float32 at 24 kHz; empty if the model ended before it said anything.
        num_frames: frames of it.
        ended: whether the model ended by itself; False where it was cut off.
        decisions: the tokens that it chose: frame, end of speech, end of text.
    """

    waveform_N: NDArray[np.float32]
    num_frames: int
    ended: bool
    decisions: tuple[int, ...]

    @property
    def duration_sec(self) -> float:
        """Length of the audio."""
        return len(self.waveform_N) / SAMPLING_RATE_HZ


@dataclass(frozen=True, eq=False)
class Generation:
    """The answer to a request.

    Attributes:
        speeches: one for each script, in order.
        seconds: how long it took, without loading the model.
        warnings: what a user should be told, a line each; those of the adapter are in its summary.
    """

    speeches: tuple[Speech, ...]
    seconds: float
    warnings: tuple[str, ...]

    @property
    def real_time_factor(self) -> float:
        """Time taken for a second of audio; infinite if there is none."""
        audio_sec = sum(speech.duration_sec for speech in self.speeches)
        return self.seconds / audio_sec if audio_sec else math.inf


def generate(request: GenerationRequest, on_audio: Callable[[float], None] | None = None) -> Generation:
    """Say all scripts of a request.

    Args:
        request: what, by which model, how.
        on_audio: told after each step how many seconds of audio there are so far, of all scripts together.

    Raises:
        UserError: diffusers is not installed; the model or the adapter cannot be loaded, a voice not be read; or a
            script does not fit into the model's positions.
    """
    require("generate", "diffusers")
    speaker = request.model if isinstance(request.model, SpeechModel) else load_speech_model(request.model)
    started_sec = time.monotonic()
    facts = parts.facts(speaker.model.config)
    frame_sec = facts.hop_length / SAMPLING_RATE_HZ
    max_frames = max(1, int(request.max_length_sec / frame_sec))
    voice_means: dict[AudioSource, Tensor] = {}
    frames_made = 0

    def count(frames: int) -> None:
        nonlocal frames_made
        frames_made += frames
        if on_audio is not None:
            on_audio(frames_made * frame_sec)

    spoken: list[Spoken] = []
    for first in range(0, len(request.scripts), request.batch_size):
        scripts = request.scripts[first : first + request.batch_size]
        prompts = [make_prompt(speaker, script, request.seed, max_frames, voice_means) for script in scripts]
        spoken += speak(
            speaker.model,
            speaker.special,
            prompts,
            cfg_scale=request.cfg_scale,
            num_diffusion_steps=request.num_diffusion_steps,
            on_frames=count,
        )
    return Generation(
        speeches=tuple(
            Speech(row.waveform_N, len(row.waveform_N) // facts.hop_length, row.ended, row.decisions) for row in spoken
        ),
        seconds=time.monotonic() - started_sec,
        warnings=tuple(voice_warnings(speaker.adapter, request.scripts)),
    )


def load_speech_model(source: ModelSource) -> SpeechModel:
    """Load a model for generation and apply an adapter to it.

    Raises:
        ArgumentError: a dtype that the model overflows in, or a device that is not there.
        CheckpointError: the model or its text tokenizer cannot be used.
        AdapterError: the adapter cannot be read or does not fit.
    """
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    dtype = source.dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    if dtype == torch.float16:
        raise ArgumentError("--dtype float16: VibeVoice overflows in it; use bf16 or float32.")
    checkpoint = open_checkpoint(source.name_or_path, source.cache_dir)
    tokenizer = load_tokenizer(checkpoint, source.processor_name_or_path, source.cache_dir)
    special = special_tokens(tokenizer)
    checkpoint = with_special_tokens(checkpoint, special)
    folder = None if source.adapter is None else locate(source.adapter, ADAPTER_FILES, source.cache_dir)[0]
    model = load_for_generation(checkpoint, dtype, device)
    applied = None
    if folder is not None:
        fingerprint = model_fingerprint(checkpoint)
        applied = load_adapter(model, folder, scale=source.adapter_scale, base_fingerprint=fingerprint)
    return SpeechModel(model, partial(tokenizer.encode, add_special_tokens=False), special, applied)


def voice_warnings(adapter: AppliedSummary | None, scripts: tuple[Script, ...]) -> list[str]:
    """What to say where voices are given to an adapter that was trained without, or the other way round."""
    if adapter is None or adapter.expects_voice_prompt is None or adapter.scale == 0:
        return []
    expected = adapter.expects_voice_prompt
    others = [script.where for script in scripts if bool(script.voices) != expected]
    if not others:
        return []
    which = "" if len(others) == len(scripts) else f" ({', '.join(others)})"
    if expected:
        return [
            f"the adapter was trained with voice prompts and none is given{which}: expect another voice; add --voice"
        ]
    return [
        f"the adapter was trained without voice prompts and one is given{which}: leave --voice out to hear its voice"
    ]


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
    ids, voice_positions = generation_prompt(speaker.encode, speaker.special, script.turns, frames)
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
    """
    encoder = acoustic_encoder(model)
    hop_length = parts.facts(parts.config(model)).hop_length
    waveform_N = torch.from_numpy(pad_to_frames(normalize_rms(load_audio(voice)), hop_length))
    waveform_1N = parts.as_input(encoder, waveform_N).to(parts.embed_tokens(model).weight.device)[None]
    mean_1VC = encode_in_chunks(encoder, waveform_1N, ENCODED_AT_ONCE_FRAMES * hop_length)
    return mean_1VC[0].float()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ArgumentError(f"--device {device}: cannot be used here ({str(error).splitlines()[0]})") from error
