"""The result of a run as a folder that this program and other tools load.

Why: PEFT's own saving knows one wrapped module; a tuned VibeVoice is up to four parts, which the community's inference
code and the ComfyUI nodes look for in certain files, in the original's words. Neither reads a LoRA of the diffusion
head, so that one is written twice: merged in `diffusion_head/`, and as itself in `diffusion_head_lora/`.

In: a model with adapters attached. Out: the folder, complete or not there at all. Everything is float32, as trained:
rounding the result to bf16 would undo a part of the training, and LoRA is small (37 MB at rank 8 on the 1.5B model).
A fully trained head is not: 0.5 GB at 1.5B and 2.7 GB at 7B, in each of its two files.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import VibeVoiceConfig

from vibevoice_finetune.adapters.attach import (
    ADAPTER,
    AdapterPlan,
    fold,
    head_parameters,
    lora_layers,
    lora_matrices,
)
from vibevoice_finetune.adapters.files import SAFETENSORS, sha256
from vibevoice_finetune.adapters.info import INFO_FILE, AdapterInfo, FileRecord, write_info
from vibevoice_finetune.adapters.read import (
    ACOUSTIC_CONNECTOR,
    CONFIG_FILE,
    CONNECTOR_FILES,
    HEAD,
    HEAD_FILES,
    HEAD_LORA_FOLDER,
    LORA_FILES,
    SEMANTIC_CONNECTOR,
    Block,
)
from vibevoice_finetune.base_model import parts, tensor_names
from vibevoice_finetune.base_model.config import config_to_original
from vibevoice_finetune.errors import AdapterError
from vibevoice_finetune.objective.sharding import whole

CARD_FILE = "README.md"

Tensors = dict[str, Tensor]


def save_adapter(model: nn.Module, plan: AdapterPlan, folder: Path, info: AdapterInfo, *, writes: bool = True) -> None:
    """Write the trained parts of a model as a portable adapter.

    It is written beside and renamed: `folder` holds either what it held before or all of the new adapter. A folder
    that is there is replaced.

    Args:
        model: with the adapters of `plan` attached.
        plan: what was trained.
        folder: usually `OUT/lora`.
        info: what is known beside the tensors.
        writes: False in a process that only hands out its parts of split tensors.

    Raises:
        AdapterError: a trained tensor is not finite, or the disk is full or not writable; `folder` is as it was.
    """
    files = _tensor_files(model, plan)
    if writes:
        write_adapter(folder, files, _json_files(model, plan, info), plan, info)


def write_adapter(
    folder: Path, files: Mapping[str, Tensors], json_files: Mapping[str, Any], plan: AdapterPlan, info: AdapterInfo
) -> None:
    """Write the files of a portable adapter, its model card and its record.

    Args:
        folder: as for `save_adapter`.
        files: tensors by file name relative to the folder, each a float32 tensor on the CPU.
        json_files: JSON objects likewise.
        plan: what was trained.
        info: what is known beside the tensors.

    Raises:
        AdapterError: as for `save_adapter`.
    """
    _check_finite(files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for name, tensors in files.items():
            _write_tensors(temporary / name, tensors)
        for name, value in json_files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        contents = {
            path.relative_to(temporary).as_posix(): FileRecord(sha256(path), path.stat().st_size)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        (temporary / CARD_FILE).write_text(_card(plan, info, contents), encoding="utf-8")
        write_info(temporary, info, asdict(plan), contents)
        _put_in_place(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{folder}: could not be written: {error}; free space on the disk and save again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tensor_files(model: nn.Module, plan: AdapterPlan) -> dict[str, Tensors]:
    """All files with tensors, by name relative to the folder."""
    files: dict[str, Tensors] = {}
    head = parts.diffusion_head(model)
    if plan.lora_target_modules:
        layers = lora_layers(parts.language_model(model))
        files[LORA_FILES[0]] = peft_tensors({name: lora_matrices(layer) for name, layer in layers.items()})
    if plan.head == "lora":
        pairs = {_original_layer(name): lora_matrices(layer) for name, layer in lora_layers(head).items()}
        files[f"{HEAD_LORA_FOLDER}/{LORA_FILES[0]}"] = peft_tensors(pairs)
    if plan.head != "frozen":
        tensors = _head_tensors(model)
        files |= dict.fromkeys(HEAD_FILES[:2], tensors)
    if plan.train_connectors:
        for block, module in (
            (ACOUSTIC_CONNECTOR, parts.acoustic_connector(model)),
            (SEMANTIC_CONNECTOR, parts.semantic_connector(model)),
        ):
            tensors = {_original(block, name): _plain(tensor) for name, tensor in module.named_parameters()}
            files |= {f"{block.folder}/{file}": tensors for file in CONNECTOR_FILES}
    return files


def peft_tensors(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Tensors:
    """LoRA's A and B by the names that PEFT gives them, from pairs by the layer that they belong to."""
    tensors: Tensors = {}
    for layer, (down, up) in pairs.items():
        tensors[f"base_model.model.{layer}.lora_A.weight"] = _plain(down)
        tensors[f"base_model.model.{layer}.lora_B.weight"] = _plain(up)
    return tensors


