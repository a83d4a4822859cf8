"""What fits: the peak memory of a training, what it is made of, and which flags to change where it is too much.

Why: a run that cannot fit should say so before it downloads 18 GB, and one that broke off should say what would help.
In come a parsed command line and rows (or what is assumed of them), out goes an `Estimate`: a line for the start-up
report, advice, and what fits on common GPUs. The counting itself is in `memory/count.py`.
"""

import math
import os
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from transformers import VibeVoiceConfig
from transformers.training_args import OptimizerNames

from vibevoice_finetune.arguments import SPLIT_OPTIMIZERS, Arguments
from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.data.sampler import RowBatches, TokenBatches
from vibevoice_finetune.data.voice_prompts import PlannedRow
from vibevoice_finetune.flags.model import FROM_WEIGHTS, LANGUAGE_MODEL_TARGETS
from vibevoice_finetune.memory import count
from vibevoice_finetune.memory.count import FLOAT32, MicroBatch, ModelSize, Recipe
from vibevoice_finetune.memory.tokenizers import encoding_bytes, speaking_bytes, tokenizer_bytes

CARDS_GIB = (8, 12, 16, 24, 48, 80)
"""Memory of common GPUs."""

RUNTIME_BYTES = {"cuda": 0.6e9, "cpu": 0.5e9}
"""In use before the first tensor: the CUDA context with its kernels; Python with its libraries."""

RESTING = ("frozen weights", "trained weights", "optimizer", "moving average", "runtime")
"""Parts that are in memory between two steps as well."""

USABLE = 0.95
"""Share of a card that can be filled before its allocator finds no piece that is large enough."""

MAX_BATCHES_LOOKED_AT = 200_000
GIB = 2**30


@dataclass(frozen=True)
class Part:
    """One line of the account."""

    name: str
    bytes: float


@dataclass(frozen=True)
class Estimate:
    """The peak memory of a training and what it is made of.

    Attributes:
        size: of the model.
        recipe: how it is trained.
        batch: the micro-batch that needs the most.
        parts: what is in memory at the peak of the training.
        encoding: bytes while audio is encoded, before the model is loaded; zero if none is.
        speaking: bytes while samples are spoken, between two steps; zero if none are.
        available: bytes that the device has; None if it is not known.
    """

    size: ModelSize
    recipe: Recipe
    batch: MicroBatch
    parts: tuple[Part, ...]
    encoding: float = 0.0
    speaking: float = 0.0
    available: float | None = None

    @property
    def training(self) -> float:
        """Bytes at the peak of the training."""
        return sum(part.bytes for part in self.parts)

    @property
    def peak(self) -> float:
        """Bytes at the peak of the whole run."""
        return max(self.training, self.encoding, self.speaking)

    def fits(self, available: float) -> bool:
        """Whether a device with this many bytes is enough."""
        return self.peak <= USABLE * available

    def fits_here(self) -> bool:
        """Whether the device at hand is enough, as far as its memory is known."""
        return self.available is None or self.fits(self.available)

    def line(self) -> str:
        """For the start-up report: what the training takes, part by part, and whether something before takes more.

        ``about 11.9 GB of 25.8 GB in training (8 rows, 1,840 tokens): frozen weights 3.2, …``; the parts of less than
        0.05 GB are one, so that the numbers add up.
        """
        named = [part for part in self.parts if part.bytes >= 5e7]
        rest = self.training - sum(part.bytes for part in named)
        parts = ", ".join(f"{part.name} {part.bytes / 1e9:.1f}" for part in [*named, Part("other", rest)] if part.bytes)
        of = f" of {gigabytes(self.available)}" if self.available else ""
        size = f"{self.batch.rows:,} rows, {self.batch.tokens:,} tokens"
        before = (
            f"; encoding audio before that takes {gigabytes(self.encoding)}" if self.encoding > self.training else ""
        )
        if self.speaking > self.training:
            before += f"; speaking samples takes {gigabytes(self.speaking)}"
        tight = "; may not fit" if self.available and not self.fits(self.available) else ""
        return f"about {gigabytes(self.training)}{of} in training ({size}): {parts}{before}{tight}"

    def advice(self) -> list[str]:
        """Flags that lower the peak by a hundredth or more, the one with the largest effect first."""
        helping = sorted(_lower(self), key=lambda change: change.then.peak)
        return [
            f"{change.flags}: about {gigabytes(change.then.peak)} instead of {gigabytes(self.peak)}"
            for change in helping
        ]

    def to_fit(self, available: float) -> list[str] | None:
        """The flags that make it fit, least harmful first; empty if it fits as it is, None if nothing suffices."""
        chosen = _search(self, available, None)
        for name in list(chosen or ()):  # an early one may not be needed beside a later one
            assert chosen is not None
            chosen = _search(self, available, chosen.keys() - {name}) or chosen
        return None if chosen is None else list(chosen.values())


