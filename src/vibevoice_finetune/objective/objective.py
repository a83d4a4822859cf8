"""The training forward: a batch of ids, latents and draws in, sums of the losses out.

It feeds the language model exactly what the generation loop feeds it (`embeddings.py`), and takes as the condition of a
frame the hidden state one position before its token; the tests in `tests/invariants` prove both against `generate()`.
It contains no speech tokenizer and makes no random draws: both are done before.

Shapes: T flattened tokens, F target frames, V voice-prompt frames, C acoustic dim, S semantic dim, D hidden size,
K = ddpm_batch_mul.
"""

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.collate import Batch
from vibevoice_finetune.data.prompt import CONTROL_FRAME, SpecialTokens
from vibevoice_finetune.objective.attention import row_arguments
from vibevoice_finetune.objective.embeddings import draw_latents, embed_prompt, embed_target
from vibevoice_finetune.objective.losses import (
    control_cross_entropy_sum,
    control_logits,
    squared_error_sum,
    text_cross_entropy_sum,
)
from vibevoice_finetune.objective.noise import add_noise, cosine_tables, velocity


class LossSums(TypedDict):
    """0-d float32 sums over a batch; the counts to divide by are `Batch["counts"]`."""

    diffusion: Tensor
    text: Tensor
    control: Tensor
    go_right: Tensor  # decisions "another frame" that greedy decoding would make right
    go_total: Tensor
    stop_right: Tensor  # decisions "end of speech" and "end of text" that it would make right
    stop_total: Tensor


class Objective(nn.Module):
    """The VibeVoice model with the losses on top; what the trainer trains.

    Args:
        model: a `VibeVoiceForConditionalGeneration`; it needs no speech tokenizers.
        special: ids of the control tokens.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: nn.Module, special: SpecialTokens) -> None:
        super().__init__()
        self.model = model
        facts = parts.facts(parts.config(model))
        alpha, sigma = cosine_tables(facts.num_train_timesteps)
        device = parts.embed_tokens(model).weight.device
        self.register_buffer("alpha", alpha.to(device), persistent=False)
        self.register_buffer("sigma", sigma.to(device), persistent=False)
        self.register_buffer("control_ids", torch.tensor(special.ids, device=device), persistent=False)

    def forward(self, batch: Batch) -> LossSums:
        """Sums of the three losses over a batch.

        The parts with no term in a batch are zero but still reach every trained tensor, so that processes with
        different rows always exchange the same gradients.
        """
        clean_FC, hidden_TD = self.states(batch)
        return self.loss_sums(clean_FC, hidden_TD, batch)

    def states(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The target latents (F, C) that were drawn, and the last hidden states (T, D)."""
        clean_FC = draw_latents(self.model, batch["target_mean"], batch["target_jitter"])
        return clean_FC, self.hidden_states(self.embeddings(batch, clean_FC), batch)

    def loss_sums(self, clean_FC: Tensor, hidden_TD: Tensor, batch: Batch) -> LossSums:
        """Sums of the three losses, of what `states` returned."""
        output_matrix_VD = parts.lm_head(self.model).weight
        logits_M4 = control_logits(
            hidden_TD.index_select(0, batch["control_index"]), output_matrix_VD, self.get_buffer("control_ids")
        )
        go = batch["control_label"] == CONTROL_FRAME
        right = logits_M4.detach().argmax(-1) == batch["control_label"]
        return LossSums(
            diffusion=self.diffusion_sum(hidden_TD.index_select(0, batch["condition_index"]), clean_FC, batch),
            text=text_cross_entropy_sum(
                hidden_TD.index_select(0, batch["text_index"]), output_matrix_VD, batch["text_label"]
            ),
            control=control_cross_entropy_sum(logits_M4, batch["control_label"]),
            go_right=(go & right).sum().float(),
            go_total=go.sum().float(),
            stop_right=(~go & right).sum().float(),
            stop_total=(~go).sum().float(),
        )

    def embeddings(self, batch: Batch, clean_FC: Tensor) -> Tensor:
        """Input embeddings of the language model, (1, T, D): text, voice-prompt frames, target frames."""
        voice_VC = draw_latents(self.model, batch["voice_mean"], batch["voice_jitter"])
        prompt_TD = embed_prompt(self.model, batch["input_ids"].flatten(), batch["voice_index"], voice_VC)
        target_FD = embed_target(self.model, clean_FC, batch["target_semantic"])
        return prompt_TD.index_copy(0, batch["target_index"], target_FD.to(prompt_TD.dtype)).unsqueeze(0)

    def hidden_states(self, embeddings_BTD: Tensor, batch: Batch) -> Tensor:
        """Last hidden states of all rows, (T, D).

        Attention keeps packed rows apart by their lengths (varlen, flash attention) or by restarting positions (sdpa,
        eager). For the latter there must be no mask and `use_cache=False`; with a cache the rows would silently attend
        to each other.
        """
        output = parts.language_model(self.model)(
            inputs_embeds=embeddings_BTD,
            position_ids=batch["position_ids"],
            use_cache=False,
            **row_arguments(batch["row_lengths"], batch["row_borders"]),
        )
        hidden_BTD: Tensor = output.last_hidden_state
        return hidden_BTD.flatten(0, 1)

    def diffusion_sum(self, condition_FD: Tensor, clean_FC: Tensor, batch: Batch) -> Tensor:
        """Sum of squared velocity errors over frames, draws and channels."""
        return squared_error_sum(*self.velocities(condition_FD, clean_FC, batch))

    def velocities(self, condition_FD: Tensor, clean_FC: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the head predicts for every noise draw, and what it should have predicted; (F, K, C) each."""
        timestep_FK = batch["timestep"]
        alpha_FK1 = self.get_buffer("alpha")[timestep_FK].unsqueeze(-1)
        sigma_FK1 = self.get_buffer("sigma")[timestep_FK].unsqueeze(-1)
        clean_F1C = clean_FC.unsqueeze(1)
        noisy_FKC = add_noise(clean_F1C, batch["noise"], alpha_FK1, sigma_FK1)
        target_FKC = velocity(clean_F1C, batch["noise"], alpha_FK1, sigma_FK1)
        predicted_FKC = parts.predict_velocity(parts.diffusion_head(self.model), noisy_FKC, timestep_FK, condition_FD)
        return predicted_FKC, target_FKC

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether the language model recomputes its layers in the backward pass."""
        return bool(parts.language_model(self.model).is_activation_checkpointing)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **choices: Any
    ) -> None:
        """Recompute the language model's layers in the backward pass.

        Always without re-entrance: the re-entrant kind gives no gradient to LoRA when the embeddings need none.

        Args:
            activation_checkpointing_kwargs: for `torch.utils.checkpoint.checkpoint`.
            choices: what else transformers' method of this name takes.
        """
        kwargs = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        parts.language_model(self.model).activation_checkpointing_enable(kwargs, **choices)
