"""Ears on the generation loop: what goes into every module, while the loop itself runs untouched.

`listen` records by forward hooks; `directed` makes a random model say as many frames as wanted, by a processor of the
token scores that notes the model's own scores first. Neither changes the path from embeddings to audio.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.generation.generate import Generation, GenerationRequest, generate
from vibevoice_finetune.generation.prompts import SpeechModel


@dataclass
class Heard:
    """What one run of the loop gave its modules. B rows, n rows that speak in a step, C acoustic, D hidden size."""

    inputs: list[Tensor] = field(default_factory=list)  # conditional branch: (B, T, D) of the prompt, then (B, 1, D)
    hidden: list[Tensor] = field(default_factory=list)  # last hidden states at those
    negative_inputs: list[Tensor] = field(default_factory=list)  # unconditional branch, (B, 1, D) a step
    conditions: list[Tensor] = field(default_factory=list)  # given to the diffusion head, (n or 2n, D) a solver step
    latents: list[Tensor] = field(default_factory=list)  # given to the decoder, (B, C) a step, unscaled
    semantic: list[Tensor] = field(default_factory=list)  # what the semantic encoder made of its audio, (B, S) a step
    scores: list[Tensor] = field(default_factory=list)  # the model's own, of the four control tokens, (B, 4) a step

    def row_inputs(self, row: int, num_tokens: int) -> Tensor:
        """(T + steps, D): the inputs of one row whose prompt has `num_tokens`, without its padding."""
        return _row(self.inputs, row, num_tokens)

    def row_hidden(self, row: int, num_tokens: int) -> Tensor:
        """(T + steps, D): as `row_inputs`."""
        return _row(self.hidden, row, num_tokens)


def _row(steps: list[Tensor], row: int, num_tokens: int) -> Tensor:
    padding = steps[0].shape[1] - num_tokens
    return torch.cat([step[row] for step in steps])[padding:]


@contextmanager
def listen(model: nn.Module) -> Iterator[Heard]:
    """Record one call of the loop."""
    heard = Heard()
    whole: Any = model
    caches: list[object] = []

    def into_language_model(_: nn.Module, __: object, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["past_key_values"]
        if not caches:
            caches.append(cache)
        if cache is caches[0]:
            heard.inputs.append(kwargs["inputs_embeds"].clone())
            heard.hidden.append(output.last_hidden_state.clone())
        else:
            heard.negative_inputs.append(kwargs["inputs_embeds"].clone())

    def into_head(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard.conditions.append(inputs[0].clone())

    def into_decoder(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        heard.latents.append(inputs[0][..., 0].clone())

    def out_of_semantic_encoder(_: nn.Module, __: object, output: Any) -> None:
        heard.semantic.append(output.latents[:, 0].clone())

    with ExitStack() as hooks:
        for hook in (
            parts.language_model(model).register_forward_hook(into_language_model, with_kwargs=True),
            parts.diffusion_head(model).cond_proj.register_forward_pre_hook(into_head),
            whole.model.audio_tower.decoder.register_forward_pre_hook(into_decoder),
            whole.model.semantic_tokenizer_encoder.register_forward_hook(out_of_semantic_encoder),
        ):
            hooks.callback(hook.remove)
        yield heard


class _Director(LogitsProcessor):
    def __init__(self, frames: Sequence[int] | None, special: SpecialTokens, scores: list[Tensor]) -> None:
        self.frames = frames
        self.special = special
        self.scores = scores

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self.scores)
        self.scores.append(scores[:, list(self.special.ids)].clone())
        if self.frames is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        for row, frames in enumerate(self.frames):
            ending = (self.special.speech_end, self.special.end_of_text)
            forced[row, self.special.frame if step < frames else ending[min(step - frames, 1)]] = 0
        return forced


@contextmanager
def directed(
    model: nn.Module, special: SpecialTokens, frames: Sequence[int] | None, scores: list[Tensor]
) -> Iterator[None]:
    """Make row i say `frames[i]` frames, end of speech and end of text; None: only note the scores."""
    whole: Any = model
    native = whole._get_logits_processor

    def processors(*args: Any, **kwargs: Any) -> LogitsProcessorList:
        return LogitsProcessorList([*native(*args, **kwargs), _Director(frames, special, scores)])

    vars(model)["_get_logits_processor"] = processors
    try:
        yield
    finally:
        del vars(model)["_get_logits_processor"]


def run(request: GenerationRequest, frames: Sequence[int] | None = None) -> tuple[Generation, Heard]:
    """Answer a request of one batch, and what was heard meanwhile.

    Args:
        request: with a loaded model.
        frames: how many frames each script is to have; None for what the model chooses.
    """
    assert isinstance(request.model, SpeechModel)
    model = request.model.model
    with listen(model) as heard, directed(model, request.model.special, frames, heard.scores):
        generation = generate(request)
    return generation, heard


def voice_jitters(seed: int, num_frames: Sequence[int], acoustic_dim: int) -> list[np.ndarray]:
    """The draws of a script's voices, (V, C) each: one factor a clip, then noise, one stream a script."""
    rng = np.random.default_rng((seed, 0))
    jitters = []
    for frames in num_frames:
        factor = np.float32(rng.standard_normal())
        jitters.append(factor * rng.standard_normal((frames, acoustic_dim), dtype=np.float32))
    return jitters