def estimate(size: ModelSize, recipe: Recipe, batch: MicroBatch, *, encodes: bool) -> Estimate:
    """Account for the moment at which a training step needs the most.

    Three moments are compared: the text loss, when all activations are kept; the backward pass of the language model,
    when the diffusion head's gradients are there and its activations are gone; the optimizer's step.
    """
    trained = count.trained_numbers(size, recipe)
    exchanged = recipe.processes > 1 and not recipe.splits
    gradients = 1.0 * FLOAT32 * trained * (2 if exchanged else 1)  # and the buckets that are exchanged
    if recipe.accumulation == 1:  # else they are whole until the last micro-batch
        gradients *= recipe.share
    # Under autocast every trained matrix has a bf16 copy from its first use to the end of the backward pass.
    copies = count.BF16 * trained if recipe.bf16 else 0
    language_model = count.language_model_bytes(size, recipe, batch)
    head = count.head_bytes(size, recipe, batch)
    # A trained language model's gradients come one by one, as its activations go.
    matrix = count.output_matrix_bytes(size, recipe)
    to_come = 0.0
    if recipe.train_language_model and recipe.accumulation == 1:
        to_come = recipe.share * FLOAT32 * count.language_model_numbers(size) - matrix
    unfused = recipe.device == "cuda" and recipe.optimizer == OptimizerNames.ADAMW_TORCH
    moments = (
        (
            gradients if recipe.accumulation > 1 else 0,
            language_model + head + copies,
            count.logits_bytes(size, recipe, batch),
        ),
        (gradients - to_come, language_model + copies, count.backward_bytes(size, recipe, batch)),
        (gradients, copies, matrix),
        (gradients, 0.0, recipe.share * FLOAT32 * trained if unfused else 0.0),
    )
    gradients_then, activations, workspace = max(moments, key=sum)
    runtime = RUNTIME_BYTES.get(recipe.device, RUNTIME_BYTES["cuda"])
    held = recipe.share * trained
    parts = (
        Part("frozen weights", recipe.share * count.weight_bytes(size, recipe)),
        Part("gathered weights", count.gathered_bytes(size, recipe)),
        Part("trained weights", FLOAT32 * held),
        Part("optimizer", count.optimizer_bytes(recipe) * held),
        Part("moving average", FLOAT32 * held if recipe.ema else 0),
        Part("gradients", gradients_then),
        Part("activations", activations),
        Part("work space", workspace),
        Part("runtime", runtime),
        Part("speech tokenizers", tokenizer_bytes(size, recipe) if recipe.keeps_tokenizers else 0.0),
    )
    encoding = encoding_bytes(size, recipe.device) + runtime if encodes else 0.0
    speaking = 0.0
    if recipe.speaks:  # between two steps, when there are no gradients and no activations
        resting = sum(part.bytes for part in parts if part.name in RESTING)
        speaking = resting + tokenizer_bytes(size, recipe) + speaking_bytes(size, recipe)
    return Estimate(size, recipe, batch, parts, encoding, speaking)


def estimate_for(
    arguments: Arguments,
    config: VibeVoiceConfig,
    rows: Sequence[PlannedRow],
    *,
    encodes: bool,
    mix: Mix | None = None,
) -> Estimate:
    """The estimate for a run whose rows are known and whose model is about to be loaded.

    Args:
        arguments: the parsed command line.
        config: of the model.
        rows: the rows of the run.
        encodes: whether audio is encoded before.
        mix: shares of several data sets.
    """
    device, processes = arguments.loop.device, arguments.loop.world_size
    found = largest(
        count.measure(config),
        recipe_of(arguments, device.type, processes),
        micro_batches(arguments, rows, processes, mix),
        encodes=encodes,
    )
    return replace(found, available=device_bytes(device))


