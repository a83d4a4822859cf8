"""What is trained: LoRA or all weights, of the language model and of the diffusion head, and the connectors.

Why: the base model's weights are frozen and may be bf16 or 4-bit; a trained tensor must be float32, because AdamW at
the usual rates leaves most elements of a bf16 tensor unmoved.

In: a model and an `AdapterPlan`. Out: the same model, changed in place; its trainable tensors by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from vibevoice_finetune.adapters.lora import LoraForm, Starts, has_lora, inject_for_training, merge_into
from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.errors import ArgumentError, RunCheckpointError, shown

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
        train_language_model: whether all weights of the language model are trained, its output matrix included.
        lora_rank_pattern: names of layers, or ends of such names, of the language model to another rank.
        head_rank_pattern: names of layers of the diffusion head to their ranks.
        use_rslora: whether the factor is `lora_alpha / sqrt(r)`.
        use_dora: whether each row of a weight also has a trained length.
        init_lora_weights: how LoRA begins, see `LoraForm`.
    """

    lora_r: int
    lora_alpha: float
    lora_dropout: float
    lora_target_modules: tuple[str, ...]
    head: Literal["frozen", "full", "lora"]
    train_connectors: bool
    layers_to_freeze: tuple[int, ...] = ()
    train_language_model: bool = False
    lora_rank_pattern: Mapping[str, int] = field(default_factory=dict)
    head_rank_pattern: Mapping[str, int] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: str = "default"

    def form(self, ranks: Mapping[str, int]) -> LoraForm:
        """How LoRA is made in a block in which these layers have another rank."""
        return LoraForm(
            rank=self.lora_r,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            ranks=ranks,
            root_of_rank=self.use_rslora,
            magnitudes=self.use_dora,
            start=self.init_lora_weights,
        )


@dataclass(frozen=True, eq=False)
class HeadParameter:
    """One tensor of the diffusion head, by its index in the original's order."""

    index: int
    original_name: str
    parameter: nn.Parameter


def attach(model: nn.Module, plan: AdapterPlan, begun: Starts | None = None) -> None:
    """Freeze the model, and make trainable what the plan names.

    LoRA's first matrix is drawn from torch's global generator, which the caller seeds; its second one is zero, so the
    model computes what it did before. Trainable tensors become float32, a fully trained block as a whole.

    Args:
        model: without LoRA.
        plan: what is trained.
        begun: where LoRA began, in the run that goes on, if it began at the weights.

    Raises:
        ArgumentError: the plan does not fit the model or trains nothing; the model is as it was.
    """
    _check_plan(model, plan)
    model.requires_grad_(False)
    head = parts.diffusion_head(model)
    if plan.train_language_model:
        _train_whole(parts.language_model(model))
        _train_whole(parts.lm_head(model))
    if plan.lora_target_modules:
        form = plan.form(plan.lora_rank_pattern)
        inject_for_training(
            parts.language_model(model), plan.lora_target_modules, form, begun, tensor_names.LANGUAGE_MODEL
        )
    if plan.head == "lora":
        targets = tuple(plan.head_rank_pattern) or _linear_names(head)
        inject_for_training(head, targets, plan.form(plan.head_rank_pattern), begun, tensor_names.DIFFUSION_HEAD)
    if plan.head == "full":
        _train_whole(head)
        for entry in head_parameters(model):
            entry.parameter.requires_grad_(entry.index not in plan.layers_to_freeze)
    if plan.train_connectors:
        _train_whole(parts.acoustic_connector(model))
        _train_whole(parts.semantic_connector(model))


def merge(model: nn.Module) -> None:
    """Fold all LoRA into the weights under it and put the plain layers back; quantised weights are quantised anew."""
    merge_into(parts.language_model(model))
    merge_into(parts.diffusion_head(model))


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
    _check_rank_pattern(plan, linear)
    assert not (plan.train_language_model and plan.lora_target_modules), "LoRA on a language model that is trained"
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
    if not (plan.train_language_model or plan.lora_target_modules or head_moves or plan.train_connectors):
        raise ArgumentError(
            "nothing is trained: --lora_target_modules is empty, and neither --train_language_model, "
            "--train_diffusion_head, --lora_wrap_diffusion_head nor --train_connectors leaves anything to train; "
            "switch one of them on"
        )


def _check_rank_pattern(plan: AdapterPlan, linear: tuple[str, ...]) -> None:
    """Refuse a name that is no layer with LoRA: PEFT would ignore it."""
    with_lora = [name for name in linear if any(f".{name}".endswith(f".{end}") for end in plan.lora_target_modules)]
    for end in plan.lora_rank_pattern:
        if not any(f".{name}".endswith(f".{end}") for name in with_lora):
            raise ArgumentError(
                f"--lora_rank_pattern {shown(end)}: no layer of this name has LoRA; those of --lora_target_modules are "
                f"{', '.join(plan.lora_target_modules) or 'none'}"
            )


def _linear_names(block: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, module in block.named_modules() if isinstance(module, nn.Linear))
