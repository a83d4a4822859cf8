"""An adapter of any known shape, written anew in the portable one.

Why: old adapters come with task types that newer transformers refuse, with names that begin with a wrapper's, with the
head in a file that one tool reads and the next does not. Rewritten, every tool finds every part that it can use.

In: an adapter and the base model that it was trained on (for the shapes, the fingerprint, and the head that a LoRA of
the head is merged into). Out: a folder as `train` writes it, all tensors float32.
"""

import os
from pathlib import Path

import torch
from torch import Tensor

from vibevoice_finetune import __version__
from vibevoice_finetune.adapters.attach import AdapterPlan
from vibevoice_finetune.adapters.check import base_tensors, compare_language_model, open_for
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.read import (
    CONNECTORS,
    HEAD,
    LANGUAGE_MODEL,
    AdapterContents,
    BlockContents,
)
from vibevoice_finetune.adapters.save import AdapterParts, Lora, Tensors, original_name, write_adapter
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.load import BaseModel, model_fingerprint, weight_index
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.errors import AdapterError, ArgumentError
from vibevoice_finetune.files.locks import locked


def fix_adapter(folder: Path, checkpoint: BaseModel, output: Path, *, expects_voice_prompt: bool = True) -> None:
    """Rewrite an adapter into the portable layout.

    Args:
        folder: the adapter.
        checkpoint: the base model that it was trained on.
        output: the folder to make.
        expects_voice_prompt: whether it was trained with voice prompts, if the folder does not say.

    Raises:
        ArgumentError: the output is there already.
        AdapterError: the folder is not whole or does not fit.
        BaseModelError: the base model's weights cannot be used.
        WriteError: the output cannot be written; nothing is left of it.
        InUseError: another process is writing there.
    """
    _check_output(output)
    with locked(output, "inspect --fix"):
        _check_output(output)
        contents = open_for(tensor_shapes(checkpoint.config), folder)
        compare_language_model(contents, base_tensors(weight_index(checkpoint).tensors))
        info, plan = _info(contents, checkpoint, expects_voice_prompt), _plan(contents)
        write_adapter(output, _parts(contents, checkpoint), checkpoint.config, plan, info)


def _check_output(output: Path) -> None:
    parent = output.absolute().parent
    if output.exists() or output.is_symlink():
        raise ArgumentError(f"--fix {output}: already exists; name a new folder")
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArgumentError(f"--fix {output}: {parent} is not a writable folder; name another place")


def _parts(contents: AdapterContents, checkpoint: BaseModel) -> AdapterParts:
    found = {part.block: part for part in contents.blocks}
    head = found.get(HEAD, BlockContents(HEAD))
    return AdapterParts(
        language_model=lora_of(found[LANGUAGE_MODEL]) if LANGUAGE_MODEL in found else None,
        head_lora=lora_of(head) if head.low_rank and not head.full else None,
        head=_head_tensors(head, checkpoint) if HEAD in found else {},
        connectors={
            block: {original_name(block, name): _plain(stored.tensor) for name, stored in found[block].full.items()}
            for block in CONNECTORS
            if block in found
        },
    )


def _info(contents: AdapterContents, checkpoint: BaseModel, expects_voice_prompt: bool) -> AdapterInfo:
    if contents.info is not None:
        return contents.info
    return AdapterInfo(
        base_model=checkpoint.source,
        base_fingerprint=model_fingerprint(checkpoint),
        expects_voice_prompt=expects_voice_prompt,
        versions={"vibevoice-finetune": __version__},
        settings={},
    )


def _plan(contents: AdapterContents) -> AdapterPlan:
    """What was trained, as far as the tensors tell; ranks and scales that differ by layer stand in the rules."""
    parts = {part.block: part for part in contents.blocks}
    with_lora = [part for part in contents.blocks if part.low_rank]
    lora = lora_of(with_lora[0]) if with_lora else None
    head = parts.get(HEAD, BlockContents(HEAD))
    form = "full" if head.full else "lora" if head.low_rank else "frozen"
    connectors = [block in parts for block in CONNECTORS]
    if any(connectors) and not all(connectors):
        missing = CONNECTORS[connectors.index(False)]
        raise AdapterError(
            f"{contents.folder}: holds one connector and not the {missing.title}; the portable layout has both or none"
        )
    return AdapterPlan(
        lora_r=lora.rank if lora else 1,
        lora_alpha=lora.alpha if lora else 1,
        lora_dropout=0.0,
        lora_target_modules=targets_of(parts[LANGUAGE_MODEL]) if LANGUAGE_MODEL in parts else (),
        head=form,  # type: ignore[arg-type]  # one of the three literals
        train_connectors=all(connectors),
        use_dora=bool(lora and lora.magnitudes),
    )


def targets_of(part: BlockContents) -> tuple[str, ...]:
    """The short names that the adapter's rules give, if nothing but names is in them; else each layer's full name."""
    assert part.rules is not None
    rules = part.rules
    if isinstance(rules.targets, tuple) and rules.plain and not any("." in name for name in rules.targets):
        return tuple(sorted(rules.targets))
    return tuple(sorted(_layer(part, name) for name in part.low_rank))


def lora_of(part: BlockContents) -> Lora:
    """LoRA of a block by the original's names, as it is written; the block has some."""
    pairs, scalings, magnitudes = {}, {}, {}
    for native_name, pair in part.low_rank.items():
        name = _layer(part, native_name)
        pairs[name] = (_plain(pair.down.tensor), _plain(pair.up.tensor))
        scalings[name] = pair.scaling
        if pair.magnitude is not None:
            magnitudes[name] = _plain(pair.magnitude.tensor)
    targets = targets_of(part) if part.block is LANGUAGE_MODEL else tuple(pairs)
    return Lora.of(pairs, scalings, targets, magnitudes=magnitudes)


@torch.no_grad()
def _head_tensors(part: BlockContents, checkpoint: BaseModel) -> Tensors:
    """The whole head by its original names: the trained tensors, and LoRA folded into those or into the base's."""
    tensors: Tensors = {}
    for name, base in read_tensors(weight_index(checkpoint).block(tensor_names.DIFFUSION_HEAD)):
        value = _plain(part.full[name].tensor if name in part.full else base)
        if name in part.low_rank:
            pair = part.low_rank[name]
            value = pair.folded_into(value)
        tensors[original_name(HEAD, name)] = value
    return tensors


def _layer(part: BlockContents, native_name: str) -> str:
    return original_name(part.block, native_name).removesuffix(".weight")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()
