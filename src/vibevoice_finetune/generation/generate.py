"""From a request to waveforms: what the `generate` command, evaluation and programs call.

Why: a fine-tune is judged by what it says. So the model hears here exactly what it was trained on: the prompt comes
from `data/prompt.py`, voices are decoded, normalised, padded and encoded as the latent store does it, frames of voices
are embedded by `objective/embeddings.py`. The loop is transformers' own, see `generation/loop.py`.

In: a `GenerationRequest`. Out: a `Generation` with one `Speech` for each script.

Randomness comes from the seed alone: one stream for the voices' latents, one for the frames' noise, both started anew
for each script. So a script sounds the same whatever else is in the request; for another take, give another seed.

Shapes: T tokens, V voice-prompt frames, F frames, C acoustic dim, D hidden size, N samples.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vibevoice_finetune.adapters.apply import AppliedSummary, load_adapter
from vibevoice_finetune.adapters.read import ADAPTER_FILES
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.hub import locate
from vibevoice_finetune.base_model.load import (
    load_for_generation,
    model_fingerprint,
    open_base_model,
    with_special_tokens,
)
from vibevoice_finetune.base_model.original_config import NUM_TRAIN_TIMESTEPS
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.errors import ArgumentError, UserError, is_out_of_memory, require, shown
from vibevoice_finetune.generation.loop import Prompt, Spoken, speak
from vibevoice_finetune.generation.prompts import SpeechModel, make_prompt
from vibevoice_finetune.generation.scripts import Script

_LESS_MEMORY = "use --dtype bf16 (half of float32), a shorter text or voice, another --device, or close other programs."
DEVICES = ("cpu", "cuda", "mps", "xpu")
MAX_STEPS = NUM_TRAIN_TIMESTEPS - 1
"""Solver steps per frame; with as many as training has timesteps, the solver divides by zero."""


@dataclass(frozen=True)
class ModelSource:
    """A model to be loaded.

    Attributes:
        name_or_path: a base model: a folder or a Hub id, in either layout.
        adapter: a folder (`OUT/lora`, `OUT/base-N`) or a Hub id; None for the base model.
        adapter_scale: how much of the adapter is applied: 0 none, 1 as trained.
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
class GenerationRequest:
    """What to speak, with which model, and how.

    Attributes:
        model: loaded already, or to be loaded.
        scripts: what is said, each with its voices.
        cfg_scale: guidance: how far the latents go from what the model would say without text and voice; 1 is none.
        num_diffusion_steps: solver steps per frame.
        seed: of all randomness.
        max_length_sec: where a script is cut off if it does not end by itself.
        batch_size: scripts that are spoken at the same time; fewer where memory does not suffice.

    Raises:
        ArgumentError: a value is out of range.
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
            ("cfg_scale", math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "a finite number, at least 0"),
            ("num_diffusion_steps", 1 <= self.num_diffusion_steps <= MAX_STEPS, f"from 1 to {MAX_STEPS}"),
            ("seed", self.seed >= 0, "at least 0"),
            ("max_length_sec", 0 < self.max_length_sec < math.inf, "a finite number above 0"),
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
        fault: why there is no audio; empty if there is.
    """

    waveform_N: NDArray[np.float32]
    num_frames: int
    ended: bool
    decisions: tuple[int, ...]
    fault: str = ""

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
        warnings: what a user should be told, one line each; those of the adapter are in its summary.
    """

    speeches: tuple[Speech, ...]
    seconds: float
    warnings: tuple[str, ...]

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio; infinite if there is none."""
        audio_sec = sum(speech.duration_sec for speech in self.speeches)
        return self.seconds / audio_sec if audio_sec else math.inf


def generate(
    request: GenerationRequest,
    on_audio: Callable[[float], None] | None = None,
    on_speech: Callable[[int, Speech], None] | None = None,
) -> Generation:
    """Say all scripts of a request. One that cannot be said, such as one that is too long, does not stop the others.

    Args:
        request: what, by which model, how.
        on_audio: told after each step how many seconds of audio there are so far, of all scripts together.
        on_speech: told the number of a script and what was made of it, as soon as it is done; an error that it raises
            ends the work.

    Raises:
        UserError: diffusers is not installed; the model or the adapter cannot be loaded.
    """
    require("generate", "diffusers")
    speaker = request.model if isinstance(request.model, SpeechModel) else load_speech_model(request.model)
    started_sec = time.monotonic()
    teller = _Teller(speaker, request, on_audio)
    speeches: list[Speech] = []
    for first in range(0, len(request.scripts), request.batch_size):
        for speech in teller.say(request.scripts[first : first + request.batch_size]):
            if on_speech is not None:
                on_speech(len(speeches), speech)
            speeches.append(speech)
    return Generation(
        speeches=tuple(speeches),
        seconds=time.monotonic() - started_sec,
        warnings=tuple(voice_warnings(speaker.adapter, request.scripts)),
    )


