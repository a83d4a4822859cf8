"""What is trained: LoRA on the language model, LoRA or all weights of the diffusion head, the connectors.

Why: the base model's weights are frozen and may be bf16 or 4-bit; a trained tensor must be float32, because AdamW at
the usual rates leaves most elements of a bf16 tensor unmoved. PEFT's layers are injected into the two blocks, the
model itself is not wrapped: its classes, `generate()` and the names of its parts stay as they are.

In: a model and an `AdapterPlan`. Out: the same model, changed in place; its trainable tensors by name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.errors import ArgumentError, RunCheckpointError

# PEFT can hold several adapters in a layer; here is one, by the name that PEFT gives a first one.
ADAPTER = "default"

_ORIGINAL_HEAD = "model.prediction_head."


@dataclass(frozen=True)
class AdapterPlan:
    """Which parts are trained, and how; the flags of `train` in their final types.

    Attributes:
        lora_r: rank of LoRA, on the language model and on the head.
        lora_alpha: what LoRA adds is multiplied with `lora_alpha / lora_r`.
        lora_dropout: share of LoRA's inputs that are dropped in training.
        lora_target_modules: names of the language model's linear layers, as `q_proj`; empty: no LoRA there.
        head: what of the diffusion head is trained.
        train_connectors: whether both connectors are trained, all their weights.
        layers_to_freeze: indices into `head_parameters`, of a fully trained head.
    """

    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: tuple[str, ...]
    head: Literal["frozen", "full", "lora"]
    train_connectors: bool
    layers_to_freeze: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class HeadParameter:
    """One tensor of the diffusion head, by its index in the original's order."""

    index: int
    original_name: str
    parameter: nn.Parameter


def attach(model: nn.Module, plan: AdapterPlan) -> None:
    """Freeze the model, and make trainable what the plan names.

    LoRA's first matrix is drawn from torch's global generator, which the caller seeds; its second one is zero, so the
    model computes what it did before. Trainable tensors become float32, a fully trained block as a whole.

    Raises:
        ArgumentError: the plan does not fit the model or trains nothing; the model is as it was.
    """
    _check_plan(model, plan)
    model.requires_grad_(False)
    head = parts.diffusion_head(model)
    if plan.lora_target_modules:
        _inject_for_training(parts.language_model(model), plan, plan.lora_target_modules)
    if plan.head == "lora":
        _inject_for_training(head, plan, _linear_names(head))
    if plan.head == "full":
        _train_whole(head)
        for entry in head_parameters(model):
            entry.parameter.requires_grad_(entry.index not in plan.layers_to_freeze)
    if plan.train_connectors:
        _train_whole(parts.acoustic_connector(model))
        _train_whole(parts.semantic_connector(model))


