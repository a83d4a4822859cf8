"""The result of a run as a folder that this program and other tools load: the one writer of that layout.

Why: PEFT's own saving knows one wrapped module; a tuned VibeVoice is up to four parts, which the community's inference
code and the ComfyUI nodes look for in certain files, under the original's names. None of them reads a LoRA of the
diffusion head, so that one is written twice: merged in `diffusion_head/`, and as itself in `diffusion_head_lora/`,
under names that no program takes for an adapter of its own. ComfyUI lists a folder only if it has PEFT's two files, so
a result without LoRA on the language model holds a single pair of zeros in their place, which changes nothing.

In: a model with adapters attached, or the parts of an adapter. Out: the folder, complete or not there at all.
Everything is float32, as trained: rounding the result to bf16 would undo a part of the training, and LoRA is small (37
MB at rank 8 on the 1.5B model). A fully trained head is not: 0.5 GB at 1.5B and 2.7 GB at 7B, in each of its two files.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import VibeVoiceConfig

from vibevoice_finetune.adapters.attach import AdapterPlan, head_parameters
from vibevoice_finetune.adapters.files import SAFETENSORS, sha256
from vibevoice_finetune.adapters.info import AdapterInfo, FileRecord, public_info, write_card, write_info
from vibevoice_finetune.adapters.lora import ADAPTER, fold, lora_layers, lora_magnitude, lora_matrices, lora_start
from vibevoice_finetune.adapters.read import (
    ACOUSTIC_CONNECTOR,
    CONFIG_FILE,
    CONNECTOR_FILES,
    HEAD,
    HEAD_FILES,
    HEAD_LORA_CONFIG,
    HEAD_LORA_FILE,
    LORA_FILES,
    SEMANTIC_CONNECTOR,
    Block,
)
from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.base_model.config import config_to_original
from vibevoice_finetune.errors import AdapterError
from vibevoice_finetune.files.atomic import write_json, writing_folder
from vibevoice_finetune.objective.sharding import whole

Tensors = dict[str, Tensor]

_PLACEHOLDER_LAYER = "layers.0.self_attn.q_proj"


@dataclass(frozen=True, eq=False)
class Lora:
    """LoRA of one block, by the original's names of its layers.

    Attributes:
        pairs: layer to A (r, in) and B (out, r).
        targets: what `target_modules` is to name.
        rank: r of the layers that `ranks` does not name.
        alpha: likewise; the scale is alpha / r.
        ranks: layers with another rank.
        alphas: layers with another alpha.
        magnitudes: DoRA's m (out,) of each layer; empty for plain LoRA.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    targets: Iterable[str]
    rank: int
    alpha: float
    dropout: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        scalings: Mapping[str, float],
        targets: Iterable[str],
        dropout: float = 0.0,
        magnitudes: Mapping[str, Tensor] | None = None,
    ) -> "Lora":
        """Matrices with the factor of each; rank and alpha that most layers share are said once.

        Whatever form of LoRA the factor came from, alpha / r gives it, so every program that knows LoRA gets it right.
        """
        ranks = {name: down.shape[0] for name, (down, _) in pairs.items()}
        alphas = {name: alpha_for(ranks[name], scaling) for name, scaling in scalings.items()}
        rank, alpha = Counter((ranks[name], alphas[name]) for name in pairs).most_common(1)[0][0]
        return cls(
            pairs,
            targets,
            rank,
            alpha,
            dropout,
            {name: other for name, other in ranks.items() if other != rank},
            {name: other for name, other in alphas.items() if not math.isclose(other, alpha)},
            magnitudes or {},
        )


@dataclass(frozen=True, eq=False)
class AdapterParts:
    """All that an adapter consists of; full tensors are by their original names within the block.

    Attributes:
        language_model: LoRA of the language model, if there is any.
        head_lora: LoRA of the diffusion head, if there is any.
        head: the whole diffusion head, with its LoRA folded in; empty if it was not trained.
        connectors: all weights of the connectors, if they were trained.
    """

    language_model: Lora | None = None
    head_lora: Lora | None = None
    head: Tensors = field(default_factory=dict)
    connectors: Mapping[Block, Tensors] = field(default_factory=dict)


