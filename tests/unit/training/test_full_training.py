"""All weights of the language model trained: against a plain PyTorch loop, resumed; the forms of LoRA."""

import pytest
import torch
import torch.nn.functional as F

from tests.rows import Small
from tests.unit.training.test_trainer import trainer
from vibevoice_finetune.adapters.attach import AdapterPlan, attach
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.load import load_for_training
from vibevoice_finetune.objective.noise import cosine_tables
from vibevoice_finetune.training.run_checkpoints import complete_checkpoints
from vibevoice_finetune.training.run_state import read_starts

EVERYTHING = AdapterPlan(4, 8, 0.0, (), "full", True, train_language_model=True)
LANGUAGE_MODEL = AdapterPlan(4, 8, 0.0, (), "frozen", False, train_language_model=True)


@pytest.fixture(scope="module", params=["tied", "untied"])
def small(request, golden_dir, tmp_path_factory):
    folder = golden_dir / request.param / "checkpoint"
    return Small(folder, tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


@pytest.fixture(scope="module")
def untied(golden_dir, tmp_path_factory):
    return Small(golden_dir / "untied" / "checkpoint", tmp_path_factory.mktemp("latents"), golden_dir / "tokenizer")


def plain_loss(model, batch, special):
    """The loss of a batch by transformers' modules and PyTorch's functions, a row at a time, nothing packed."""
    facts = parts.facts(parts.config(model))
    alpha, sigma = cosine_tables(facts.num_train_timesteps)
    inner = model.model

    def latents(mean, jitter):
        return (mean + facts.vae_std * jitter + inner.latent_bias_factor) * inner.latent_scaling_factor

    clean = latents(batch["target_mean"], batch["target_jitter"])
    embedded = inner.language_model.embed_tokens(batch["input_ids"][0]).clone()
    embedded[batch["voice_index"]] = inner.multi_modal_projector(latents(batch["voice_mean"], batch["voice_jitter"]))
    said = inner.multi_modal_projector(clean) + inner.semantic_connector(batch["target_semantic"])
    embedded[batch["target_index"]] = said
    rows = embedded.split(batch["row_lengths"])
    hidden = torch.cat([inner.language_model(inputs_embeds=row[None]).last_hidden_state[0] for row in rows])
    logits = model.lm_head(hidden)
    text = F.cross_entropy(logits[batch["text_index"]], batch["text_label"])
    four = logits[batch["control_index"]][:, list(special.ids)]
    control = F.cross_entropy(four, batch["control_label"])
    errors = []
    for frame, index in enumerate(batch["condition_index"].tolist()):
        for draw, timestep in enumerate(batch["timestep"][frame].tolist()):
            noise = batch["noise"][frame, draw]
            noisy = alpha[timestep] * clean[frame] + sigma[timestep] * noise
            target = alpha[timestep] * noise - sigma[timestep] * clean[frame]
            velocity = inner.diffusion_head(noisy[None], torch.tensor([float(timestep)]), hidden[index][None])[0]
            errors.append(F.mse_loss(velocity, target))
    return torch.stack(errors).mean() + text + control


def test_it_equals_a_plain_loop_for_twenty_steps(small, tmp_path):
    built = trainer(
        small,
        tmp_path,
        EVERYTHING,
        numbers=range(4),
        draws={"ddpm_batch_mul": 1},
        max_steps=20,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.0,
        gradient_clipping=True,
        max_grad_norm=1.0,
        adam_epsilon=1e-4,  # the biases of the keys have no gradient but rounding, which a smaller one would blow up
        optim="adamw_torch",
    )
    model = load_for_training(small.checkpoint, torch.float32, "cpu")
    model.model.latent_scaling_factor.requires_grad_(False)
    model.model.latent_bias_factor.requires_grad_(False)
    begun = {name: value.detach().clone() for name, value in model.named_parameters()}
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, eps=1e-4, weight_decay=0.0)
    loader = built.get_train_dataloader()
    for epoch in range(10):
        loader.set_epoch(epoch)
        for batch in loader:
            plain_loss(model, batch, small.special).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    built.train()
    assert built.state.global_step == 20
    expected = dict(model.named_parameters())
    assert len(built.parameters) == len(trained)
    for name, value in built.parameters.items():
        assert (value - expected[name]).abs().max() < 1e-6, name
    assert sum(not torch.equal(value, begun[name]) for name, value in built.parameters.items()) == len(trained)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_bnb_8bit"])
def test_it_resumes_bit_for_bit_with_its_average(untied, optim, tmp_path):
    if "bnb" in optim:
        pytest.importorskip("bitsandbytes")
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "ema_decay": 0.9,
        "optim": optim,
        "learning_rate": 1e-3,
    }
    whole = trainer(untied, tmp_path / "whole", EVERYTHING, **settings)
    whole.train()
    first = trainer(untied, tmp_path / "cut", EVERYTHING, **{**settings, "max_steps": 2})
    first.train()
    second = trainer(untied, tmp_path / "cut", EVERYTHING, **settings)
    second.train(resume_from_checkpoint=str(complete_checkpoints(tmp_path / "cut")[-1]))
    for name, value in whole.parameters.items():
        assert torch.equal(value, second.parameters[name]), name
        assert torch.equal(whole.ema.average[name], second.ema.average[name]), name


def test_in_bf16_the_masters_are_float32_and_every_one_moves(untied, tmp_path):
    objective = untied.objective(torch.bfloat16)
    attach(objective.model, LANGUAGE_MODEL)
    trained = {name: value for name, value in objective.model.named_parameters() if value.requires_grad}
    assert "lm_head.weight" in trained
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in trained)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        sums = objective(next(iter(trainer(untied, tmp_path).get_train_dataloader())))
    (sums["diffusion"] + sums["text"] + sums["control"]).backward()
    assert all(value.grad is not None and value.grad.dtype == torch.float32 for value in trained.values())


@pytest.mark.parametrize(
    "form",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"lora_rank_pattern": {"q_proj": 2}},
    ],
    ids=str,
)
def test_every_form_of_lora_learns_and_goes_on_where_it_was(untied, form, tmp_path):
    chosen = AdapterPlan(2, 4, 0.0, ("q_proj", "v_proj"), "frozen", False, **form)
    settings = {"per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 2e-2}
    built = trainer(untied, tmp_path / "out", chosen, eval_numbers=range(8), max_steps=8, **settings)
    before = built.evaluate()["eval_loss"]
    built.train()
    after = built.evaluate()["eval_loss"]
    assert after < before
    checkpoint = tmp_path / "out" / "checkpoint-4"
    objective = untied.objective()
    torch.manual_seed(99)
    attach(objective.model, chosen, read_starts(checkpoint))
    resumed = trainer(untied, tmp_path / "out", chosen, eval_numbers=range(8), max_steps=8, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name, value in built.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name
    frozen = dict(built.model.model.named_parameters())
    for name, value in objective.model.named_parameters():
        if not value.requires_grad:
            assert torch.equal(value, frozen[name]), name
