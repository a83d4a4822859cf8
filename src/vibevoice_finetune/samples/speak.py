"""Let a model that is being trained speak, without training noticing it.

The model comes without its speech tokenizers; they are put in for the time of a call. Everything that a call could
change and a later training step depends on is put back: random generators, attention, training mode, compilation.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import (
    VibeVoiceAcousticTokenizerEncoderModel,
    VibeVoiceAcousticTokenizerModel,
    VibeVoiceForConditionalGeneration,
)

from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.base_model.config import part_configs
from vibevoice_finetune.base_model.load import BaseModel, load_part
from vibevoice_finetune.data.prompt import Encode, SpecialTokens
from vibevoice_finetune.generation.generate import GenerationRequest, Speech, generate
from vibevoice_finetune.generation.prompts import SpeechModel
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.samples.script import SampleText

SEED = 42
"""Of every sample of every run, so that what is heard can be compared."""

ATTENTION = "sdpa"
"""Rows of a generation are padded, which attention row by row does not know."""


@dataclass(frozen=True, eq=False)
class Tokenizers:
    """The speech tokenizers that a model loaded for training lacks."""

    acoustic: VibeVoiceAcousticTokenizerModel
    semantic: VibeVoiceAcousticTokenizerEncoderModel


class Speaker:
    """Speaks with a model that is being trained.

    Args:
        model: without speech tokenizers, adapters attached.
        base: where the tokenizers are read.
        encode: the text tokenizer.
        special: ids of the control tokens.
        bf16: whether the model is trained under autocast to bf16.
        keep: whether the tokenizers stay in memory between calls.
    """

    def __init__(
        self,
        model: nn.Module,
        base: BaseModel,
        encode: Encode,
        special: SpecialTokens,
        *,
        bf16: bool,
        keep: bool,
    ) -> None:
        self._model = cast(VibeVoiceForConditionalGeneration, model)
        self._base = base
        self._speech_model = SpeechModel(self._model, encode, special)
        self._bf16 = bf16
        self._keep = keep
        self._kept: Tokenizers | None = None

    def say(self, texts: Sequence[SampleText], limit_sec: float, on_speech: Callable[[int, Speech], None]) -> None:
        """Say texts, and hand over each as soon as it is done.

        Args:
            texts: what is said.
            limit_sec: where a text is cut off if the model does not end by itself.
            on_speech: told the number of a text and what was made of it.
        """
        model, device = self._model, parts.embed_tokens(self._model).weight.device
        with undisturbed(device):
            tokenizers = self._kept or self._load(device)
            self._kept = tokenizers if self._keep else None
            with (
                parts.whole_for_generation(model, tokenizers.acoustic, tokenizers.semantic),
                _attending(model),
                torch.compiler.set_stance("force_eager"),
                torch.autocast(device.type, torch.bfloat16, enabled=self._bf16),
            ):
                request = GenerationRequest(
                    model=self._speech_model,
                    scripts=tuple(text.script for text in texts),
                    seed=SEED,
                    max_length_sec=limit_sec,
                )
                generate(request, on_speech=on_speech)
            del tokenizers
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, device: torch.device) -> Tokenizers:
        audio, semantic, _, _ = part_configs(self._base.config)
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        acoustic_kind, semantic_kind = VibeVoiceAcousticTokenizerModel, VibeVoiceAcousticTokenizerEncoderModel
        acoustic = load_part(self._base, acoustic_kind, audio, tensor_names.ACOUSTIC_TOKENIZER, dtype, device)
        encoder = load_part(self._base, semantic_kind, semantic, tensor_names.SEMANTIC_ENCODER, dtype, device)
        return Tokenizers(acoustic.requires_grad_(False), encoder.requires_grad_(False))  # in evaluation mode as loaded


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Put every global random generator back to where it was: Python's, numpy's, torch's and the GPU's."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002  # nothing is drawn from it
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def _attending(model: VibeVoiceForConditionalGeneration) -> Iterator[None]:
    language_model = parts.language_model(model)
    before = str(language_model.config._attn_implementation)  # noqa: SLF001  # transformers has no public name for it
    set_attention(language_model, ATTENTION)
    try:
        yield
    finally:
        set_attention(language_model, before)