def save_adapter(model: nn.Module, plan: AdapterPlan, folder: Path, info: AdapterInfo, *, writes: bool = True) -> None:
    """Write the trained parts of a model as a portable adapter.

    A folder that is there is replaced; at every moment it holds either all of the old or all of the new adapter.

    Args:
        model: with the adapters of `plan` attached.
        plan: what was trained.
        folder: usually `OUT/lora`.
        info: what is known beside the tensors.
        writes: False in a process that only hands out its parts of split tensors.

    Raises:
        AdapterError: a trained tensor is not finite; `folder` is as it was.
        WriteError: the folder cannot be written; it is as it was.
    """
    collected = _parts_of(model, plan)
    if writes:
        write_adapter(folder, collected, parts.config(model), plan, info)


def write_adapter(
    folder: Path, adapter: AdapterParts, config: VibeVoiceConfig, plan: AdapterPlan, info: AdapterInfo
) -> None:
    """Write the files of a portable adapter, its model card and its record.

    Args:
        folder: as for `save_adapter`.
        adapter: its parts, float32 tensors on the CPU.
        config: of the base model.
        plan: what was trained.
        info: what is known beside the tensors.

    Raises:
        AdapterError, WriteError: as `save_adapter`.
    """
    info = public_info(info)
    tensor_files = _tensor_files(adapter, config)
    _check_finite(tensor_files)
    with writing_folder(folder) as staging:
        for name, tensors in tensor_files.items():
            _write_tensors(staging / name, tensors)
        for name, value in _json_files(adapter, config, info).items():
            write_json(staging / name, value)
        contents = {
            path.relative_to(staging).as_posix(): FileRecord(sha256(path), path.stat().st_size)
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        write_card(staging, info, plan, sum(record.size_bytes for record in contents.values()))
        write_info(staging, info, asdict(plan), contents)


def _parts_of(model: nn.Module, plan: AdapterPlan) -> AdapterParts:
    """What was trained, gathered from a model."""
    language_model = head_lora = None
    if plan.lora_target_modules:
        language_model = _lora(lora_layers(parts.language_model(model)), plan, plan.lora_target_modules)
    if plan.head == "lora":
        layers = lora_layers(parts.diffusion_head(model))
        head_lora = _lora({_original_layer(name): layer for name, layer in layers.items()}, plan, None)
    connectors: dict[Block, Tensors] = {}
    if plan.train_connectors:
        for block, module in (
            (ACOUSTIC_CONNECTOR, parts.acoustic_connector(model)),
            (SEMANTIC_CONNECTOR, parts.semantic_connector(model)),
        ):
            connectors[block] = {
                original_name(block, block.native + name): _plain(tensor) for name, tensor in module.named_parameters()
            }
    head = _head_tensors(model) if plan.head != "frozen" else {}
    return AdapterParts(language_model, head_lora, head, connectors)


@torch.no_grad()
def _lora(layers: Mapping[str, LoraLayer], plan: AdapterPlan, targets: Iterable[str] | None) -> Lora:
    """What the layers have learned, by the names given for them; `targets` None: the layers are named one by one.

    PiSSA and OLoRA took `s B0 A0` out of the weights before they began, so what is added to the published weights is
    `s (B A - B0 A0)`: LoRA of twice the rank, whose matrices lie side by side, as PEFT itself converts them.
    """
    pairs, magnitudes = {}, {}
    for name, layer in layers.items():
        down, up = _plain_pair(lora_matrices(layer))
        start = lora_start(layer)
        if start is not None:
            start_down, start_up = _plain_pair(start)
            down, up = torch.cat([down, start_down], dim=0), torch.cat([up, -start_up], dim=1)
        pairs[name] = (down, up)
        magnitude = lora_magnitude(layer)
        if magnitude is not None:
            magnitudes[name] = _plain(magnitude)
    scalings = {name: layer.scaling[ADAPTER] for name, layer in layers.items()}
    return Lora.of(pairs, scalings, pairs if targets is None else targets, plan.lora_dropout, magnitudes)


@torch.no_grad()
def _head_tensors(model: nn.Module) -> Tensors:
    """The head's own tensors by their original names, with LoRA folded in if there is any."""
    tensors = {entry.original_name: _plain(entry.parameter) for entry in head_parameters(model)}
    for layer_name, layer in lora_layers(parts.diffusion_head(model)).items():
        name = f"{_original_layer(layer_name)}.weight"
        magnitude = lora_magnitude(layer)
        tensors[name] = fold(
            tensors[name],
            *_plain_pair(lora_matrices(layer)),
            layer.scaling[ADAPTER],
            None if magnitude is None else _plain(magnitude),
        )
    return tensors


def alpha_for(rank: int, scaling: float) -> float:
    """What, divided by the rank, gives this factor; rounding takes back the division's last bit."""
    alpha = round(rank * scaling, 9)
    return alpha if alpha / rank == scaling else rank * scaling


def original_name(block: Block, native_name: str) -> str:
    """The original's name within its block of a tensor."""
    return tensor_names.to_original(native_name).removeprefix(block.original)


def _tensor_files(adapter: AdapterParts, config: VibeVoiceConfig) -> dict[str, Tensors]:
    """All files with tensors, by name relative to the folder."""
    files = {LORA_FILES[0]: _peft_tensors(adapter.language_model or _placeholder(config))}
    if adapter.head_lora is not None:
        files[HEAD_LORA_FILE] = _peft_tensors(adapter.head_lora)
    if adapter.head:
        files |= dict.fromkeys(HEAD_FILES[:2], adapter.head)
    for block, tensors in adapter.connectors.items():
        files |= {f"{block.folder}/{file}": tensors for file in CONNECTOR_FILES}
    return files


def _json_files(adapter: AdapterParts, config: VibeVoiceConfig, info: AdapterInfo) -> dict[str, Any]:
    files = {CONFIG_FILE: _peft_config(adapter.language_model or _placeholder(config), info)}
    if adapter.head_lora is not None:
        files[HEAD_LORA_CONFIG] = _peft_config(adapter.head_lora, info)
    if adapter.head:
        head: dict[str, Any] = config_to_original(config)["diffusion_head_config"]
        files[f"{HEAD.folder}/config.json"] = head | {
            "architectures": ["VibeVoiceDiffusionHead"],
            "torch_dtype": "float32",
        }
    return files


def _placeholder(config: VibeVoiceConfig) -> Lora:
    """LoRA that changes nothing: one pair of zeros."""
    shapes = parts.tensor_shapes(config)
    num_out, num_in = shapes[f"{tensor_names.LANGUAGE_MODEL}{_PLACEHOLDER_LAYER}.weight"]
    pair = torch.zeros(1, num_in), torch.zeros(num_out, 1)
    return Lora({_PLACEHOLDER_LAYER: pair}, [_PLACEHOLDER_LAYER], rank=1, alpha=1)


def _peft_tensors(lora: Lora) -> Tensors:
    tensors: Tensors = {}
    for layer, (down, up) in lora.pairs.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = down
        tensors[f"base_model.model.{layer}.lora_B.weight"] = up
    for layer, magnitude in lora.magnitudes.items():
        tensors[f"base_model.model.{layer}.lora_magnitude_vector"] = magnitude
    return tensors


def _peft_config(lora: Lora, info: AdapterInfo) -> dict[str, Any]:
    config = LoraConfig(
        r=lora.rank,
        lora_dropout=lora.dropout,
        use_dora=bool(lora.magnitudes),
        base_model_name_or_path=info.base_model,
        inference_mode=True,
        # The language model is a Qwen2Model without prepare_inputs_for_generation, which CAUSAL_LM asks for.
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    values: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    values |= {"target_modules": sorted(lora.targets), "lora_alpha": alpha}
    return dict(sorted((values | {"rank_pattern": dict(lora.ranks), "alpha_pattern": dict(lora.alphas)}).items()))


def _write_tensors(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SAFETENSORS:
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def _check_finite(files: Mapping[str, Tensors]) -> None:
    for file, tensors in files.items():
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise AdapterError(
                    f"{file}: tensor {name} has values that are not finite numbers, so nothing is saved; go on from an "
                    "earlier checkpoint with a lower --learning_rate"
                )


def _plain(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).to("cpu", torch.float32).contiguous()


def _plain_pair(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return _plain(pair[0]), _plain(pair[1])


def _original_layer(name: str) -> str:
    return original_name(HEAD, f"{HEAD.native}{name}.weight").removesuffix(".weight")
