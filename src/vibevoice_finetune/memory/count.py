"""What a training step keeps in memory, counted part by part from the model's sizes.

Why: whether a run fits is known before the model is downloaded, because every tensor that training holds follows from
the configuration, the flags and the length of a micro-batch. Weights, gradients and optimizer state are exact counts.
Activations are counted as autograd keeps them; `test_footprint.py` compares that with what autograd really saves.

In: a configuration, a `Recipe`, a `MicroBatch`. Out: bytes. Letters: D hidden size, I width of the feed-forward layers,
r rank of LoRA, T tokens, F target frames, K noise draws a frame, N text labels, V vocabulary.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from transformers import VibeVoiceConfig

from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import part_configs
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.objective.losses import LOGITS_CHUNK

FLOAT32 = 4
BF16 = 2

# NF4 with double quantisation: half a byte a weight, a byte for the scale of each 64, a float32 for each 256 scales.
BITS_TO_BYTES = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0}

# Optimizer state in bytes a trained number, by what the name of `--optim` holds; paged states lie in the host's memory.
_OPTIMIZER_BYTES = (
    ("paged", 0.0),
    ("adafactor", 0.1),
    ("sgd", 0.0),
    ("adamw_torch_8bit", 2.1),
    ("adamw_torch_4bit", 1.1),
    ("ademamix_8bit", 3.1),
    ("ademamix", 12.0),
    ("lion_8bit", 1.1),
    ("lion", 4.0),
    ("rmsprop_bnb_8bit", 1.1),
    ("rmsprop", 4.0),
    ("adagrad", 4.0),
    ("8bit", 2.1),
)
_ADAMW_BYTES = 8.0  # two float32 moments, and what is assumed of an optimizer that is not listed

# The one matrix of the diffusion head that is applied once per frame, not once per draw.
CONDITION = "cond_proj"

Head = Literal["frozen", "full", "lora"]


@dataclass(frozen=True)
class ModelSize:
    """A model's numbers that memory depends on.

    Attributes:
        hidden: D of the language model and the diffusion head.
        intermediate: I of the language model.
        layers: of the language model.
        heads: attention heads.
        key_value: width of the keys, and of the values, before they are repeated for all heads.
        vocab: V.
        head_intermediate: I of the diffusion head.
        head_layers: of the diffusion head.
        acoustic_dim: C.
        language_model: (rows, columns) of every linear layer of the language model, by its name in the model.
        head_linear: the same of the diffusion head.
        other: numbers of the language model that are in no linear layer: embeddings, norms, biases, output matrix.
        head: all numbers of the diffusion head.
        connectors: all numbers of both connectors.
        largest_encoder: all numbers of the larger of the two speech encoders.
        tokenizers: all numbers of the speech tokenizers: two encoders and a decoder.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value: int
    vocab: int
    head_intermediate: int
    head_layers: int
    acoustic_dim: int
    language_model: Mapping[str, tuple[int, int]]
    head_linear: Mapping[str, tuple[int, int]]
    other: int
    head: int
    connectors: int
    largest_encoder: int
    tokenizers: int


