"""The training forward against the original's losses and gradients, on the original's batch and draws.

`as_generated` is what training computes here: voice-prompt frames carry the acoustic embedding alone. The original's
training input (`semantic_on_prompt`) is computed beside it, to show that the difference is this one and no other.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import load_for_generation, open_base_model
from vibevoice_finetune.base_model.tensor_names import to_original
from vibevoice_finetune.data.collate import Batch, Counts
from vibevoice_finetune.data.prompt import SpecialTokens, label_text
from vibevoice_finetune.objective.embeddings import draw_latents
from vibevoice_finetune.objective.noise import add_noise, cosine_tables, velocity
from vibevoice_finetune.objective.objective import Objective
from vibevoice_finetune.training.metrics import LossWeights, Terms

GOLDEN = Path(__file__).parent
SPECIAL = SpecialTokens(speech_start=409, speech_end=410, frame=411, end_of_text=400)
MODELS = ["tied", "untied"]


def golden(name):
    expected = load_file(GOLDEN / name / "expected.safetensors")
    return expected, json.loads((GOLDEN / name / "expected.json").read_text())["loss"]


def load(name):
    checkpoint = open_base_model(str(GOLDEN / name / "checkpoint"))
    return load_for_generation(checkpoint, dtype=torch.float32, device=torch.device("cpu"))


def golden_batch(model, expected, draws_per_frame) -> Batch:
    """The golden rows as a batch. The original padded them on the right; here they are packed."""
    seen = expected["loss.attention_mask"].bool()
    lengths = seen.sum(-1).tolist()
    ids = expected["loss.input_ids"][seen]
    is_frame, is_target = expected["loss.is_frame"].bool()[seen], expected["loss.is_target_frame"].bool()[seen]
    text_index, text_label = [], []
    begin = 0
    for length in lengths:
        row = slice(begin, begin + length)
        positions, labels = label_text(ids[row].numpy(), is_frame[row].numpy())
        text_index.append(positions + begin)
        text_label.append(labels)
        begin += length
    means, jitters, semantics, targets = [], [], [], []
    with torch.no_grad():
        latents = model.model.audio_tower.encode(expected["loss.segment_waveform"].unsqueeze(1), sample=False).latents
    for segment, frames in enumerate(expected["loss.segment_frame_mask"].sum(-1).tolist()):
        means.append(latents[segment, :frames])
        noise = expected["loss.draw.vae_noise"][segment, :frames]
        jitters.append(expected["loss.draw.vae_scale"][segment] * noise)
        semantics.append(expected["loss.segment_semantic"][segment, :frames])
        targets.append(bool(expected["loss.segment_is_target"][segment]))

    def chosen(parts, is_target):
        return torch.cat([part for part, target in zip(parts, targets, strict=True) if target == is_target])

    target_index = is_target.nonzero().flatten()
    voice_index = (is_frame & ~is_target).nonzero().flatten()
    noise = expected["loss.draw.diffusion_noise"]
    return Batch(
        input_ids=ids[None],
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        row_lengths=lengths,
        row_borders=torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32),
        voice_index=voice_index,
        target_index=target_index,
        condition_index=target_index - 1,
        text_index=torch.from_numpy(np.concatenate(text_index)),
        text_label=torch.from_numpy(np.concatenate(text_label)),
        control_index=torch.zeros(0, dtype=torch.long),
        control_label=torch.zeros(0, dtype=torch.long),
        voice_mean=chosen(means, False),
        voice_jitter=chosen(jitters, False),
        target_mean=chosen(means, True),
        target_jitter=chosen(jitters, True),
        target_semantic=chosen(semantics, True),
        timestep=expected["loss.draw.timestep"].view(-1, draws_per_frame).long(),
        noise=noise.view(-1, draws_per_frame, noise.shape[-1]),
        counts=Counts(diffusion=noise.numel(), text=sum(map(len, text_label)), control=0, frames=0, tokens=0),
        rows=["golden"] * len(lengths),
        ghost=False,
    )


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_equal_the_original(name):
    expected, info = golden(name)
    model = load(name)
    objective = Objective(model, SPECIAL)
    batch = golden_batch(model, expected, info["ddpm_batch_mul"])
    sums = objective(batch)
    terms = Terms.of(sums, batch["counts"])
    reference = info["as_generated"]
    assert batch["counts"].text == reference["num_ce_tokens"]
    assert len(batch["target_index"]) == reference["num_target_frames"]
    assert terms.text.item() == pytest.approx(reference["ce"], rel=1e-4)
    assert terms.diffusion.item() == pytest.approx(reference["diffusion"], rel=1e-4)
    total = terms.total(LossWeights(info["diffusion_weight"], info["ce_weight"], 0.0))
    assert total.item() == pytest.approx(reference["total"], rel=1e-4)
    total.backward()
    norms = {
        to_original(key): parameter.grad.norm().item()
        for key, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    for key, norm in reference["grad_norms"].items():
        assert norms[key] == pytest.approx(norm, rel=1e-4), key


@pytest.mark.parametrize("name", MODELS)
def test_the_original_training_input_differs_by_semantics_on_prompts(name):
    expected, info = golden(name)
    model = load(name)
    objective = Objective(model, SPECIAL)
    batch = golden_batch(model, expected, info["ddpm_batch_mul"])
    clean = draw_latents(model, batch["target_mean"], batch["target_jitter"])
    embeddings = objective.embeddings(batch, clean)
    is_target = expected["loss.segment_is_target"].bool().tolist()
    frames = expected["loss.segment_frame_mask"].sum(-1).tolist()
    on_prompts = torch.cat([expected["loss.segment_semantic"][s, :n] for s, n in enumerate(frames) if not is_target[s]])
    extra = parts.semantic_connector(model)(on_prompts)
    flat = embeddings.flatten(0, 1).index_add(0, batch["voice_index"], extra)
    hidden = objective.hidden_states(flat.view_as(embeddings), batch)
    diffusion = objective.diffusion_sum(hidden[batch["condition_index"]], clean, batch) / batch["counts"].diffusion
    assert diffusion.item() == pytest.approx(info["semantic_on_prompt"]["diffusion"], rel=1e-4)
    assert diffusion.item() != pytest.approx(info["as_generated"]["diffusion"], rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_noise_tables_noising_and_velocity(name):
    expected, _ = golden(name)
    alpha, sigma = cosine_tables(1000)
    torch.testing.assert_close(alpha, expected["noise.alpha"].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sigma, expected["noise.sigma"].float(), rtol=1e-5, atol=1e-6)
    at = expected["noise.timestep"].long()
    a, s = alpha[at].unsqueeze(-1), sigma[at].unsqueeze(-1)
    clean, noise = expected["noise.x0"], expected["noise.eps"]
    torch.testing.assert_close(add_noise(clean, noise, a, s), expected["noise.noisy"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(velocity(clean, noise, a, s), expected["noise.velocity"], rtol=1e-5, atol=1e-6)
