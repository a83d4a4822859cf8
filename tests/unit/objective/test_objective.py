"""The training forward on a few frames: nothing leaks, and rows of a batch do not see each other."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.rows import Small
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.embeddings import draw_latents
from vibevoice_finetune.objective.objective import LossSums

ATTENTION = ["varlen", "sdpa", "eager"]  # flash_attention_2 needs a GPU


@pytest.fixture(scope="module", params=["tied", "untied"])
def small(request, golden_dir, tmp_path_factory):
    model = golden_dir / request.param / "checkpoint"
    return Small(model, tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


def conditions(objective, batch):
    clean = draw_latents(objective.model, batch["target_mean"], batch["target_jitter"])
    hidden = objective.hidden_states(objective.embeddings(batch, clean), batch)
    return hidden[batch["condition_index"]]


def test_a_frame_does_not_see_itself_but_the_next_one_does(small):
    objective = small.objective()
    batch = collate([small.dataset()[Draw(0, 3)]])
    with torch.no_grad():
        before = conditions(objective, batch)
        for changed in ("target_mean", "target_semantic"):
            other = dict(batch)
            other[changed] = batch[changed].clone()
            other[changed][2] += 1.0
            after = conditions(objective, other)
            moved = (before - after).abs().amax(-1) > 1e-6
            # Frame 2 is the input at its own position, so frames 3, 4, … are conditioned on it and 0, 1, 2 are not.
            assert moved.tolist() == [False, False, False, True, True, True, True]


@pytest.mark.parametrize("attention", ATTENTION)
def test_packed_rows_equal_rows_alone(small, attention):
    objective = small.objective()
    set_attention(parts.language_model(objective.model), attention)
    dataset = small.dataset()
    examples = [dataset[Draw(0, row)] for row in range(8)]
    packed = objective(collate(examples))
    alone = [objective(collate([example])) for example in examples]
    for name in LossSums.__annotations__:
        assert packed[name].item() == pytest.approx(sum(sums[name].item() for sums in alone), rel=1e-5), name


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
def test_packed_gradients_equal_rows_alone(small, attention, recomputed):
    dataset = small.dataset()
    examples = [dataset[Draw(0, row)] for row in range(8)]

    def gradients(batches):
        objective = small.objective().train()
        set_attention(parts.language_model(objective.model), attention)
        if recomputed:
            objective.activation_checkpointing_enable()
        assert objective.is_activation_checkpointing == recomputed
        for batch in batches:
            sums = objective(batch)
            (sums["diffusion"] + sums["text"] + sums["control"]).backward()
        # The latent scale and bias are never trained; their one number is a sum of thousands that cancel.
        return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None and "latent_" not in n}

    together = gradients([collate(examples)])
    apart = gradients([collate([example]) for example in examples])
    assert set(together) == set(apart)
    for name, gradient in together.items():
        scale = apart[name].abs().max()
        assert (gradient - apart[name]).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_row_does_not_see_the_rows_beside_it(small, attention):
    """Change the first row of three: its own conditions move, those of the others not by a bit."""
    objective = small.objective()
    set_attention(parts.language_model(objective.model), attention)
    batch = collate([small.dataset()[Draw(0, row)] for row in (0, 1, 3)])
    assert batch["row_lengths"] == [len(ids) for ids in rows_of(batch)]
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, 0] += 1
    with torch.no_grad():
        before, after = conditions(objective, batch), conditions(objective, other)
    moved = (before != after).any(-1)
    assert moved.tolist() == [True] * 5 + [False] * 9 + [False] * 7  # frames of the rows


def rows_of(batch):
    """Token ids of each row, cut where positions restart."""
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    return [batch["input_ids"][0, a:b] for a, b in pairwise([*starts, batch["input_ids"].shape[1]])]


def test_velocity_equals_the_head_called_with_repeated_conditions(small):
    head = parts.diffusion_head(small.objective().model)
    torch.manual_seed(0)
    noisy = torch.randn(3, 4, small.facts.acoustic_dim)
    timestep = torch.randint(1000, (3, 4))
    condition = torch.randn(3, small.facts.hidden_size)
    found = parts.predict_velocity(head, noisy, timestep, condition)
    expected = head(noisy.flatten(0, 1), timestep.flatten().float(), condition.repeat_interleave(4, 0))
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-5, atol=1e-6)


def test_voice_prompt_frames_carry_no_semantics(small):
    objective = small.objective()
    batch = collate([small.dataset()[Draw(0, 0)]])
    with torch.no_grad():
        target = draw_latents(objective.model, batch["target_mean"], batch["target_jitter"])
        embeddings = objective.embeddings(batch, target)
        voice = draw_latents(objective.model, batch["voice_mean"], batch["voice_jitter"])
        expected = parts.acoustic_connector(objective.model)(voice)
    assert len(batch["voice_index"]) == 3
    torch.testing.assert_close(embeddings[0, batch["voice_index"]], expected)


def test_an_unconditional_row_has_only_the_diffusion_loss(small):
    objective = small.objective()
    batch = collate([small.dataset([1], unconditional_rate=0.999999)[Draw(0, 0)]])
    assert batch["input_ids"].tolist() == [[small.special.speech_start] + [small.special.frame] * 9]
    assert (batch["counts"].text, batch["counts"].control) == (0, 0)
    sums = objective(batch)
    assert sums["text"].item() == sums["control"].item() == 0
    assert sums["diffusion"].item() > 0


def test_draws_depend_on_seed_epoch_and_row_alone(small):
    def noise(dataset, draw):
        return dataset[draw].noise_FKC

    first = small.dataset()
    assert np.array_equal(noise(first, Draw(1, 3)), noise(small.dataset(), Draw(1, 3)))
    for other in (Draw(2, 3), Draw(1, 6)):
        assert not np.array_equal(noise(first, Draw(1, 3))[:2], noise(first, other)[:2])
    assert not np.array_equal(noise(first, Draw(1, 3)), noise(small.dataset(seed=6), Draw(1, 3)))
    evaluation = small.dataset(evaluation=True)
    assert np.array_equal(noise(evaluation, Draw(1, 3)), noise(evaluation, Draw(2, 3)))


def test_dropping_prompts_removes_the_whole_section(small):
    kept, dropped = small.dataset([0]), small.dataset([0], voice_prompt_drop_rate=1.0)
    with_voice, without = kept[Draw(0, 0)], dropped[Draw(0, 0)]
    assert len(with_voice.sequence.voice_positions) == 3
    assert len(without.sequence.voice_positions) == len(without.voice_mean_VC) == 0
    heading = small.encode(" Voice input:\n")
    assert len(heading) > 0
    text = without.sequence.token_ids.tolist()
    assert not any(text[at : at + len(heading)] == heading for at in range(len(text)))


def test_controls_are_counted_apart(small):
    sums = small.objective()(collate([small.dataset()[Draw(0, row)] for row in range(8)]))
    assert sums["go_total"].item() == 48  # the frames of all rows
    assert sums["stop_total"].item() == 16  # end of speech and end of text of eight rows
    assert 0 <= sums["go_right"].item() <= 48
    assert 0 <= sums["stop_right"].item() <= 16
