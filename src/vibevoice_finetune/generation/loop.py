"""transformers' generation loop, corrected from outside: prompts of the language model in, waveforms out.

Why: the loop itself (`generate()` of the VibeVoice classes) belongs to the library and is used as it is, because it
steps the language model, both of its branches, the streaming decoder and the semantic encoder, and a copy of it would
have to follow every release. But in three places it does not do what the original does, and has no option for it. They
are corrected for the time of a call:

- With guidance it adds a processor that guides the *token* scores too, and runs the language model a third time per
  step for it. The original chooses tokens without guidance, and with it most token sequences come out different. The
  processor is taken out of the list (`_corrected`); a test fails if transformers renames or moves it.
- It draws the noise of all rows at once from torch's global generator, so what a row sounds like depends on its
  neighbours. Here each row has a generator of its own, on the CPU: a script sounds the same in any batch and on any
  device. The method that turns noise into latents is replaced (`sample`).
- It has one limit for all rows, and does not say whether a row ended by itself. A processor of ours, the last in the
  list (`Decisions`), counts frames, ends a row at its limit and notes what was chosen.

Latents are sampled as in training: the diffusion head is called through `parts.predict_velocity`, with timesteps and
latents in float32, whatever the model's dtype.

Rows are padded on the left, with positions that count from a row's own first token, as in training. A row that says
frame after frame and then ends is the same in a batch as alone, up to rounding. One that goes on after its end of
speech is not: while others speak, the loop lets the decoder of a waiting row run on. Such rows are made again, alone.

Shapes: B rows, T tokens, F frames, C acoustic dim, D hidden size, N samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    VibeVoiceForConditionalGeneration,
)
from transformers.models.vibevoice.modeling_vibevoice import VibeVoiceDiffusionHead

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.config import NOISE_SCHEDULE
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import require

SPARE_TOKENS = 16
"""How many decisions other than "frame" a row may take; an end of speech and an end of text are usual."""


class Solver(Protocol):
    """What is used of diffusers' `DPMSolverMultistepScheduler`."""

    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Begin a new sample."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        """One step; the result's `prev_sample` is less noisy."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What one row is given.

    Attributes:
        embeddings_TD: inputs of the language model up to the `<start>` of the speech.
        max_frames: the most that the row may say.
        rng: of the frames' noise; drawn from once per frame.
    """

    embeddings_TD: Tensor
    max_frames: int
    rng: np.random.Generator


@dataclass(frozen=True, eq=False)
class Spoken:
    """What one row said.

    Attributes:
        waveform_N: float32, `hop_length` samples a frame.
        decisions: the tokens that it chose, in order.
        ended: whether it ended by itself; False where a limit ended it.
        is_finite: whether all that it computed are numbers; False ends a row, since nothing good follows.
    """

    waveform_N: NDArray[np.float32]
    decisions: tuple[int, ...]
    ended: bool
    is_finite: bool


def speak(
    model: VibeVoiceForConditionalGeneration,
    special: SpecialTokens,
    prompts: Sequence[Prompt],
    *,
    cfg_scale: float,
    num_diffusion_steps: int,
    on_frames: Callable[[int], None],
) -> list[Spoken]:
    """Let the model speak all rows at the same time.

    Args:
        model: the whole model; it comes back as it was.
        special: ids of the control tokens; the model's configuration has the same.
        prompts: the rows, run as one batch.
        cfg_scale: guidance of the latents; 1 is none.
        num_diffusion_steps: solver steps per frame.
        on_frames: told after each step how many frames were added.

    Raises:
        UserError: diffusers is not installed.
    """
    solver = make_solver()
    # Drawing moves the generators on; a row that is made again must begin where it began the first time.
    states = [prompt.rng.bit_generator.state for prompt in prompts]
    rows = _speak_batch(model, special, prompts, solver, cfg_scale, num_diffusion_steps, on_frames)
    if len(prompts) == 1:
        return rows
    for index, prompt in enumerate(prompts):
        if not is_plain(rows[index].decisions, special):
            prompt.rng.bit_generator.state = states[index]
            (rows[index],) = _speak_batch(model, special, [prompt], solver, cfg_scale, num_diffusion_steps, on_frames)
    return rows


def acoustic_encoder(model: nn.Module) -> nn.Module:
    """The acoustic tokenizer's encoder: waveforms to the means of latents."""
    return cast(nn.Module, cast(VibeVoiceForConditionalGeneration, model).model.audio_tower.encoder)


