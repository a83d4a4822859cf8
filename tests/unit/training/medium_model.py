"""A model large enough that its tensors, not the interpreter, make up the memory; a batch for it; and what a training
with them needs, measured in a process of its own (``python -m tests.unit.training.medium_model JSON``).
"""

import json
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Config, VibeVoiceConfig

from vibevoice_finetune.adapters.attach import AdapterPlan, attach, trainable_parameters
from vibevoice_finetune.adapters.lora import rely_on_autocast
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.collate import Batch, Counts
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.memory.count import MicroBatch, Recipe
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.objective import Objective

ACOUSTIC, SEMANTIC = 64, 128
SPECIAL = SpecialTokens(speech_start=1, speech_end=2, frame=3, end_of_text=0)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RECIPE = Recipe(
    device="cpu",
    bf16=False,
    quantised_bits=None,
    lora_r=8,
    lora_dropout=0.05,
    lora_targets=TARGETS,
    head="full",
    train_connectors=False,
    checkpointing=False,
    attention="varlen",
    optimizer="adamw_torch_fused",
    ema=False,
    draws=4,
    accumulation=1,
    processes=1,
)


def config(hidden: int, intermediate: int, layers: int, vocab: int) -> VibeVoiceConfig:
    """A configuration with small speech tokenizers, which training does not hold."""
    tokenizer = {"num_filters": 2, "depths": [1, 1], "downsampling_ratios": [4]}
    return VibeVoiceConfig(
        audio_config={"model_type": "vibevoice_acoustic_tokenizer", "hidden_size": ACOUSTIC, **tokenizer},
        semantic_model_config={
            "model_type": "vibevoice_acoustic_tokenizer_encoder",
            "hidden_size": SEMANTIC,
            **tokenizer,
        },
        text_config=Qwen2Config(
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            vocab_size=vocab,
            tie_word_embeddings=True,
        ).to_dict(),
        diffusion_head_config={
            "model_type": "vibevoice_diffusion",
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "latent_size": ACOUSTIC,
            "num_hidden_layers": 4,
        },
    )


def objective(model_config: VibeVoiceConfig, recipe: Recipe) -> Objective:
    """The model with everything attached that the recipe names, ready to train."""
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    model = parts.VibeVoiceWithoutTokenizers(model_config).to(dtype)
    set_attention(parts.language_model(model), recipe.attention)
    plan = AdapterPlan(
        recipe.lora_r,
        32,
        recipe.lora_dropout,
        recipe.lora_targets,
        recipe.head,
        recipe.train_connectors,
        train_language_model=recipe.train_language_model,
        use_dora=recipe.dora,
    )
    attach(model, plan)
    if recipe.bf16:
        rely_on_autocast(model)
    result = Objective(model, SPECIAL)
    if recipe.checkpointing:
        result.activation_checkpointing_enable()
    return result.train()


def packed_batch(rows: int, tokens: int, voice: int, frames: int, draws: int) -> Batch:
    """Equal rows: text, voice-prompt frames at 2, and at the end target frames, `<end>` and end of text."""
    starts = torch.arange(rows) * tokens

    def in_every_row(first: int, last: int) -> Tensor:
        return (starts[:, None] + torch.arange(first, last)).flatten()

    target, text = in_every_row(tokens - frames - 2, tokens - 2), in_every_row(2 + voice, tokens - frames - 3)
    control = in_every_row(tokens - frames - 3, tokens - 1)
    clips, prompts = rows * frames, rows * voice
    return Batch(
        input_ids=torch.randint(4, 100, (1, rows * tokens)),
        position_ids=torch.arange(tokens).repeat(rows)[None],
        row_lengths=[tokens] * rows,
        row_borders=torch.arange(rows + 1, dtype=torch.int32) * tokens,
        voice_index=in_every_row(2, 2 + voice),
        target_index=target,
        condition_index=target - 1,
        text_index=text,
        text_label=torch.randint(4, 100, text.shape),
        control_index=control,
        control_label=torch.full_like(control, 2),
        voice_mean=torch.randn(prompts, ACOUSTIC),
        voice_jitter=torch.randn(prompts, ACOUSTIC),
        target_mean=torch.randn(clips, ACOUSTIC),
        target_jitter=torch.randn(clips, ACOUSTIC),
        target_semantic=torch.randn(clips, SEMANTIC),
        timestep=torch.randint(1000, (clips, draws)),
        noise=torch.randn(clips, draws, ACOUSTIC),
        counts=Counts(clips * draws * ACOUSTIC, len(text), len(control), clips, rows * tokens),
        rows=["medium"] * rows,
        ghost=False,
    )


def size_of(batch: Batch) -> MicroBatch:
    """The batch as `footprint` knows it."""
    counts = batch["counts"]
    return MicroBatch(len(batch["rows"]), counts.tokens, counts.frames, counts.text)


class AnonymousPeak:
    """The largest anonymous memory of this process while the context lasts, sampled by a thread."""

    def __enter__(self) -> "AnonymousPeak":
        self.bytes = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes())


def anonymous_bytes() -> int:
    """Memory of this process that is no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def growth(model_config: VibeVoiceConfig, recipe: Recipe, rows: int, tokens: int) -> int:
    """Bytes by which two training steps, model included, let this process grow at most."""
    torch.set_num_threads(1)
    before = anonymous_bytes()
    with AnonymousPeak() as peak:
        learner = objective(model_config, recipe)
        optimizer = torch.optim.AdamW(trainable_parameters(learner.model).values(), fused=True)
        for _ in range(2):
            batch = packed_batch(rows, tokens, tokens // 6, tokens // 3, recipe.draws)
            sums = learner(batch)
            (sums["diffusion"] + sums["text"] + sums["control"]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return peak.bytes - before


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asked["recipe"]["lora_targets"] = tuple(asked["recipe"]["lora_targets"])
    print(growth(config(**asked["config"]), replace(RECIPE, **asked["recipe"]), asked["rows"], asked["tokens"]))


def as_argument(sizes: dict[str, int], recipe: Recipe, rows: int, tokens: int) -> str:
    """What the process is told."""
    return json.dumps({"config": sizes, "recipe": asdict(recipe), "rows": rows, "tokens": tokens})