def rely_on_autocast(model: nn.Module) -> None:
    """Let LoRA read its inputs as they are, in a model that runs under autocast and nowhere else.

    PEFT makes a float32 copy of every input, which autocast rounds back to the same bf16 at once: without it, losses
    and gradients are equal in every bit. Without autocast, LoRA on bf16 inputs then raises.
    """
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def head_parameters(model: nn.Module) -> list[HeadParameter]:
    """The diffusion head's own tensors in the original's order, which `--layers_to_freeze` counts in.

    0 noisy_images_proj, 1 cond_proj, 2 and 3 t_embedder.mlp.0 and .2, five of each layer (gate, up, down, norm, adaLN),
    at the end the final layer's linear and adaLN.
    """
    head = parts.diffusion_head(model)
    modules = ["noisy_images_proj", "cond_proj", "timestep_proj.fc1", "timestep_proj.fc2"]
    for layer in range(len(head.layers)):
        modules += [f"layers.{layer}.{name}" for name in ("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj")]
        modules += [f"layers.{layer}.norm", f"layers.{layer}.linear"]
    modules += ["final_layer.linear_2", "final_layer.linear_1"]
    entries = []
    for index, module in enumerate(modules):
        # A layer with LoRA gives the weight it was put over.
        weight = head.get_submodule(module).weight
        assert isinstance(weight, nn.Parameter)
        original = tensor_names.to_original(f"{tensor_names.DIFFUSION_HEAD}{module}.weight").removeprefix(
            _ORIGINAL_HEAD
        )
        entries.append(HeadParameter(index, original, weight))
    assert len(entries) == sum("lora_" not in name for name, _ in head.named_parameters())
    return entries


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All trainable tensors by their names in the model."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_state(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], where: str) -> None:
    """Refuse a checkpoint's tensors that are not those of these parameters.

    Raises:
        RunCheckpointError: other tensors are trained now, or one has another shape or dtype.
    """
    missing, left_over = sorted(parameters.keys() - state.keys()), sorted(state.keys() - parameters.keys())
    if missing or left_over:
        raise RunCheckpointError(
            f"{where}: its trained tensors are not the ones trained now: missing {_some(missing)}, "
            f"left over {_some(left_over)}; go on with the flags that the run began with."
        )
    for name, parameter in parameters.items():
        found = state[name]
        if found.shape != parameter.shape or found.dtype != parameter.dtype:
            raise RunCheckpointError(
                f"{where}: tensor {name} is {found.dtype} of shape {tuple(found.shape)}; expected {parameter.dtype} of "
                f"shape {tuple(parameter.shape)}; go on with the flags that the run began with."
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more if names else "none"


def fold(base: Tensor, down: Tensor, up: Tensor, scaling: float) -> Tensor:
    """LoRA put into a weight: `base + scaling * up @ down`, computed in float32 and rounded once to the base's dtype.

    Args:
        base: (out, in).
        down: LoRA's A, (r, in).
        up: LoRA's B, (out, r).
        scaling: alpha / r.
    """
    delta = (up.to(base.device, torch.float32) @ down.to(base.device, torch.float32)) * scaling
    return (base.float() + delta).to(base.dtype)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Fold all LoRA into the weights under it and put the plain layers back; quantised weights are quantised anew."""
    for block in (parts.language_model(model), parts.diffusion_head(model)):
        layers = lora_layers(block)
        for name, layer in layers.items():
            base = layer.get_base_layer()
            if type(base) is nn.Linear:
                base.weight.copy_(fold(base.weight, *lora_matrices(layer), layer.scaling[ADAPTER]))
            else:
                layer.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(parent), leaf, base)
        if layers:
            del block.peft_config


def lora_layers(block: nn.Module) -> dict[str, LoraLayer]:
    """The injected layers of a block, by the names of the layers they were put over."""
    return {name: module for name, module in block.named_modules() if isinstance(module, LoraLayer)}


def lora_matrices(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """LoRA's A (r, in) and B (out, r)."""
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    assert isinstance(down, nn.Linear)
    assert isinstance(up, nn.Linear)
    return down.weight, up.weight


def has_lora(model: nn.Module) -> bool:
    """Whether LoRA is attached to the model."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


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


def _inject_for_training(block: nn.Module, plan: AdapterPlan, targets: tuple[str, ...]) -> None:
    config = LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        target_modules=list(targets),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    _inject(block, config)


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
        for matrix in lora_matrices(layer):
            # PEFT gives them the dtype of the weight they are put over.
            matrix.data = matrix.data.float()
    return layers


def _train_whole(block: nn.Module) -> None:
    block.float()
    block.requires_grad_(True)


def _check_plan(model: nn.Module, plan: AdapterPlan) -> None:
    assert not has_lora(model), "the model has LoRA already"
    language_model = parts.language_model(model)
    linear = _linear_names(language_model)
    unknown = [
        target for target in plan.lora_target_modules if not any(f".{name}".endswith(f".{target}") for name in linear)
    ]
    if unknown:
        leaves = sorted({name.rpartition(".")[2] for name in linear})
        raise ArgumentError(
            f"--lora_target_modules {','.join(unknown)}: the language model has no linear layer of this name; "
            f"it has {', '.join(leaves)}"
        )
    if plan.layers_to_freeze and plan.head != "full":
        raise ArgumentError("--layers_to_freeze needs --train_diffusion_head: it names tensors of that head.")
    num_tensors = len(head_parameters(model))
    outside = [index for index in plan.layers_to_freeze if not 0 <= index < num_tensors]
    if outside:
        raise ArgumentError(
            f"--layers_to_freeze {','.join(map(str, outside))}: the diffusion head's tensors have the numbers "
            f"0 to {num_tensors - 1}"
        )
    head_moves = plan.head == "lora" or (plan.head == "full" and len(set(plan.layers_to_freeze)) < num_tensors)
    if not (plan.lora_target_modules or head_moves or plan.train_connectors):
        raise ArgumentError(
            "nothing is trained: --lora_target_modules is empty, and neither --train_diffusion_head, "
            "--lora_wrap_diffusion_head nor --train_connectors leaves anything to train; switch one of them on"
        )


def _linear_names(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in block.named_modules() if isinstance(module, nn.Linear))
