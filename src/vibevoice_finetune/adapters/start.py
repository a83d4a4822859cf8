"""The model that a run starts with: the base model, perhaps with an adapter, and what is trained attached.

Why: a training may go on from an adapter that is there, of this program or of another one. Its layers and ranks are
then those of the run: they are put into the flags before anything else reads them, so that the estimate, the report and
the run checkpoints know them, and a flag that says otherwise is an error.

In: a parsed command line. Out: the same with the adapter's form; later the model, ready to train.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from vibevoice_finetune.adapters.apply import layer_name, module_of
from vibevoice_finetune.adapters.attach import AdapterPlan, attach
from vibevoice_finetune.adapters.check import base_tensors, compare_language_model, open_for
from vibevoice_finetune.adapters.files import sha256
from vibevoice_finetune.adapters.lora import (
    ADAPTER,
    Starts,
    lora_layers,
    lora_magnitude,
    lora_matrices,
    rely_on_autocast,
)
from vibevoice_finetune.adapters.read import ADAPTER_FILES, CONNECTORS, HEAD, LANGUAGE_MODEL, AdapterContents
from vibevoice_finetune.adapters.rewrite import lora_of, targets_of
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.base_model.hub import locate
from vibevoice_finetune.base_model.load import BaseModel, load_for_training, open_base_model, weight_index
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.quantize import keep_trainable, quantization_config
from vibevoice_finetune.data.prompt import SpecialTokens
from vibevoice_finetune.errors import AdapterError, ArgumentError, shown
from vibevoice_finetune.objective.attention import set_attention
from vibevoice_finetune.objective.compilation import compile_blocks
from vibevoice_finetune.objective.liger import use_liger
from vibevoice_finetune.objective.objective import Objective
from vibevoice_finetune.objective.sharding import split


@dataclass(frozen=True, eq=False)
class StartAdapter:
    """The adapter of `--adapter_name_or_path`.

    Attributes:
        name: as the user typed it.
        contents: what is in it; it fits the base model.
    """

    name: str
    contents: AdapterContents

    def digest(self) -> str:
        """What identifies it, whatever folder it lies in."""
        files = sorted(self.contents.used)
        return " ".join(f"{file}:{sha256(self.contents.folder / file)[:16]}" for file in files)

    def check_base(self, base: BaseModel, fingerprint: str) -> None:
        """Refuse an adapter that was made on another base model, as far as that can be told.

        Raises:
            AdapterError: it was; or it holds a whole language model that is not the base's.
        """
        info = self.contents.info
        if info is not None and info.base_fingerprint != fingerprint:
            raise AdapterError(
                f"{self.contents.folder}: was made on another base model ({info.base_model}, fingerprint "
                f"{info.base_fingerprint}; {base.source} has {fingerprint}); give that one as --model_name_or_path"
            )
        if self.contents.language_model_copy:
            compare_language_model(self.contents, base_tensors(weight_index(base).tensors))


def taking_over(arguments: Arguments) -> tuple[Arguments, StartAdapter | None]:
    """The command line with the form of the adapter that it starts from, and the adapter.

    Raises:
        AdapterError: it cannot be read, does not fit the base model, or has a form that cannot be trained.
        ArgumentError: a flag says otherwise.
    """
    model = arguments.model
    name = model.adapter_name_or_path
    if name is None:
        return arguments, None
    cache_dir = Path(model.cache_dir) if model.cache_dir else None
    folder, _ = locate(name, ADAPTER_FILES, cache_dir)
    contents = open_for(tensor_shapes(open_base_model(model.model_name_or_path, cache_dir).config), folder)
    found = _form(contents, name)
    for flag_name, value in found.items():
        given = arguments.given.get(flag_name, value)
        if given != value and not (flag_name == "lora_target_modules" and _words(given) == _words(value)):
            raise ArgumentError(
                f"--{flag_name} {shown(given)}: the adapter {shown(name)} has {shown(value)}; leave the flag out, or "
                "merge the adapter into its base model first and start from that (vibevoice-finetune merge)."
            )
    if LANGUAGE_MODEL not in {part.block for part in contents.blocks} and "lora_target_modules" not in arguments.given:
        found["lora_target_modules"] = "none"
    return replace(arguments, model=replace(model, **found)), StartAdapter(name, contents)


def build(
    arguments: Arguments,
    base: BaseModel,
    special: SpecialTokens,
    start: StartAdapter | None = None,
    begun: Starts | None = None,
) -> tuple[Objective, AdapterPlan]:
    """Load the model without its tokenizers, in bf16 or float32, and attach what is trained, in float32.

    Args:
        arguments: the command line, after `taking_over`.
        base: the base model.
        special: ids of its control tokens.
        start: the adapter to start from.
        begun: where LoRA began, in the run that goes on, if it began at the weights.
    """
    model_args, loop = arguments.model, arguments.loop
    plan = plan_of(arguments, start)
    dtype = torch.bfloat16 if loop.bf16 else torch.float32
    bits = model_args.quantised_bits
    if bits and loop.splits_weights:
        raise ArgumentError(
            f"--fsdp and --load_in_{bits}bit: packed weights cannot be split; leave one of the two out."
        )
    if loop.torch_compile_backend is not None and loop.splits_weights:
        raise ArgumentError("--torch_compile and --fsdp were never tried together; leave one of the two out.")
    # A model that is to be split is loaded beside the GPU, which never holds more of it than its share and a layer.
    device = torch.device("cpu") if loop.splits_weights else loop.device
    model = load_for_training(base, dtype, device, quantization_config(bits) if bits else None)
    if bits == 4:
        keep_trainable(model)
    language_model = parts.language_model(model)
    set_attention(language_model, model_args.attention(loop.device.type, bf16=loop.bf16))
    set_seed(loop.seed)
    attach(model, plan, begun)
    if start is not None:
        fill(model, start.contents)
    if loop.bf16:
        rely_on_autocast(model)
    if loop.use_liger_kernel:
        use_liger(language_model)
        loop.use_liger_kernel = False  # or transformers would look for a model of its own
    if loop.torch_compile_backend is not None:
        compile_blocks(model, loop.torch_compile_backend, loop.torch_compile_mode)
        loop.torch_compile_backend = None  # or transformers would have the whole objective compiled
    objective = Objective(model, special)
    if loop.splits_weights:
        split(objective, model, loop.device, loop.world_size)
    return objective, plan


def plan_of(arguments: Arguments, start: StartAdapter | None = None) -> AdapterPlan:
    """What is trained, in the words of `attach`."""
    model = arguments.model
    return AdapterPlan(
        lora_r=model.lora_r,
        lora_alpha=model.lora_alpha,
        lora_dropout=model.lora_dropout,
        lora_target_modules=model.target_modules,
        head=model.head_training,
        train_connectors=model.train_connectors,
        layers_to_freeze=model.frozen_head_layers,
        train_language_model=model.train_language_model,
        lora_rank_pattern=model.lora_rank_pattern or {},
        head_rank_pattern=_ranks_of_head(start.contents) if start else {},
        use_rslora=model.use_rslora,
        use_dora=model.use_dora,
        init_lora_weights=model.init_lora_weights,
    )


@torch.no_grad()
def fill(model: nn.Module, contents: AdapterContents) -> None:
    """Put an adapter's tensors into the trained ones, in float32.

    Args:
        model: with the adapter's form attached.
        contents: of the adapter.
    """
    for part in contents.blocks:
        block = module_of(model, part.block)
        for name, stored in part.full.items():
            block.get_parameter(name.removeprefix(part.block.native)).copy_(stored.tensor)
        layers = lora_layers(block)
        for name, pair in part.low_rank.items():
            layer = layers[layer_name(part, name)]
            down, up = lora_matrices(layer)
            down.copy_(pair.down.tensor)
            up.copy_(pair.up.tensor)
            magnitude = lora_magnitude(layer)
            if magnitude is not None and pair.magnitude is not None:
                magnitude.copy_(pair.magnitude.tensor)
            layer.scaling[ADAPTER] = pair.scaling


def _form(contents: AdapterContents, name: str) -> dict[str, Any]:
    """The flags that an adapter's form comes to."""
    found: dict[str, Any] = {}
    blocks = {part.block: part for part in contents.blocks}
    low_rank = [part for part in contents.blocks if part.low_rank]
    if low_rank:
        first = lora_of(low_rank[0])
        found |= {"lora_r": first.rank, "lora_alpha": first.alpha, "use_dora": bool(first.magnitudes)}
        found["use_rslora"] = False  # its factor is in the alpha
        if any(bool(lora_of(part).magnitudes) != found["use_dora"] for part in low_rank):
            raise AdapterError(f"{contents.folder}: has DoRA in one part and LoRA in another; merge it, and start anew")
    if LANGUAGE_MODEL in blocks:
        found |= {
            "lora_target_modules": ",".join(targets_of(blocks[LANGUAGE_MODEL])),
            "lora_rank_pattern": dict(lora_of(blocks[LANGUAGE_MODEL]).ranks) or None,
            "train_language_model": False,
        }
    head = blocks.get(HEAD)
    if head is not None:
        if head.low_rank and head.full:
            raise AdapterError(
                f"{contents.folder}: the diffusion head's own weights and LoRA on it are both trained; merge the "
                "adapter into its base model and start from that (vibevoice-finetune merge)"
            )
        found |= {"train_diffusion_head": bool(head.full), "lora_wrap_diffusion_head": bool(head.low_rank)}
    connectors = [block for block in CONNECTORS if block in blocks]
    if connectors:
        if len(connectors) == 1:
            raise AdapterError(f"{shown(name)}: holds one of the two connectors; copy it again, or merge it")
        found["train_connectors"] = True
    return found


def _ranks_of_head(contents: AdapterContents) -> Mapping[str, int]:
    """The rank of every layer of the diffusion head that has LoRA, by the model's names."""
    head = next((part for part in contents.blocks if part.block is HEAD), None)
    return {} if head is None else {layer_name(head, name): pair.rank for name, pair in head.low_rank.items()}


def _words(names: str) -> set[str]:
    return set(names.replace(",", " ").split())
