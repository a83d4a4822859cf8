"""LoRA on one block of the model: PEFT's layers put over its linear layers, and folded into the weights again.

Why: PEFT's layers are injected, the model itself is not wrapped: its classes, `generate()` and the names of its parts
stay as they are. PEFT has several forms of LoRA; what each of them adds to a weight is written down here, once:

- LoRA: `W + s B A` with s = alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA;
- PiSSA and OLoRA: the same, but A and B begin at the strongest directions of W, which are taken out of W first. Their
  beginning is kept, because what was learned is `s (B A - B0 A0)`, relative to the weights as they were published;
- DoRA: `m (W + s B A) / |W + s B A|`, row by row, with a trained magnitude m for each row.

In: a block and what is wanted. Out: the block changed in place; its layers and their tensors.
Shapes: r rank, in and out the sizes of a linear layer.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vibevoice_finetune.adapters.files import Stored
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.model import FROM_WEIGHTS

# PEFT can hold several adapters in a layer; here is one, by the name that PEFT gives a first one.
ADAPTER = "default"

_START = ("start_down", "start_up")


@dataclass(frozen=True)
class LoraForm:
    """How LoRA is made; the flags of `train` in their final types.

    Attributes:
        rank: r of layers that no pattern names.
        alpha: what is added is multiplied with alpha / r.
        dropout: share of LoRA's inputs that are dropped in training.
        ranks: names of layers, or of kinds of layers such as `q_proj`, to another rank.
        root_of_rank: whether the factor is alpha / sqrt(r): rsLoRA.
        magnitudes: whether each row has a trained length: DoRA.
        start: how the matrices begin: "default", "gaussian", or one of `FROM_WEIGHTS`.
    """

    rank: int
    alpha: float
    dropout: float
    ranks: Mapping[str, int]
    root_of_rank: bool
    magnitudes: bool
    start: str


Starts = Mapping[str, Tensor]
"""Where PiSSA's or OLoRA's matrices began, by their names in the model, as `starts` gives them."""


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA of one weight (out, in): what is added is `scaling * up @ down`; with DoRA, then each row gets a length."""

    down: Stored  # A, (r, in)
    up: Stored  # B, (out, r)
    scaling: float
    magnitude: Stored | None = None  # DoRA's m, (out,)

    def folded_into(self, base: Tensor, scale: float = 1.0) -> Tensor:
        """The base weight with `scale` of the change, in its dtype; of DoRA, the change as a whole is scaled."""
        if self.magnitude is None:
            return fold(base, self.down.tensor, self.up.tensor, self.scaling * scale)
        exact = fold(base.float(), self.down.tensor, self.up.tensor, self.scaling, self.magnitude.tensor)
        return (exact if scale == 1.0 else base.float() + (exact - base.float()) * scale).to(base.dtype)

    def tensors(self) -> Iterator[Stored]:
        """All that is read of it."""
        yield from (self.down, self.up)
        if self.magnitude is not None:
            yield self.magnitude

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.down.tensor.shape[0]