@dataclass(frozen=True)
class Recipe:
    """What of a command line memory depends on.

    Attributes:
        device: "cuda" or "cpu": they keep different masks of dropout, and have different needs of their own.
        bf16: frozen weights in bf16 and autocast; else all float32.
        quantised_bits: 4 or 8 for the language model's linear layers, or None.
        lora_r: rank.
        lora_dropout: share.
        lora_targets: names of linear layers of the language model with LoRA.
        head: what of the diffusion head is trained.
        train_connectors: whether both connectors are trained.
        checkpointing: whether the language model recomputes its layers in the backward pass.
        attention: its attention: "varlen", "sdpa", "eager" or "flash_attention_2".
        optimizer: value of `--optim`.
        ema: whether an average of the trained weights is kept.
        draws: K.
        accumulation: micro-batches of an optimizer step.
        processes: processes that train together.
        max_tokens: value of `--max_tokens_per_batch`.
        train_language_model: whether all weights of the language model are trained.
        lora_ranks: names of layers, or ends of such names, with another rank.
        dora: whether each row of a weight with LoRA has a trained length.
        keeps_start: whether LoRA's beginning is kept, as PiSSA's and OLoRA's is.
        splits: whether the processes hold a share each of all weights, gradients and the optimizer's state.
        speaks: whether samples are spoken during training.
        keeps_tokenizers: whether the speech tokenizers stay in memory between samples.
    """

    device: str
    bf16: bool
    quantised_bits: int | None
    lora_r: int
    lora_dropout: float
    lora_targets: tuple[str, ...]
    head: Head
    train_connectors: bool
    checkpointing: bool
    attention: str
    optimizer: str
    ema: bool
    draws: int
    accumulation: int
    processes: int
    max_tokens: int | None = None
    splits: bool = False
    train_language_model: bool = False
    lora_ranks: Mapping[str, int] = field(default_factory=dict)
    dora: bool = False
    keeps_start: bool = False
    speaks: bool = False
    keeps_tokenizers: bool = False

    @property
    def share(self) -> float:
        """Of what may be split, what this process holds."""
        return 1 / self.processes if self.splits else 1.0

    @property
    def activation(self) -> int:
        """Bytes of a number in the forward pass."""
        return BF16 if self.bf16 else FLOAT32

    @property
    def dropout_mask(self) -> int:
        """Bytes a number that dropout keeps beside its output; a processor keeps the mask in its input's dtype."""
        if not self.lora_dropout:
            return 0
        return self.activation if self.device == "cpu" else 1


@dataclass(frozen=True)
class MicroBatch:
    """The size of a packed batch.

    Attributes:
        rows: packed one behind the other.
        tokens: T, of all rows.
        frames: F, target frames of all rows.
        labels: N, text labels of all rows.
    """

    rows: int
    tokens: int
    frames: int
    labels: int


def measure(config: VibeVoiceConfig) -> ModelSize:
    """Count a model's parameters; no weights are needed."""
    _, _, text, head = part_configs(config)
    shapes = tensor_shapes(config)
    embeddings = (tensor_names.EMBED_TOKENS, tensor_names.LM_HEAD)

    def linear(prefix: str) -> dict[str, tuple[int, int]]:
        return {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in shapes.items()
            if name.startswith(prefix) and len(shape) == 2 and name not in embeddings
        }

    def total(*prefixes: str) -> int:
        return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(prefixes))

    language_model = linear(tensor_names.LANGUAGE_MODEL)
    in_linear = sum(map(math.prod, language_model.values()))
    return ModelSize(
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value=language_model[tensor_names.LANGUAGE_MODEL + "layers.0.self_attn.k_proj"][0],
        vocab=text.vocab_size,
        head_intermediate=head.intermediate_size,
        head_layers=head.num_hidden_layers,
        acoustic_dim=head.latent_size,
        language_model=language_model,
        head_linear=linear(tensor_names.DIFFUSION_HEAD),
        other=total(tensor_names.LANGUAGE_MODEL, tensor_names.LM_HEAD) - in_linear,
        head=total(tensor_names.DIFFUSION_HEAD),
        connectors=total(tensor_names.ACOUSTIC_CONNECTOR, tensor_names.SEMANTIC_CONNECTOR),
        largest_encoder=max(total(prefix) for prefix in tensor_names.ENCODERS),
        tokenizers=total(*tensor_names.SPEECH_TOKENIZERS),
    )


def trained_numbers(size: ModelSize, recipe: Recipe) -> int:
    """How many numbers are trained. Frozen tensors of a fully trained head count too: they are few."""
    return (
        lora_numbers(size, recipe)
        + (language_model_numbers(size) if recipe.train_language_model else 0)
        + (size.head if recipe.head == "full" else 0)
        + (size.connectors if recipe.train_connectors else 0)
    )


def lora_numbers(size: ModelSize, recipe: Recipe) -> int:
    """How many numbers LoRA has."""
    lora = [
        (_rank(name, recipe), shape)
        for name, shape in size.language_model.items()
        if _is_target(name, recipe.lora_targets)
    ]
    lora += [(recipe.lora_r, shape) for shape in size.head_linear.values()] if recipe.head == "lora" else []
    return sum(rank * sum(shape) + (shape[0] if recipe.dora else 0) for rank, shape in lora)


def language_model_numbers(size: ModelSize) -> int:
    """All numbers of the language model and its output matrix."""
    return sum(map(math.prod, size.language_model.values())) + size.other


