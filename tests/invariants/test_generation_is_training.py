"""What you train is what you hear: the generation loop and the training forward, side by side.

The loop runs with hooks on its modules. Then the latents that it sampled go through the training forward as if they had
been the encoding of a target, with the semantic features of the audio that was made. Inputs of the language model at
every position, conditions of every frame and the scores of the control tokens must agree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.invariants.listening import Heard, run, voice_jitters
from vibevoice_finetune.audio.source import load_audio, normalize_rms, num_frames, pad_to_frames, parse_audio
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import (
    SpeechEncoders,
    load_encoders,
    load_for_training,
    open_base_model,
    with_special_tokens,
)
from vibevoice_finetune.data.collate import Batch, collate
from vibevoice_finetune.data.dataset import Example
from vibevoice_finetune.data.prompt import generation_prompt, training_sequence, unconditional_sequence
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    load_speech_model,
)
from vibevoice_finetune.generation.prompts import SpeechModel
from vibevoice_finetune.generation.scripts import Script, script_from_text
from vibevoice_finetune.latents.shards import Part
from vibevoice_finetune.objective.embeddings import draw_latents
from vibevoice_finetune.objective.losses import control_logits
from vibevoice_finetune.objective.objective import Objective

TOLERANCE = 1e-4
SEED = 11
SOLVER_STEPS = 3
FRAMES = (7, 5, 4, 1)
"""Of the four scripts; so rows end at different steps of a batch."""


@dataclass(frozen=True, eq=False)
class Setup:
    """One checkpoint, loaded by both sides."""

    speaker: SpeechModel
    objective: Objective
    encoders: SpeechEncoders
    scripts: tuple[Script, ...]

    @property
    def facts(self) -> parts.ModelFacts:
        return parts.facts(self.speaker.model.config)


@cache
def load(model_dir: Path, processor_dir: Path | None) -> Setup:
    processor = None if processor_dir is None else str(processor_dir)
    source = ModelSource(str(model_dir), dtype=torch.float32, device="cpu", processor_name_or_path=processor)
    speaker = load_speech_model(source)
    checkpoint = with_special_tokens(open_base_model(str(model_dir)), speaker.special)
    objective = Objective(load_for_training(checkpoint, torch.float32, "cpu"), speaker.special).eval()
    encoders = load_encoders(checkpoint, torch.float32, "cpu")
    hop = parts.facts(checkpoint.config).hop_length
    rng = np.random.default_rng(3)
    short, long = (
        parse_audio(0.1 * rng.standard_normal(samples, dtype=np.float32), None, "voice")
        for samples in (2 * hop + 1, 5 * hop - 7)  # 3 and 5 frames, the last one partial
    )
    scripts = (
        script_from_text("Hello."),
        script_from_text("Speaker 4: A longer line, with a voice.", [long]),
        script_from_text("Speaker 1: Hi.\nSpeaker 2: Yes?\nSpeaker 1: No.", [short, long]),
        script_from_text("Speaker 2: Two of us.\nSpeaker 7: And no voices."),
    )
    return Setup(speaker, objective, encoders, scripts)


@pytest.fixture(params=["tied", "untied", "tiny"])
def setup(request: pytest.FixtureRequest, golden_dir: Path, tiny_checkpoint: Path) -> Setup:
    if request.param == "tiny":
        return load(tiny_checkpoint, None)
    return load(golden_dir / request.param / "checkpoint", golden_dir / "tokenizer")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def request_for(setup: Setup, numbers: Sequence[int], **settings: Any) -> GenerationRequest:
    scripts = tuple(setup.scripts[number] for number in numbers)
    values = {"cfg_scale": 1.3, "num_diffusion_steps": SOLVER_STEPS, "seed": SEED, **settings}
    return GenerationRequest(setup.speaker, scripts, **values)


@dataclass(frozen=True, eq=False)
class Side:
    """What training makes of the latents that generation sampled: one batch, and its rows."""

    examples: list[Example]
    batch: Batch
    embeddings_TD: Tensor
    hidden_TD: Tensor


def train_on(setup: Setup, numbers: Sequence[int], generation: Generation, heard: Heard, *, guided: bool) -> Side:
    """The training forward on what was generated, all rows packed into one batch; `guided`: with text and voices."""
    examples = [
        make_example(setup, setup.scripts[number], row, generation, heard, guided=guided)
        for row, number in enumerate(numbers)
    ]
    batch = collate(examples)
    objective = setup.objective
    embeddings_BTD = objective.embeddings(
        batch, draw_latents(objective.model, batch["target_mean"], batch["target_jitter"])
    )
    return Side(examples, batch, embeddings_BTD[0], objective.hidden_states(embeddings_BTD, batch))


def make_example(
    setup: Setup, script: Script, row: int, generation: Generation, heard: Heard, *, guided: bool
) -> Example:
    """A training example whose target is what generation said, its voices encoded as the latent store does."""
    speech = generation.speeches[row]
    frames = speech.num_frames
    # What the decoder was given has no scale and bias any more: it is what the encoder's mean is.
    mean_FC = torch.stack([step[row] for step in heard.latents[:frames]]).numpy()
    waveform_1N = torch.from_numpy(speech.waveform_N)[None]
    semantic = setup.encoders.encode(Part.SEMANTIC, waveform_1N)
    streamed_FS = torch.stack([step[row] for step in heard.semantic[:frames]])
    torch.testing.assert_close(streamed_FS, semantic[0], atol=TOLERANCE, rtol=0)
    dim = setup.facts.acoustic_dim
    voices = [encode_voice(setup, voice) for voice in script.voices] if guided else []
    jitters = voice_jitters(SEED, [len(voice) for voice in voices], dim)
    nothing = np.zeros((0, dim), dtype=np.float32)
    if guided:
        lengths = [len(voice) for voice in voices]
        sequence = training_sequence(setup.speaker.encode, setup.speaker.special, script.turns, lengths, frames)
    else:
        sequence = unconditional_sequence(setup.speaker.special, frames)
    return Example(
        where=script.where,
        ghost=False,
        sequence=sequence,
        voice_mean_VC=np.concatenate([nothing, *voices]),
        voice_jitter_VC=np.concatenate([nothing, *jitters]),
        target_mean_FC=mean_FC,
        target_jitter_FC=np.zeros_like(mean_FC),
        target_semantic_FS=semantic[0].numpy(),
        timestep_FK=np.zeros((frames, 1), dtype=np.int64),
        noise_FKC=np.zeros((frames, 1, dim), dtype=np.float32),
    )


def encode_voice(setup: Setup, voice: Any) -> np.ndarray:
    waveform_N = pad_to_frames(normalize_rms(load_audio(voice)), setup.facts.hop_length)
    return setup.encoders.encode(Part.ACOUSTIC, torch.from_numpy(waveform_N)[None])[0].numpy()


def prompt_length(setup: Setup, number: int) -> int:
    script = setup.scripts[number]
    frames = [num_frames(len(load_audio(voice)), setup.facts.hop_length) for voice in script.voices]
    ids, _ = generation_prompt(setup.speaker.encode, setup.speaker.special, script.turns, frames)
    return len(ids)


def heard_conditions(heard: Heard, frames: Sequence[int], *, guided: bool) -> Tensor:
    """(F, D): the conditions of all rows' frames, row after row, from the steps of all rows."""
    of_rows: list[list[Tensor]] = [[] for _ in frames]
    for step, conditions in enumerate(heard.conditions[::SOLVER_STEPS]):  # the same at each solver step of a frame
        speaking = [row for row, count in enumerate(frames) if step < count]
        assert len(conditions) == 2 * len(speaking)
        for row, condition in zip(speaking, conditions.chunk(2)[0 if guided else 1], strict=True):
            of_rows[row].append(condition)
    return torch.stack([condition for row in of_rows for condition in row])