def make_solver() -> Solver:
    """The solver of the released models.

    Raises:
        UserError: diffusers is not installed.
    """
    return cast(Solver, require("generate", "diffusers").DPMSolverMultistepScheduler(**NOISE_SCHEDULE))


def is_plain(decisions: Sequence[int], special: SpecialTokens) -> bool:
    """Whether a row said frame after frame and then ended, with nothing after the end of speech but the end of text.

    >>> special = SpecialTokens(speech_start=90, speech_end=91, frame=92, end_of_text=93)
    >>> is_plain([92, 92, 91, 93], special), is_plain([92, 92], special), is_plain([92, 91, 92], special)
    (True, True, False)
    """
    frames = next((at for at, token in enumerate(decisions) if token != special.frame), len(decisions))
    return tuple(decisions[frames:]) in {
        (),
        (special.speech_end,),
        (special.end_of_text,),
        (special.speech_end, special.end_of_text),
    }


def sample_latents(
    head: VibeVoiceDiffusionHead,
    solver: Solver,
    condition_FD: Tensor,
    negative_FD: Tensor,
    noise_FC: Tensor,
    *,
    cfg_scale: float,
    num_steps: int,
) -> Tensor:
    """Turn noise into latents in the model's units, by following the velocity that the diffusion head predicts.

    Args:
        head: predicts the velocity.
        solver: started from its first step here.
        condition_FD: (F, D) what the language model says of each frame.
        negative_FD: (F, D) the same, from the branch without text and voice.
        noise_FC: (F, C) standard normal, float32.
        cfg_scale: ``negative + cfg_scale · (conditional − negative)`` is the velocity followed.
        num_steps: solver steps.

    Returns:
        (F, C) float32.
    """
    guided = cfg_scale != 1.0
    conditions = torch.cat([condition_FD, negative_FD]) if guided else condition_FD
    solver.set_timesteps(num_inference_steps=num_steps)
    latents_FC = noise_FC
    for timestep in solver.timesteps:
        noisy = torch.cat([latents_FC, latents_FC]) if guided else latents_FC
        steps = timestep.to(noisy.device).expand(len(noisy), 1)
        velocity = parts.predict_velocity(head, noisy.unsqueeze(1), steps, conditions).squeeze(1).float()
        if guided:
            with_text, without = velocity.chunk(2)
            velocity = without + cfg_scale * (with_text - without)
        latents_FC = solver.step(velocity, timestep, latents_FC).prev_sample
    return latents_FC