def largest(size: ModelSize, recipe: Recipe, batches: Iterator[MicroBatch], *, encodes: bool) -> Estimate:
    """The estimate for the micro-batch that needs the most; that is the one with most tokens, or with most frames."""
    longest = most_frames = next(batches)
    for batch in batches:
        longest = max(longest, batch, key=lambda one: one.tokens)
        most_frames = max(most_frames, batch, key=lambda one: one.frames)
    found = [estimate(size, recipe, batch, encodes=encodes) for batch in (longest, most_frames)]
    return max(found, key=lambda one: one.peak)


def recipe_of(arguments: Arguments, device: str, processes: int = 1) -> Recipe:
    """What of a command line memory depends on.

    Args:
        arguments: the parsed command line.
        device: "cuda" or "cpu".
        processes: processes that train together.
    """
    model, loop = arguments.model, arguments.loop
    return Recipe(
        device=device,
        bf16=loop.bf16,
        quantised_bits=model.quantised_bits,
        lora_r=model.lora_r,
        lora_dropout=model.lora_dropout,
        lora_targets=model.target_modules,
        head=model.head_training,
        train_connectors=model.train_connectors,
        checkpointing=bool(loop.activation_checkpointing),
        attention=model.attention(device, bf16=loop.bf16),
        optimizer=OptimizerNames(loop.optim).value,
        ema=loop.ema_decay > 0,
        draws=loop.ddpm_batch_mul,
        accumulation=loop.gradient_accumulation_steps,
        processes=processes,
        max_tokens=arguments.data.max_tokens_per_batch,
        splits=loop.splits_weights,
        train_language_model=model.train_language_model,
        lora_ranks=model.lora_rank_pattern or {},
        dora=model.use_dora,
        keeps_start=model.init_lora_weights in FROM_WEIGHTS,
        speaks=loop.sample_steps > 0,
        keeps_tokenizers=loop.keep_tokenizers,
    )


def micro_batches(
    arguments: Arguments, rows: Sequence[PlannedRow], processes: int = 1, mix: Mix | None = None
) -> Iterator[MicroBatch]:
    """The micro-batches that the trainer will make, of all processes and epochs (or as many as are looked at)."""
    return islice(_all_batches(arguments, rows, processes, mix), MAX_BATCHES_LOOKED_AT)


def optimizer_steps(
    arguments: Arguments, rows: Sequence[PlannedRow], processes: int = 1, mix: Mix | None = None
) -> tuple[int, int]:
    """Optimizer steps of the whole run and of an epoch."""
    loop = arguments.loop
    micro_steps = len(_sampler(arguments, rows, 0, processes, mix))
    an_epoch = math.ceil(micro_steps / loop.gradient_accumulation_steps)
    return (loop.max_steps if loop.max_steps > 0 else math.ceil(loop.num_train_epochs * an_epoch)), an_epoch


def device_bytes(device: torch.device) -> float:
    """Memory of a device; of a processor, the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def gigabytes(size: float) -> str:
    """A size as a person reads it.

    >>> gigabytes(11_870_000_000)
    '11.9 GB'
    """
    return f"{size / 1e9:.1f} GB"


def _all_batches(
    arguments: Arguments, rows: Sequence[PlannedRow], processes: int, mix: Mix | None
) -> Iterator[MicroBatch]:
    total, an_epoch = optimizer_steps(arguments, rows, processes, mix)
    samplers = [_sampler(arguments, rows, rank, processes, mix) for rank in range(processes)]
    for epoch in range(math.ceil(total / an_epoch)):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            for draws in sampler:
                chosen = [rows[draw.row] for draw in draws]
                tokens, frames = sum(row.num_tokens for row in chosen), sum(row.target_frames for row in chosen)
                yield MicroBatch(len(chosen), tokens, frames, labels=tokens - frames)


def _sampler(
    arguments: Arguments, rows: Sequence[PlannedRow], rank: int, processes: int, mix: Mix | None
) -> RowBatches | TokenBatches:
    """The trainer's own order of one process."""
    loop, max_tokens = arguments.loop, arguments.data.max_tokens_per_batch
    if max_tokens is not None:
        lengths = [row.num_tokens for row in rows]
        return TokenBatches(lengths, max_tokens, seed=loop.draw_seed, rank=rank, world_size=processes)
    size, seed = loop.per_device_train_batch_size, loop.draw_seed
    return RowBatches(len(rows), size, seed=seed, rank=rank, world_size=processes, mix=mix)


