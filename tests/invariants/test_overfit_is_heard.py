"""A model that has learned one clip by heart says that clip: training, saving, loading and generation in one line.

The speech tokenizers are random here, and that matters in one place. Generation decodes the latents that it sampled and
hears the audio through the semantic encoder; a real decoder gives back the clip, a random one gives noise that has
nothing to do with the recording that the latents came from. So a random model could never hear in generation what it
was given in training, however right both are. The target is therefore chosen from the other end: latents first, the
clip is what the decoder makes of them, and its semantic features are the encoding of that clip. For a trained tokenizer
the two ways are the same. Nothing is taken out: generation decodes, encodes and feeds back as always, and the last
test shows that what it hears is needed.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.invariants.listening import listen
from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.save import save_adapter
from vibevoice_finetune.audio.source import AudioSource, parse_audio
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import load_for_training, model_fingerprint, open_base_model
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Example
from vibevoice_finetune.data.prompt import TokenSequence, training_sequence
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    generate,
    load_speech_model,
)
from vibevoice_finetune.generation.prompts import SpeechModel, encode_voice
from vibevoice_finetune.generation.scripts import Script, script_from_text
from vibevoice_finetune.objective.objective import Objective

FRAMES = 9
STEPS = 220
DRAWS = 8
LEARNING_RATE = 1e-2
PLAN = AdapterPlan(
    lora_r=8,
    lora_alpha=32,
    lora_dropout=0.0,
    lora_target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    head="full",
    train_connectors=True,
)


@dataclass(frozen=True)
class Clip:
    """What is learned by heart: (F, C) latents in the model's units, means of an encoder that would give them, and
    (F, S) what is heard of their audio."""

    latents_FC: Tensor
    mean_FC: Tensor
    semantic_FS: Tensor


@dataclass(frozen=True)
class Learned:
    """The result of a training, loaded for generation."""

    speaker: SpeechModel
    adapter: Path
    script: Script
    clip: Clip
    diffusion: float  # mean loss of the last steps
    control: float


def source_of(golden_dir: Path, adapter: Path | None = None, scale: float = 1.0) -> ModelSource:
    return ModelSource(
        str(golden_dir / "untied" / "checkpoint"),
        adapter=None if adapter is None else str(adapter),
        adapter_scale=scale,
        dtype=torch.float32,
        device="cpu",
        processor_name_or_path=str(golden_dir / "tokenizer"),
    )


@torch.no_grad()
def make_clip(speaker: SpeechModel) -> Clip:
    model = speaker.model
    acoustic_dim = parts.facts(model.config).acoustic_dim
    latents_FC = torch.randn(FRAMES, acoustic_dim, generator=torch.Generator().manual_seed(5))
    mean_FC = latents_FC / parts.latent_scale(model) - parts.latent_bias(model)
    audio_11N = model.model.audio_tower.decode(mean_FC[None]).audio
    return Clip(latents_FC, mean_FC, model.model.semantic_tokenizer_encoder(audio_11N).latents[0])


def make_voice(speaker: SpeechModel) -> AudioSource:
    hop_length = parts.facts(speaker.model.config).hop_length
    noise = np.random.default_rng(1).standard_normal(5 * hop_length - 3, dtype=np.float32)
    return parse_audio(0.1 * noise, None, "voice")


def jitter(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.float32(rng.standard_normal()) * rng.standard_normal(shape, dtype=np.float32)


def draw(rng: np.random.Generator, sequence: TokenSequence, voice_VC: np.ndarray, clip: Clip) -> Example:
    """A training step's row. The voice is drawn anew as always; the target is not, or the loss could not reach zero."""
    return Example(
        where="the clip",
        ghost=False,
        sequence=sequence,
        voice_mean_VC=voice_VC,
        voice_jitter_VC=jitter(rng, voice_VC.shape),
        target_mean_FC=clip.mean_FC.numpy(),
        target_jitter_FC=np.zeros_like(clip.mean_FC.numpy()),
        target_semantic_FS=clip.semantic_FS.numpy(),
        timestep_FK=rng.integers(1000, size=(FRAMES, DRAWS)),
        noise_FKC=rng.standard_normal((FRAMES, DRAWS, clip.mean_FC.shape[1]), dtype=np.float32),
    )