BATCHES = [(0,), (1,), (2,), (3,), (0, 1, 2, 3)]


@cache
def both_sides(setup: Setup, numbers: tuple[int, ...]) -> tuple[Heard, Side]:
    """Generation with strong guidance of the latents, of which nothing may reach tokens or inputs; and training."""
    frames = [FRAMES[number] for number in numbers]
    generation, heard = run(request_for(setup, numbers, cfg_scale=3.0), frames)
    assert [speech.num_frames for speech in generation.speeches] == frames
    return heard, train_on(setup, numbers, generation, heard, guided=True)


@pytest.mark.parametrize("numbers", BATCHES, ids=str)
def test_training_sees_what_generation_sees(setup: Setup, numbers: tuple[int, ...]) -> None:
    frames = [FRAMES[number] for number in numbers]
    heard, side = both_sides(setup, numbers)
    begin = 0
    for row, number in enumerate(numbers):
        prompt = prompt_length(setup, number)
        # The loop never reads the end of text back, so everything before it is compared.
        length = prompt + frames[row] + 1
        here = slice(begin, begin + length)
        torch.testing.assert_close(
            heard.row_inputs(row, prompt)[:length], side.embeddings_TD[here], atol=TOLERANCE, rtol=0
        )
        torch.testing.assert_close(heard.row_hidden(row, prompt)[:length], side.hidden_TD[here], atol=TOLERANCE, rtol=0)
        begin += length + 1
    assert begin == len(side.hidden_TD)
    trained_on = side.hidden_TD[side.batch["condition_index"]]
    torch.testing.assert_close(heard_conditions(heard, frames, guided=True), trained_on, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("numbers", BATCHES, ids=str)
def test_tokens_are_chosen_by_the_scores_that_training_scores(setup: Setup, numbers: tuple[int, ...]) -> None:
    heard, side = both_sides(setup, numbers)
    matrix_VD = parts.lm_head(setup.objective.model).weight
    ids = torch.tensor(setup.speaker.special.ids)
    expected = control_logits(side.hidden_TD[side.batch["control_index"]], matrix_VD, ids)
    steps = torch.stack(heard.scores)
    # F + 2 decisions of a row: its frames, the end of speech, the end of text.
    found = torch.cat([steps[: FRAMES[number] + 2, row] for row, number in enumerate(numbers)])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("numbers", [(1,), (0, 1, 2, 3)], ids=str)
def test_the_unconditional_branch_is_the_unconditional_row(setup: Setup, numbers: tuple[int, ...]) -> None:
    frames = [FRAMES[number] for number in numbers]
    generation, heard = run(request_for(setup, numbers), frames)
    side = train_on(setup, numbers, generation, heard, guided=False)
    trained_on = side.hidden_TD[side.batch["condition_index"]]
    torch.testing.assert_close(heard_conditions(heard, frames, guided=False), trained_on, atol=TOLERANCE, rtol=0)
    begin = 0
    for row, count in enumerate(frames):
        inputs = torch.cat([step[row] for step in heard.negative_inputs[:count]])
        torch.testing.assert_close(inputs, side.embeddings_TD[begin : begin + count], atol=TOLERANCE, rtol=0)
        begin += count + 1


def test_a_wrong_training_input_would_show(setup: Setup) -> None:
    """The comparison above is not blind: the defects of other trainers are far above its tolerance."""
    heard, right = both_sides(setup, (2,))
    conditions = heard_conditions(heard, (FRAMES[2],), guided=True)
    shifted = right.hidden_TD[right.batch["target_index"]]
    without_semantics = Batch(**{**right.batch, "target_semantic": torch.zeros_like(right.batch["target_semantic"])})
    clean = draw_latents(setup.objective.model, right.batch["target_mean"], right.batch["target_jitter"])
    deaf = setup.objective.hidden_states(setup.objective.embeddings(without_semantics, clean), without_semantics)
    deaf = deaf[right.batch["condition_index"]]
    assert (shifted - conditions).abs().max() > 100 * TOLERANCE
    assert (deaf - conditions).abs().max() > 100 * TOLERANCE