class Decisions(LogitsProcessor):
    """The last processor of the token scores: notes what each row chooses, and ends a row at its limit.

    A processor is the only place in the loop that sees every choice before it is made; as the last in the list, ours
    sees the scores that the loop takes the highest of.

    Attributes:
        taken: the tokens that each row chose.
        ended: rows that chose end of text by themselves.
        broken: rows whose scores are not numbers, and which end there.
        speaking: rows that chose a frame in the latest step, ascending.
    """

    def __init__(self, special: SpecialTokens, max_frames: Sequence[int], on_frames: Callable[[int], None]) -> None:
        self._special = special
        self._left = list(max_frames)
        self._on_frames = on_frames
        self._done: set[int] = set()
        self.taken: list[list[int]] = [[] for _ in max_frames]
        self.ended: set[int] = set()
        self.broken: set[int] = set()
        self.speaking: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) of the next token, as they are or with the end of text forced."""
        del input_ids
        self.speaking = []
        tokens = scores.argmax(-1)
        best = scores.gather(-1, tokens[:, None])[:, 0].tolist()
        for row, token in enumerate(tokens.tolist()):
            if row in self._done:
                continue
            if not math.isfinite(best[row]):
                scores[row] = -torch.inf
                scores[row, self._special.end_of_text] = 0
                self._done.add(row)
                self.broken.add(row)
                continue
            if token == self._special.frame and self._left[row] == 0:  # at its limit: only the end of text is left
                scores[row] = -torch.inf
                scores[row, self._special.end_of_text] = 0
                self._done.add(row)
                continue
            self.taken[row].append(token)
            if token == self._special.frame:
                self.speaking.append(row)
                self._left[row] -= 1
            elif token == self._special.end_of_text:
                self._done.add(row)
                self.ended.add(row)
        self._on_frames(len(self.speaking))
        return scores


@torch.no_grad()
def _speak_batch(
    model: VibeVoiceForConditionalGeneration,
    special: SpecialTokens,
    prompts: Sequence[Prompt],
    solver: Solver,
    cfg_scale: float,
    num_diffusion_steps: int,
    on_frames: Callable[[int], None],
) -> list[Spoken]:
    decisions = Decisions(special, [prompt.max_frames for prompt in prompts], on_frames)

    # The loop hands over the conditions of those rows that chose a frame in this step, in the order of the batch:
    # `decisions.speaking`.
    def sample(condition_FD: Tensor, negative_FD: Tensor, *_: object) -> Tensor:
        """Takes the place of the loop's `_sample_audio_latent`: (F, 1, C) for the rows that speak."""
        draws = [prompts[row].rng.standard_normal(acoustic_dim, dtype=np.float32) for row in decisions.speaking]
        assert len(draws) == len(condition_FD)
        latents_FC = sample_latents(
            parts.diffusion_head(model),
            solver,
            condition_FD,
            negative_FD,
            torch.from_numpy(np.stack(draws)).to(condition_FD.device),
            cfg_scale=cfg_scale,
            num_steps=num_diffusion_steps,
        )
        return parts.as_input(parts.acoustic_connector(model), latents_FC).unsqueeze(1)

    acoustic_dim = parts.facts(model.config).acoustic_dim
    inputs = _pad_left(prompts, special.end_of_text)
    with _corrected(model, decisions, sample), _evaluating(model):
        output = cast(Any, model).generate(  # its type knows none of the arguments of this model
            **inputs,
            max_length=inputs["input_ids"].shape[1] + max(prompt.max_frames for prompt in prompts) + SPARE_TOKENS,
            eos_token_id=special.end_of_text,
            pad_token_id=special.end_of_text,
            do_sample=False,
            guidance_scale=cfg_scale,
            num_diffusion_steps=num_diffusion_steps,
            noise_scheduler=solver,
            return_dict_in_generate=True,
        )
    nothing = np.zeros(0, dtype=np.float32)
    return [
        Spoken(
            waveform_N=nothing if audio is None else audio.flatten().float().cpu().numpy(),
            decisions=tuple(decisions.taken[row]),
            ended=row in decisions.ended,
            is_finite=row not in decisions.broken,
        )
        for row, audio in enumerate(output.audio)
    ]


def _pad_left(prompts: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """The rows as one batch. Of the ids only the length is read; what the language model sees are the embeddings."""
    lengths = [len(prompt.embeddings_TD) for prompt in prompts]
    longest = max(lengths)
    first = prompts[0].embeddings_TD
    embeddings_BTD = first.new_zeros(len(prompts), longest, first.shape[1])
    mask_BT = torch.zeros(len(prompts), longest, dtype=torch.long, device=first.device)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        embeddings_BTD[row, longest - length :] = prompt.embeddings_TD
        mask_BT[row, longest - length :] = 1
    return {
        "input_ids": torch.full_like(mask_BT, pad_id),
        "inputs_embeds": embeddings_BTD,
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(-1) - 1).clamp(min=0),
    }


@contextmanager
def _corrected(model: nn.Module, last: LogitsProcessor, sample: Callable[..., Tensor]) -> Iterator[None]:
    """Replace two methods of one model for a while; the class and other models keep theirs.

    The processor of guidance is made inside this method of transformers, from `guidance_scale`, which the latents need
    too; so there is no argument that keeps it out.
    """
    native = cast(Any, model)._get_logits_processor  # noqa: SLF001

    def processors(*args: object, **kwargs: object) -> LogitsProcessorList:
        kept = [p for p in native(*args, **kwargs) if not isinstance(p, UnbatchedClassifierFreeGuidanceLogitsProcessor)]
        return LogitsProcessorList([*kept, last])

    own = vars(model)
    corrected = {"_get_logits_processor": processors, "_sample_audio_latent": sample}
    before = {name: own[name] for name in corrected if name in own}
    own.update(corrected)
    try:
        yield
    finally:
        for name in corrected:
            del own[name]
        own.update(before)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off; a model that is being trained goes on with it afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