@pytest.fixture(scope="module")
def learned(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    base = source_of(golden_dir)
    speaker = load_speech_model(base)
    clip, voice = make_clip(speaker), make_voice(speaker)
    script = script_from_text("Speaker 0: Hello there.", [voice])
    voice_VC = encode_voice(speaker.model, voice).numpy()
    sequence = training_sequence(speaker.encode, speaker.special, script.turns, [len(voice_VC)], FRAMES)

    checkpoint = open_base_model(base.name_or_path)
    model = load_for_training(checkpoint, torch.float32, "cpu")
    torch.manual_seed(0)
    attach(model, PLAN)
    objective = Objective(model, speaker.special).train()
    parameters = list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    rng = np.random.default_rng(0)
    history = []
    for _ in range(STEPS):
        batch = collate([draw(rng, sequence, voice_VC, clip)])
        sums, counts = objective(batch), batch["counts"]
        diffusion, control = sums["diffusion"] / counts.diffusion, sums["control"] / counts.control
        optimizer.zero_grad()
        (diffusion + control).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append((diffusion.item(), control.item()))

    folder = tmp_path_factory.mktemp("overfit") / "lora"
    save_adapter(model, PLAN, folder, AdapterInfo(base.name_or_path, model_fingerprint(checkpoint), True))
    diffusion, control = np.mean(history[-20:], axis=0)
    tuned = load_speech_model(source_of(golden_dir, folder))
    return Learned(tuned, folder, script, clip, float(diffusion), float(control))


@torch.no_grad()
def say(speaker: SpeechModel, script: Script, *, seed: int, cfg_scale: float = 1.0) -> tuple[Generation, Tensor]:
    """Generate with room for three times the clip; and the latents (F, C) in the model's units."""
    facts = parts.facts(speaker.model.config)
    limit_sec = 3.5 * FRAMES * facts.hop_length / facts.sampling_rate_hz
    request = GenerationRequest(speaker, (script,), cfg_scale=cfg_scale, seed=seed, max_length_sec=limit_sec)
    with listen(speaker.model) as heard:
        generation = generate(request)
    latents = torch.cat([torch.zeros(0, facts.acoustic_dim), *heard.latents])
    bias, scale = parts.latent_bias(speaker.model), parts.latent_scale(speaker.model)
    return generation, (latents + bias) * scale


def nearest_frames(latents_FC: Tensor, clip: Clip) -> list[int]:
    return torch.cdist(latents_FC, clip.latents_FC).argmin(-1).tolist()


def distance(latents_FC: Tensor, clip: Clip) -> float:
    """RMS of the error over the frames that both have; the clip's own RMS is about 1.2."""
    frames = min(len(latents_FC), len(clip.latents_FC))
    return float((latents_FC[:frames] - clip.latents_FC[:frames]).square().mean().sqrt())


def test_the_clip_is_learned(learned: Learned) -> None:
    assert learned.diffusion < 0.15
    assert learned.control < 0.01


@pytest.mark.parametrize("cfg_scale", [1.0, 1.3])
@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_learned_is_said(learned: Learned, seed: int, cfg_scale: float) -> None:
    generation, latents_FC = say(learned.speaker, learned.script, seed=seed, cfg_scale=cfg_scale)
    (speech,) = generation.speeches
    assert speech.ended
    assert abs(speech.num_frames - FRAMES) <= 1
    assert nearest_frames(latents_FC[:FRAMES], learned.clip) == list(range(FRAMES))[: speech.num_frames]
    assert distance(latents_FC, learned.clip) < 0.4


def test_the_base_model_says_nothing_of_the_kind(learned: Learned, golden_dir: Path) -> None:
    """What was said came from the adapter; at scale 0 none of it is left."""
    for source in (source_of(golden_dir), source_of(golden_dir, learned.adapter, scale=0.0)):
        generation, _ = say(load_speech_model(source), learned.script, seed=1)
        assert generation.speeches[0].num_frames != FRAMES


def test_what_it_hears_of_itself_is_needed(learned: Learned) -> None:
    """The semantic path is alive: deafened to its own audio, the same model loses the clip."""
    _, hearing = say(learned.speaker, learned.script, seed=1)

    def deafen(_: object, __: object, output: object) -> None:
        output.latents.zero_()  # type: ignore[attr-defined]

    hook = learned.speaker.model.model.semantic_tokenizer_encoder.register_forward_hook(deafen)
    _, deaf = say(learned.speaker, learned.script, seed=1)
    hook.remove()
    assert distance(deaf, learned.clip) > 2 * distance(hearing, learned.clip)