@dataclass(frozen=True)
class Change:
    """What some flags come to.

    Attributes:
        name: of what changes; a second change of the same name replaces the first one's flags.
        flags: the words of the command line.
        then: the estimate with them.
    """

    name: str
    flags: str
    then: Estimate


def _lower(now: Estimate) -> Iterator[Change]:
    """The changes that lower the peak by a hundredth or more; what costs least in result and time comes first."""
    return (change for change in _changes(now) if change.then.peak < 0.99 * now.peak)


def _changes(now: Estimate) -> Iterator[Change]:
    """All changes that are left to make. A smaller batch with more accumulation is the same step."""
    recipe, batch = now.recipe, now.batch
    if not recipe.bf16:
        yield _change(now, "--bf16 True", bf16=True)
    if batch.rows > 2:
        yield _halve_batch(now)
    if not recipe.checkpointing:
        yield _change(now, "--gradient_checkpointing True", checkpointing=True)
    can_split = recipe.processes > 1 and not recipe.quantised_bits and recipe.optimizer in SPLIT_OPTIMIZERS
    if can_split and not recipe.splits:
        yield _change(now, "--fsdp full_shard", splits=True)
    if batch.rows == 2:
        yield _halve_batch(now)
    if not (recipe.quantised_bits or recipe.splits or recipe.train_language_model):
        yield _change(now, "--load_in_4bit True", quantised_bits=4)
    if recipe.device == "cuda" and not recipe.splits and count.optimizer_bytes(recipe) >= FLOAT32:
        yield _change(now, "--optim adamw_bnb_8bit", optimizer=OptimizerNames.ADAMW_BNB.value)
    if recipe.keeps_tokenizers:
        yield _change(now, "--keep_tokenizers False", keeps_tokenizers=False)
    if recipe.ema:
        yield _change(now, "--ema_decay 0", ema=False)
    if recipe.draws > 1:
        yield _change(now, "--ddpm_batch_mul 1", draws=1)
    if recipe.head == "full":
        yield _change(now, "--train_diffusion_head False --lora_wrap_diffusion_head True", head="lora")
    if recipe.train_language_model:
        targets = tuple(LANGUAGE_MODEL_TARGETS.split(","))
        yield _change(now, "--train_language_model False", train_language_model=False, lora_targets=targets)


def _search(start: Estimate, available: float, allowed: Set[str] | None) -> dict[str, str] | None:
    """Make the least harmful changes until it fits; their flags by name, or None if it never does.

    Args:
        start: what is asked for.
        available: bytes of the device.
        allowed: names of the changes that may be made; None: all.
    """
    found: dict[str, str] = {}
    now = start
    while not now.fits(available):
        change = next((one for one in _lower(now) if allowed is None or one.name in allowed), None)
        if change is None:
            return None
        found[change.name] = change.flags
        now = change.then
    return found


def _change(now: Estimate, flags: str, batch: MicroBatch | None = None, **changed: Any) -> Change:
    then = estimate(now.size, replace(now.recipe, **changed), batch or now.batch, encodes=now.encoding > 0)
    return Change(flags.split()[0], flags, replace(then, available=now.available))


def _halve_batch(now: Estimate) -> Change:
    """Half of the micro-batch and twice as many of them."""
    recipe, batch = now.recipe, now.batch
    rows = math.ceil(batch.rows / 2)
    share = rows / batch.rows
    smaller = MicroBatch(rows, *(math.ceil(share * number) for number in (batch.tokens, batch.frames, batch.labels)))
    max_tokens = recipe.max_tokens and math.ceil(recipe.max_tokens / 2)
    accumulation = 2 * recipe.accumulation
    flags = f"--max_tokens_per_batch {max_tokens}" if max_tokens else f"--per_device_train_batch_size {rows}"
    flags += f" --gradient_accumulation_steps {accumulation}"
    return _change(now, flags, smaller, accumulation=accumulation, max_tokens=max_tokens)