def output_matrix_bytes(size: ModelSize, recipe: Recipe) -> float:
    """A gradient of the output matrix as a whole, where it is trained."""
    return FLOAT32 * size.vocab * size.hidden if recipe.train_language_model else 0.0


def gathered_bytes(size: ModelSize, recipe: Recipe) -> float:
    """What of split weights is whole at a time: two layers of the language model, and all that is in no layer."""
    if not recipe.splits:
        return 0.0
    in_layers = sum(map(math.prod, size.language_model.values()))
    number = FLOAT32 if recipe.train_language_model else recipe.activation
    return number * (2 * in_layers / size.layers + size.other) + recipe.activation * size.connectors


def weight_bytes(size: ModelSize, recipe: Recipe) -> float:
    """The weights as they are loaded; what is trained whole is float32, LoRA is counted with the trained numbers."""
    in_linear = sum(map(math.prod, size.language_model.values()))
    linear_bytes = BITS_TO_BYTES[recipe.quantised_bits] if recipe.quantised_bits else recipe.activation
    language_model = in_linear * linear_bytes + size.other * recipe.activation
    return (
        (0 if recipe.train_language_model else language_model)
        + (FLOAT32 * lora_numbers(size, recipe) if recipe.keeps_start else 0)
        + (0 if recipe.head == "full" else size.head * recipe.activation)
        + (0 if recipe.train_connectors else size.connectors * recipe.activation)
    )


def optimizer_bytes(recipe: Recipe) -> float:
    """Optimizer state a trained number."""
    return next((size for part, size in _OPTIMIZER_BYTES if part in recipe.optimizer), _ADAMW_BYTES)


def layer_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What one layer of the language model keeps for the backward pass."""
    a, d, i = recipe.activation, size.hidden, size.intermediate
    norms = 2 * FLOAT32 * d
    if recipe.train_language_model:
        # Of each norm also what its weight is multiplied with. Of each linear layer its input; in bf16 a copy for each.
        readers = (3 + 2) if recipe.bf16 else 2
        attended = a * d if recipe.attention == "varlen" and batch.rows > 1 else 0
        norms += 2 * FLOAT32 * d + readers * a * d + a * i + attended
    feed_forward = 3 * a * i  # what enters the activation function, what leaves it, what it is multiplied with
    targeted = {
        name.rpartition(".")[2]: _lora_bytes(recipe, columns)
        for name, (_, columns) in size.language_model.items()
        if ".layers.0." in name and _is_target(name, recipe.lora_targets)
    }
    lora = sum(targeted.values())
    extra = _dora_bytes(size, recipe, batch) if recipe.dora else 0
    if not recipe.lora_dropout:
        # Without dropout, LoRA reads tensors of which one copy is kept.
        # Of attention's output there are two where rows were attended to by themselves and then joined.
        output = "o_proj" in targeted and not (recipe.attention == "varlen" and batch.rows > 1)
        lora -= a * d * (_doubles(targeted, ("q_proj", "k_proj", "v_proj")) + output)
        lora -= a * d * _doubles(targeted, ("gate_proj", "up_proj"))
    return batch.tokens * (norms + _attention_bytes(size, recipe, batch) + feed_forward + lora) + extra


def language_model_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What all layers keep; with activation checkpointing, the input of each."""
    kept = FLOAT32 if recipe.train_language_model else recipe.activation
    a_layer = kept * size.hidden * batch.tokens if recipe.checkpointing else layer_bytes(size, recipe, batch)
    ends = (3 * recipe.activation + FLOAT32) * size.hidden * batch.tokens  # embeddings, last states, their norm
    return size.layers * a_layer + ends