def inject_for_training(
    block: nn.Module, targets: tuple[str, ...], form: LoraForm, begun: Starts | None = None, prefix: str = ""
) -> None:
    """Put LoRA over layers of a block.

    Its first matrix is drawn from torch's global generator and its second one is zero, or both begin at the weights;
    either way the block computes what it did before.

    Args:
        block: what the names are relative to.
        targets: names of linear layers, or the ends of such names.
        form: how.
        begun: where the matrices began in the run that goes on; None for a new run.
        prefix: of the block's names in `begun`.

    Raises:
        ArgumentError: a rank is above what a layer can begin with.
    """
    config = LoraConfig(
        r=form.rank,
        lora_alpha=form.alpha,  # type: ignore[arg-type]  # PEFT only divides it
        lora_dropout=form.dropout,
        target_modules=list(targets),
        rank_pattern=dict(form.ranks),
        use_rslora=form.root_of_rank,
        use_dora=form.magnitudes,
        init_lora_weights="gaussian" if form.start == "gaussian" else True,
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    layers = _inject(block, config)
    if form.start in FROM_WEIGHTS:
        _check_ranks(layers, form.start)
        for name, layer in layers.items():
            _begin_at_weights(layer, form.start, begun, f"{prefix}{name}.")


def inject_for_generation(block: nn.Module, ranks: Mapping[str, int]) -> dict[str, LoraLayer]:
    """Put LoRA without effect over the named layers of a block, to be filled with trained values.

    Args:
        block: what the names are relative to.
        ranks: full names of layers to their ranks r.

    Returns:
        The injected layers; their scaling is to be set too.
    """
    config = LoraConfig(
        r=max(ranks.values()),
        target_modules=list(ranks),
        rank_pattern={f"^{re.escape(name)}": rank for name, rank in ranks.items()},
        inference_mode=True,
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    return _inject(block, config)


def rely_on_autocast(model: nn.Module) -> None:
    """Let LoRA read its inputs as they are, in a model that runs under autocast and nowhere else.

    PEFT makes a float32 copy of every input, which autocast rounds back to the same bf16 at once: without it, losses
    and gradients are equal in every bit. Without autocast, LoRA on bf16 inputs then raises. DoRA keeps the copy: it
    measures rows in the dtype of its input, and in bf16 their lengths would be off by up to 0.4 %.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer) and lora_magnitude(module) is None:
            module.cast_input_dtype_enabled = False


def lora_layers(block: nn.Module) -> dict[str, LoraLayer]:
    """The injected layers of a block, by the names of the layers they were put over."""
    return {name: module for name, module in block.named_modules() if isinstance(module, LoraLayer)}


def lora_matrices(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """LoRA's A (r, in) and B (out, r)."""
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    return down.weight, up.weight


def lora_magnitude(layer: LoraLayer) -> nn.Parameter | None:
    """DoRA's m (out,); None for the other forms."""
    if ADAPTER not in layer.lora_magnitude_vector:
        return None
    module = layer.lora_magnitude_vector[ADAPTER]
    assert isinstance(module, nn.Module)
    return module.get_parameter("weight")


def lora_start(layer: LoraLayer) -> tuple[Tensor, Tensor] | None:
    """Where A and B began, if that was taken out of the weights under them."""
    buffers = dict(layer.named_buffers(recurse=False))  # type: ignore[attr-defined]  # every LoRA layer is a module
    return (buffers[_START[0]], buffers[_START[1]]) if _START[0] in buffers else None


def starts(model: nn.Module) -> dict[str, Tensor]:
    """All tensors of `lora_start`, by their names in the model."""
    return {name: value for name, value in model.named_buffers() if name.endswith(_START)}


def has_lora(model: nn.Module) -> bool:
    """Whether LoRA is attached to the model."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def fold(base: Tensor, down: Tensor, up: Tensor, scaling: float, magnitude: Tensor | None = None) -> Tensor:
    """LoRA put into a weight: `base + scaling * up @ down`, computed in float32 and rounded once to the base's dtype.

    Args:
        base: (out, in).
        down: LoRA's A, (r, in).
        up: LoRA's B, (out, r).
        scaling: alpha / r.
        magnitude: (out,) the length that DoRA gives each row of the sum; None for plain LoRA.
    """
    moved = base.float() + (up.to(base.device, torch.float32) @ down.to(base.device, torch.float32)) * scaling
    if magnitude is not None:
        lengths = torch.linalg.vector_norm(moved, dim=1)
        moved *= (magnitude.to(base.device, torch.float32) / lengths).unsqueeze(1)
    return moved.to(base.dtype)


@torch.no_grad()
def merge_into(block: nn.Module) -> None:
    """Fold all LoRA of a block into the weights under it; quantised weights are quantised anew."""
    layers = lora_layers(block)
    for name, layer in layers.items():
        base = layer.get_base_layer()
        if type(base) is nn.Linear:
            base.weight.copy_(fold(base.weight, *lora_matrices(layer), layer.scaling[ADAPTER], lora_magnitude(layer)))
        else:
            layer.merge()
        parent, _, leaf = name.rpartition(".")
        setattr(block.get_submodule(parent), leaf, base)
    if layers:
        del block.peft_config


def _inject(block: nn.Module, config: LoraConfig) -> dict[str, LoraLayer]:
    # PEFT asks the module that it is given whether it was loaded in 4 or 8 bits; transformers says so of the whole
    # model, if at all. Without it, PEFT would treat packed weights as plain ones.
    kinds = {type(module).__name__ for module in block.modules()}
    for kind, flag in (("Linear4bit", "is_loaded_in_4bit"), ("Linear8bitLt", "is_loaded_in_8bit")):
        if kind in kinds:
            setattr(block, flag, True)
    training = block.training
    inject_adapter_in_model(config, block, adapter_name=ADAPTER)
    block.train(training)
    layers = lora_layers(block)
    for layer in layers.values():
        for matrix in _trained(layer):
            # PEFT gives them the dtype of the weight they are put over.
            matrix.data = matrix.data.float()
        magnitude = lora_magnitude(layer)
        base = layer.get_base_layer()
        if magnitude is not None and isinstance(base, nn.Linear) and base.weight.is_floating_point():
            magnitude.data = torch.linalg.vector_norm(base.weight.data.float(), dim=1)
    return layers


def _trained(layer: LoraLayer) -> Iterator[Tensor]:
    yield from lora_matrices(layer)
    magnitude = lora_magnitude(layer)
    if magnitude is not None:
        yield magnitude


def _check_ranks(layers: Mapping[str, LoraLayer], start: str) -> None:
    for name, layer in layers.items():
        largest = min(layer.get_base_layer().weight.shape)  # type: ignore[arg-type]
        if layer.r[ADAPTER] > largest:
            raise ArgumentError(
                f"--init_lora_weights {start}: begins with directions of the weights, of which {name} has {largest}; "
                f"its rank is {layer.r[ADAPTER]}: lower --lora_r, or leave the flag out."
            )


@torch.no_grad()
def _begin_at_weights(layer: LoraLayer, start: str, begun: Starts | None, prefix: str) -> None:
    """Begin at a part of the weight, which is taken out of it; the sum is what it was, up to its dtype's rounding."""
    if begun is not None:
        # Another machine would compute other directions, so a run that goes on takes those that it began with.
        weight = layer.get_base_layer().weight
        assert isinstance(weight, Tensor)
        for matrix, name in zip(lora_matrices(layer), _START, strict=True):
            matrix.data = begun[prefix + name].to(weight.device)
        down, up = lora_matrices(layer)
        weight.data = (weight.float() - layer.scaling[ADAPTER] * up @ down).to(weight.dtype)
    elif start == "olora":
        layer.olora_init(ADAPTER)  # type: ignore[no-untyped-call]
    else:
        layer.pissa_init(ADAPTER, start)  # type: ignore[no-untyped-call]
    assert isinstance(layer, nn.Module)
    for matrix, name in zip(lora_matrices(layer), _START, strict=True):
        layer.register_buffer(name, matrix.detach().clone(), persistent=False)