@torch.no_grad()
def _head_tensors(model: nn.Module) -> Tensors:
    """The head's own tensors by their original names, with LoRA folded in if there is any."""
    tensors = {entry.original_name: _plain(entry.parameter) for entry in head_parameters(model)}
    for layer_name, layer in lora_layers(parts.diffusion_head(model)).items():
        name = f"{_original_layer(layer_name)}.weight"
        down, up = (_plain(matrix) for matrix in lora_matrices(layer))
        tensors[name] = fold(tensors[name], down, up, layer.scaling[ADAPTER])
    return tensors


def _json_files(model: nn.Module, plan: AdapterPlan, info: AdapterInfo) -> dict[str, Any]:
    files: dict[str, Any] = {}
    if plan.lora_target_modules:
        files[CONFIG_FILE] = peft_config(plan, info, plan.lora_target_modules)
    if plan.head == "lora":
        layers = map(_original_layer, lora_layers(parts.diffusion_head(model)))
        files[f"{HEAD_LORA_FOLDER}/{CONFIG_FILE}"] = peft_config(plan, info, layers)
    if plan.head != "frozen":
        files[f"{HEAD.folder}/config.json"] = head_config(parts.config(model))
    return files


def head_config(config: VibeVoiceConfig) -> dict[str, Any]:
    """The `config.json` of a fully written diffusion head, in the original's words."""
    head: dict[str, Any] = config_to_original(config)["diffusion_head_config"]
    return head | {"architectures": ["VibeVoiceDiffusionHead"], "torch_dtype": "float32"}


def peft_config(plan: AdapterPlan, info: AdapterInfo, targets: Iterable[str]) -> dict[str, Any]:
    """An `adapter_config.json` for layers of these names."""
    config = LoraConfig(
        r=plan.lora_r,
        lora_alpha=plan.lora_alpha,
        lora_dropout=plan.lora_dropout,
        base_model_name_or_path=info.base_model,
        inference_mode=True,
        # The language model is a Qwen2Model, which has no prepare_inputs_for_generation; CAUSAL_LM asks for it.
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    values: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
    return values | {"target_modules": sorted(targets)}


def _write_tensors(path: Path, tensors: Tensors) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == SAFETENSORS:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(mode)  # safetensors makes files that nobody but their owner can read
        return
    try:
        torch.save(tensors, path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OSError(f"{path.name}: {error}") from error


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Give a finished folder its name; all its bytes are on the disk before."""
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    previous = folder.with_name(f".{folder.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        folder.rename(previous)
    temporary.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


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


def _original(block: Block, name: str) -> str:
    return tensor_names.to_original(block.native + name).removeprefix(block.original)


def _original_layer(name: str) -> str:
    return _original(HEAD, f"{name}.weight").removesuffix(".weight")


def _card(plan: AdapterPlan, info: AdapterInfo, contents: Mapping[str, FileRecord]) -> str:
    """The folder's README: what it is, what is inside, how to use it."""
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", info.base_model) is not None and not Path(info.base_model).exists()
    voice = " --voice reference.wav" if info.expects_voice_prompt else ""
    lines = [
        "---",
        *([f"base_model: {info.base_model}"] if is_hub_id else []),
        "library_name: peft",
        "pipeline_tag: text-to-speech",
        "tags: [vibevoice, lora, text-to-speech]",
        "---",
        "",
        "# A fine-tuned VibeVoice",
        "",
        f"Base model: `{info.base_model}`. "
        + (
            "It was trained with voice prompts: give a reference recording with `--voice`."
            if info.expects_voice_prompt
            else "It was trained without voice prompts: generate without `--voice`."
        ),
        "",
        f"Trained parts (float32, {sum(record.size_bytes for record in contents.values()) / 1e6:,.0f} MB):",
        "",
        *_card_parts(plan),
        "",
        "## Use",
        "",
        "```",
        f"vibevoice-finetune generate --model_name_or_path {info.base_model} --adapter .{voice} \\",
        '    --text "Hello." --output hello.wav',
        "```",
        "",
        "The community's inference script takes this folder as its checkpoint; for the ComfyUI nodes, copy it into",
        f"`models/vibevoice/loras/`. `{INFO_FILE}` holds the settings of the run and a checksum of each file.",
        "",
    ]
    return "\n".join(lines)


def _card_parts(plan: AdapterPlan) -> list[str]:
    lora = f"LoRA, rank {plan.lora_r}, alpha {plan.lora_alpha}"
    parts = []
    if plan.lora_target_modules:
        parts.append(f"- language model: {lora}, on {', '.join(plan.lora_target_modules)}")
    if plan.head == "lora":
        parts.append(f"- diffusion head: {lora}, in `{HEAD_LORA_FOLDER}/`, and merged in `{HEAD.folder}/`")
    if plan.head == "full":
        parts.append(f"- diffusion head: all weights, in `{HEAD.folder}/`")
    if plan.train_connectors:
        parts.append("- both connectors: all weights")
    return parts