def head_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What the diffusion head keeps; nothing of it is recomputed."""
    a, d, i = recipe.activation, size.hidden, size.head_intermediate
    # Of a layer: shift, scale and gate; the input's norm before and after its weight; 1 + scale; what the feed-forward
    # part keeps, and gives. A trained norm has a float32 weight, so its input and its result are kept in full.
    layer = a * (6 * d + 3 * i) + FLOAT32 * d + (FLOAT32 * d if recipe.head == "full" else 0)
    # The condition; the final layer's norm and 1 + scale; the error of the velocity.
    ends = a * 3 * d + FLOAT32 * (d + size.acoustic_dim)
    a_draw = size.head_layers * layer + ends
    a_frame = 0
    if recipe.head != "frozen":
        condition, others = _split(size.head_linear, CONDITION)
        a_draw += a * d + sum(_input_bytes(recipe, columns) for columns in others)
        a_frame = sum(_input_bytes(recipe, columns) for columns in condition)
    return batch.frames * (recipe.draws * a_draw + a_frame)


def logits_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """The largest moment of the text loss: a chunk's logits and their gradient in bf16, and one float32 in between."""
    matrix = output_matrix_bytes(size, recipe) * (1.5 if recipe.bf16 else 1)  # and a chunk's part of it in bf16
    return 2 * FLOAT32 * min(batch.labels, LOGITS_CHUNK) * size.vocab + matrix


def backward_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What the backward pass of a layer needs while it runs: gradients of its widest tensors; a recomputed layer."""
    a, d, i = recipe.activation, size.hidden, size.intermediate
    gradients = batch.tokens * (3 * a * i + 2 * FLOAT32 * i + 4 * a * d)
    dequantised = a * d * i if recipe.quantised_bits else 0
    return gradients + dequantised + (layer_bytes(size, recipe, batch) if recipe.checkpointing else 0)


def _attention_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What attention keeps of a token: queries, keys, values and the output; and what lies between them."""
    a, d = recipe.activation, size.hidden
    if recipe.attention in ("flash_attention_2", "varlen"):
        # On GPUs, float32 rows get keys and values of all heads: of PyTorch's kernels, only flash takes fewer.
        repeated = recipe.attention == "varlen" and recipe.device == "cuda" and not recipe.bf16
        return a * (2 * d + 2 * (d if repeated else size.key_value)) + FLOAT32 * size.heads
    if recipe.attention == "eager":
        # All scores after the softmax, in float32 and, for the product with the values, in the dtype of those.
        scores = FLOAT32 + (a if recipe.bf16 else 0)
        return a * 4 * d + scores * size.heads * batch.tokens
    # The block-diagonal mask of packed rows, made anew in each layer; with it, keys and values of all heads.
    mask = a * batch.tokens if batch.rows > 1 else 0
    return a * 4 * d + FLOAT32 * size.heads + mask


def _dora_bytes(size: ModelSize, recipe: Recipe, batch: MicroBatch) -> float:
    """What DoRA adds in a layer: both results that magnitudes multiply, and with dropout the weight again."""
    a = recipe.activation
    kept = 0.0
    for name, (rows, columns) in size.language_model.items():
        if ".layers.0." in name and _is_target(name, recipe.lora_targets):
            kept += batch.tokens * 2 * a * rows
            if recipe.bf16:  # inputs, and so dropout's masks, are float32
                kept += batch.tokens * (FLOAT32 - a) * columns
                kept += a * rows * columns if recipe.lora_dropout else 0
    return kept


def _lora_bytes(recipe: Recipe, columns: int) -> int:
    """What LoRA on a linear layer keeps of a token: dropout's mask, its own copy of the input, its inner result."""
    return (recipe.dropout_mask + recipe.activation) * columns + recipe.activation * recipe.lora_r


def _doubles(targeted: Iterable[str], readers: tuple[str, ...]) -> int:
    """How many of the layers that read one tensor read it after the first."""
    return max(len(set(targeted) & set(readers)) - 1, 0)


def _input_bytes(recipe: Recipe, columns: int) -> int:
    """What a trained linear layer of the head keeps: its input, by itself or for LoRA."""
    return _lora_bytes(recipe, columns) if recipe.head == "lora" else recipe.activation * columns


def _split(linear: Mapping[str, tuple[int, int]], name_part: str) -> tuple[list[int], list[int]]:
    """Columns of the layers whose name holds a part, and of the others."""
    chosen = [columns for name, (_, columns) in linear.items() if name_part in name]
    return chosen, [columns for name, (_, columns) in linear.items() if name_part not in name]


def _rank(name: str, recipe: Recipe) -> int:
    return next((rank for end, rank in recipe.lora_ranks.items() if f".{name}".endswith(f".{end}")), recipe.lora_r)


def _is_target(name: str, targets: tuple[str, ...]) -> bool:
    return any(f".{name}".endswith(f".{target}") for target in targets)