class _Teller:
    """Says the scripts of one request, batch by batch; each voice is encoded once."""

    def __init__(
        self, speaker: SpeechModel, request: GenerationRequest, on_audio: Callable[[float], None] | None
    ) -> None:
        self._speaker = speaker
        self._request = request
        self._on_audio = on_audio
        self._hop_length = parts.facts(speaker.model.config).hop_length
        self._frame_sec = self._hop_length / SAMPLING_RATE_HZ
        self._max_frames = max(1, int(request.max_length_sec / self._frame_sec))
        self._voice_means: dict[AudioSource, Tensor] = {}
        self._frames_made = 0

    def say(self, scripts: Sequence[Script]) -> list[Speech]:
        """Say scripts at the same time, those left out that cannot be said; in halves where memory does not suffice."""
        found: dict[int, Speech] = {}
        prompts: dict[int, Prompt] = {}
        frames_before = self._frames_made
        try:
            for number, script in enumerate(scripts):
                try:
                    prompts[number] = make_prompt(
                        self._speaker, script, self._request.seed, self._max_frames, self._voice_means
                    )
                except UserError as error:
                    found[number] = _nothing(str(error))
            if prompts:
                spoken = speak(
                    self._speaker.model,
                    self._speaker.special,
                    list(prompts.values()),
                    cfg_scale=self._request.cfg_scale,
                    num_diffusion_steps=self._request.num_diffusion_steps,
                    on_frames=self._count,
                )
                found |= {
                    number: self._speech(scripts[number], row) for number, row in zip(prompts, spoken, strict=True)
                }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return [found[number] for number in range(len(scripts))]
        # Out of the handler, so that the tensors of the failed attempt are free.
        self._frames_made = frames_before
        if len(scripts) == 1:
            return [_nothing(f"{scripts[0].where}: there is not enough memory to say it; {_LESS_MEMORY}")]
        middle = len(scripts) // 2
        return [speech for half in (scripts[:middle], scripts[middle:]) for speech in self.say(half)]

    def _speech(self, script: Script, row: Spoken) -> Speech:
        if not (row.is_finite and np.isfinite(row.waveform_N).all()):
            return _nothing(
                f"{script.where}: the model computed numbers that are not finite; use --dtype float32, a lower "
                "--cfg_scale or --adapter_scale, or another adapter or base model."
            )
        fault = ""
        if not len(row.waveform_N):
            fault = f"{script.where}: the model said nothing; try another --seed, --cfg_scale or --voice."
        return Speech(row.waveform_N, len(row.waveform_N) // self._hop_length, row.ended, row.decisions, fault)

    def _count(self, frames: int) -> None:
        self._frames_made += frames
        if self._on_audio is not None:
            self._on_audio(self._frames_made * self._frame_sec)


def _nothing(fault: str) -> Speech:
    return Speech(np.zeros(0, dtype=np.float32), 0, ended=False, decisions=(), fault=fault)


def load_speech_model(source: ModelSource) -> SpeechModel:
    """Load a model for generation and apply an adapter to it.

    Raises:
        ArgumentError: a dtype that the model overflows in, or a device that is not there.
        BaseModelError: the model or its text tokenizer cannot be used.
        AdapterError: the adapter cannot be read or does not fit.
    """
    device = source.device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    dtype = source.dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    if dtype == torch.float16:
        raise ArgumentError("--dtype float16: VibeVoice overflows in it; use bf16 or float32.")
    base = open_base_model(source.name_or_path, source.cache_dir)
    tokenizer = load_tokenizer(base, source.processor_name_or_path, source.cache_dir)
    special = special_tokens(tokenizer)
    base = with_special_tokens(base, special)
    folder = None if source.adapter is None else locate(source.adapter, ADAPTER_FILES, source.cache_dir)[0]
    try:
        model = load_for_generation(base, dtype, device)
        applied = None
        if folder is not None:
            fingerprint = model_fingerprint(base)
            applied = load_adapter(model, folder, scale=source.adapter_scale, base_fingerprint=fingerprint)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"{source.name_or_path}: there is not enough memory to load the model as {str(dtype)[6:]} on {device}; "
            f"{_LESS_MEMORY}"
        ) from error
    # Not verbose: transformers would remark on a text that is longer than the tokenizer's own limit.
    encode = partial(tokenizer.encode, add_special_tokens=False, verbose=False)
    return SpeechModel(model, encode, special, applied)


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


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
        if kind not in DEVICES:
            raise ArgumentError(f"--device {shown(device)}: not supported; expected {', '.join(DEVICES)}, or cuda:1.")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        said = str(error).splitlines()[0].split(". ")[0]
        raise ArgumentError(f"--device {shown(device)}: cannot be used here ({said[:200]})") from error
