"""The arithmetic that a training step cannot do without; `docs/benchmarks.md` explains the count.

A multiplication with a matrix of P weights takes 2 · P operations a token forward. Backward it takes as many again to
pass the gradient on, and as many once more if the matrix itself is trained. What is done for other reasons (recomputed
layers, recomputed logits, padding) is no part of it.
"""

import math
from dataclasses import dataclass
from typing import Literal

from transformers import VibeVoiceConfig

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import part_configs
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.data.collate import Batch

FORWARD, PASS_ON, OWN_GRADIENT = 2, 2, 2


@dataclass(frozen=True)
class Floor:
    """Operations of one step."""

    language_model: float
    attention: float
    head: float
    output_matrix: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.language_model + self.attention + self.head + self.output_matrix


def count_floor(config: VibeVoiceConfig, head: Literal["frozen", "full", "lora"], batch: Batch, draws: int) -> Floor:
    """Count the operations for a batch of packed rows; LoRA's own (under 1 %) are left out."""
    text = part_configs(config).text
    matrices = {name: math.prod(shape) for name, shape in tensor_shapes(config).items() if len(shape) == 2}
    embeddings = (tensor_names.EMBED_TOKENS, tensor_names.LM_HEAD)
    language_model = sum(
        size
        for name, size in matrices.items()
        if name.startswith(tensor_names.LANGUAGE_MODEL) and name not in embeddings
    )
    condition = matrices[tensor_names.DIFFUSION_HEAD + "cond_proj.weight"]
    a_draw = sum(size for name, size in matrices.items() if name.startswith(tensor_names.DIFFUSION_HEAD)) - condition
    tokens, frames = batch["counts"].tokens, batch["counts"].frames
    head_factor = FORWARD + PASS_ON + (OWN_GRADIENT if head == "full" else 0)
    # Scores and their product with the values: 2 · 2 · L² · D forward over a row of L tokens, half of it causal, and
    # twice that backward.
    squares = sum(length**2 for length in row_lengths(batch))
    return Floor(
        language_model=float((FORWARD + PASS_ON) * language_model * tokens),
        attention=6.0 * squares * text.hidden_size * text.num_hidden_layers,
        head=float(head_factor * (a_draw * frames * draws + condition * frames)),
        output_matrix=float((FORWARD + PASS_ON) * text.vocab_size * text.hidden_size * batch["counts"].text),
    )


def row_lengths(batch: Batch) -> list[int]:
    """Tokens of each row of a packed batch: positions restart at every row."""
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], batch["input_ids"].numel()], strict=True)]
