"""The result of a run that trained the whole language model: a base model of its own, in the original layout.

Why: every program that plays VibeVoice takes such a folder in place of the published model. It is written tensor by
tensor: what was trained comes from the model, one tensor at a time, everything else from the base model's files. So at
no moment is there a second copy in memory, and what was not trained is the base's, bit for bit.

In: a model and the base that it was loaded from. Out: the folder `OUT/model/`, complete or not there at all.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import ModelCardData
from torch import Tensor, nn

from vibevoice_finetune.adapters.attach import AdapterPlan, trainable_parameters
from vibevoice_finetune.adapters.info import AdapterInfo, is_hub_id, public_info
from vibevoice_finetune.adapters.lora import ADAPTER, fold, lora_layers, lora_magnitude, lora_matrices
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import BaseModel, weight_index
from vibevoice_finetune.base_model.tensor_names import DIFFUSION_HEAD, to_original
from vibevoice_finetune.base_model.weights import read_tensors, write_weights
from vibevoice_finetune.errors import AdapterError, shown
from vibevoice_finetune.export.merge import CONFIG_FILE, config_json, text_tokenizer, write_small_files
from vibevoice_finetune.files.atomic import write_file, write_json, writing_folder
from vibevoice_finetune.files.headers import StoredTensor
from vibevoice_finetune.objective.sharding import whole

RECORD_FILE = "training.json"
CARD_FILE = "README.md"


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a whole model comes from.

    Attributes:
        base: the base model; what was not trained is copied from its files.
        dtype: of the trained tensors: that of the run's forward pass, which used no more of them.
        processor: the text tokenizer, if it is not the base's own.
        cache_dir: where downloads are kept.
    """

    base: BaseModel
    dtype: torch.dtype
    processor: str | None = None
    cache_dir: Path | None = None


def save_model(
    model: nn.Module, plan: AdapterPlan, folder: Path, origin: Origin, info: AdapterInfo, *, writes: bool = True
) -> None:
    """Write a trained model as a whole checkpoint in the original layout.

    A folder that is there is replaced; at every moment it holds either all of the old or all of the new model.

    Args:
        model: with `plan` attached.
        plan: what was trained.
        folder: usually `OUT/model`.
        origin: the base model, and how to write.
        info: what is known beside the tensors.
        writes: False in a process that only hands out its parts of split tensors.

    Raises:
        AdapterError: a trained tensor is not finite; `folder` is as it was.
        BaseModelError: the base's files are not what they were when the run began.
        WriteError: the folder cannot be written; it is as it was.
    """
    base, info = origin.base, public_info(info)
    trained = _trained(model)
    tensors = weight_index(base).tensors
    if not writes:
        for name in tensors:
            if name in trained:
                trained[name]()
        return
    tokenizer = text_tokenizer(base, Layout.ORIGINAL, origin.processor, origin.cache_dir)
    with writing_folder(folder) as staging:
        write_small_files(staging, base, Layout.ORIGINAL, tokenizer)
        as_float32 = origin.dtype if origin.dtype is torch.float32 else None
        write_json(staging / CONFIG_FILE, config_json(base, Layout.ORIGINAL, as_float32))
        write_weights(staging, _in_turn(tensors, trained, origin.dtype))
        _write_card(staging, plan, info)
        write_json(
            staging / RECORD_FILE,
            {
                "base_model": info.base_model,
                "base_fingerprint": info.base_fingerprint,
                "expects_voice_prompt": info.expects_voice_prompt,
                "trained": asdict(plan),
                "versions": dict(info.versions),
                "settings": dict(info.settings),
            },
        )


def _trained(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """By native name, what gives the whole of each tensor that is no longer the base's."""
    found: dict[str, Callable[[], Tensor]] = {
        name: partial(_whole, parameter)
        for name, parameter in trainable_parameters(model).items()
        if ".lora_" not in name
    }
    for name, layer in lora_layers(parts.diffusion_head(model)).items():
        base = layer.get_base_layer().get_parameter("weight")
        magnitude = lora_magnitude(layer)
        found[f"{DIFFUSION_HEAD}{name}.weight"] = partial(
            _folded, (base, *lora_matrices(layer)), layer.scaling[ADAPTER], magnitude
        )
    return found


def _whole(parameter: Tensor) -> Tensor:
    return whole(parameter.detach())


def _folded(tensors: tuple[Tensor, Tensor, Tensor], scaling: float, magnitude: Tensor | None) -> Tensor:
    base, down, up = map(_whole, tensors)
    return fold(base.float(), down, up, scaling, None if magnitude is None else _whole(magnitude))


def _in_turn(
    tensors: Mapping[str, StoredTensor], trained: Mapping[str, Callable[[], Tensor]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the result by their original names, each when it is asked for."""
    for name, stored in tensors.items():
        if name not in trained:
            yield to_original(name), next(read_tensors({name: stored}))[1]
            continue
        value = trained[name]().to("cpu", dtype)
        if not bool(torch.isfinite(value).all()):
            raise AdapterError(
                f"tensor {to_original(name)} has values that are not finite numbers, so nothing is saved; go on from "
                "an earlier checkpoint with a lower --learning_rate"
            )
        yield to_original(name), value


def _write_card(folder: Path, plan: AdapterPlan, info: AdapterInfo) -> None:
    base = info.base_model
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        pipeline_tag="text-to-speech",
        tags=["vibevoice", "text-to-speech"],
    )
    also = {"full": " and the diffusion head", "lora": " and, by LoRA, the diffusion head", "frozen": ""}[plan.head]
    also += " and both connectors" if plan.train_connectors else ""
    voice = " --voice reference.wav" if info.expects_voice_prompt else ""
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# A fine-tuned VibeVoice",
        "",
        f"All weights of the language model{also} were trained, from the base model",
        f"`{shown(base)}`. This folder is a whole model in the original layout: the community's scripts and the",
        "ComfyUI nodes take it in place of the published one.",
        "",
        "## Use",
        "",
        "```",
        f"vibevoice-finetune generate --model_name_or_path .{voice} \\",
        '    --text "Hello." --output hello.wav',
        "```",
        "",
        f"`{RECORD_FILE}` holds the settings of the run.",
        "",
    ]
    write_file(folder / CARD_FILE, "\n".join(lines))
