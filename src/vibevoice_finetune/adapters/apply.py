"""Putting a trained adapter into a base model, or into its tensors one by one.

Why: most complaints about adapters of VibeVoice are that something was silently not loaded. Here each tensor of a
folder is applied, or the folder is refused and the model stays as it was; what was applied is reported.

In: a folder of any shape that `read` knows. Out: the model changed in place and a summary; or, for merging
without a model in memory, a function per tensor.

LoRA's matrices stay float32 in a model of any dtype: the layer then adds `scaling * B A x` to its float32 value and
rounds once, so that it differs from the merged weight by no more than the rounding of that weight. Fully trained
tensors take the dtype of the weight that they replace, and so does a weight with DoRA, which is merged.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vibevoice_finetune.adapters.check import compare_language_model, open_for
from vibevoice_finetune.adapters.files import Stored
from vibevoice_finetune.adapters.info import AdapterInfo
from vibevoice_finetune.adapters.lora import ADAPTER, LowRank, has_lora, inject_for_generation, lora_matrices
from vibevoice_finetune.adapters.read import (
    ACOUSTIC_CONNECTOR,
    HEAD,
    LANGUAGE_MODEL,
    SEMANTIC_CONNECTOR,
    AdapterContents,
    Block,
    BlockContents,
)
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.errors import AdapterError, ArgumentError


@dataclass(frozen=True)
class AppliedBlock:
    """What was applied to one block.

    Attributes:
        title: the block's name for people.
        form: `LoRA of rank 8`, `all weights`, or both.
        num_tensors: tensors of the folder that were applied.
        num_parameters: numbers in them.
        files: where they were read.
        changes_base: whether any of it differs from the base model; False for a copy of an untrained part.
    """

    title: str
    form: str
    num_tensors: int
    num_parameters: int
    files: tuple[Path, ...]
    changes_base: bool


@dataclass(frozen=True)
class AppliedSummary:
    """What `load_adapter` did.

    Attributes:
        folder: where the parts lay.
        scale: how much of the adapter was applied.
        blocks: what was applied, block by block.
        base_matches: whether the adapter was made on this base model; None if it cannot be told.
        expects_voice_prompt: whether it was trained with voice prompts; None if the folder does not say.
        info: what the folder says of itself, if this package wrote it.
        unread: files that hold a part which was read from another file.
        warnings: what a user should be told, a line each.
    """

    folder: Path
    scale: float
    blocks: tuple[AppliedBlock, ...]
    base_matches: bool | None
    expects_voice_prompt: bool | None
    info: AdapterInfo | None
    unread: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The summary for people, without the warnings."""
        said = {True: "matches", False: "DIFFERS", None: "not known"}[self.base_matches]
        lines = [f"adapter {self.folder} at scale {self.scale:g}; base model: {said}"]
        for block in self.blocks:
            untrained = "" if block.changes_base else "; equal to the base model: untrained"
            lines.append(
                f"  {block.title}: {block.form}, {block.num_tensors} tensors, {block.num_parameters:,} parameters "
                f"from {', '.join(path.relative_to(self.folder).as_posix() for path in block.files)}{untrained}"
            )
        return lines


def load_adapter(
    model: nn.Module,
    folder: Path,
    *,
    scale: float = 1.0,
    base_fingerprint: str | None = None,
    strict: bool = False,
) -> AppliedSummary:
    """Apply an adapter to a model that has none.

    Args:
        model: a `VibeVoiceForConditionalGeneration`, with or without its speech tokenizers.
        folder: the adapter, or a folder that holds it as `lora/`.
        scale: how much of it: LoRA times `scale`, DoRA and fully trained weights
            `base + scale * (trained - base)`. At 0 the model stays the base bit for bit, at 1 the weights are exactly
            the trained ones.
        base_fingerprint: `model_fingerprint` of the model's checkpoint, if known.
        strict: refuse an adapter that was made on another base model instead of warning.

    Raises:
        AdapterError: the folder is not whole, or does not fit the model, which then is as it was.
        ArgumentError: the scale is not a finite number.
    """
    _check_scale(scale)
    if has_lora(model):
        raise AdapterError(f"{folder}: the model has an adapter already; merge it first, or load the model anew")
    contents = open_for(parts.tensor_shapes(parts.config(model)), folder)
    matches = _base_matches(contents, base_fingerprint)
    warnings = list(contents.warnings)
    copied = compare_language_model(contents, partial(_language_model_tensor, model))
    warnings += [copied] if copied else []
    if matches is False:
        assert contents.info is not None
        message = (
            f"{contents.folder}: was made on another base model ({contents.info.base_model}, fingerprint "
            f"{contents.info.base_fingerprint}; the model loaded has {base_fingerprint}); give that one as "
            "--model_name_or_path"
        )
        if strict:
            raise AdapterError(message)
        warnings.append(message)
    blocks = tuple(_describe(part, module_of(model, part.block)) for part in contents.blocks)
    if not any(block.changes_base for block in blocks):
        warnings.append(f"{contents.folder}: changes nothing: every part of it equals the base model")
    if scale != 0.0:
        for part in contents.blocks:
            _apply(model, part, scale)
    return AppliedSummary(
        folder=contents.folder,
        scale=scale,
        blocks=blocks,
        base_matches=matches,
        expects_voice_prompt=contents.info.expects_voice_prompt if contents.info else None,
        info=contents.info,
        unread=contents.unread,
        warnings=tuple(warnings),
    )


def adapter_deltas(
    folder: Path, base_shapes: Mapping[str, tuple[int, ...]], *, scale: float = 1.0
) -> dict[str, Callable[[Tensor], Tensor]]:
    """For each tensor that an adapter changes, the function from the base's to the merged tensor.

    Merging this way needs memory for one tensor, in float32; the result has the base tensor's dtype and device and is
    bit for bit what `load_adapter` followed by `merge` leaves in a model.

    Args:
        folder: as for `load_adapter`.
        base_shapes: native names to shapes of the base checkpoint's tensors, as `parts.tensor_shapes` gives them.
        scale: as for `load_adapter`; at 0 the mapping is empty.

    Returns:
        Native names of the base's tensors to functions.

    Raises:
        AdapterError: the folder is not whole, or does not fit.
        ArgumentError: the scale is not a finite number.
    """
    _check_scale(scale)
    contents = open_for(base_shapes, folder)
    if scale == 0.0:
        return {}
    return {
        name: partial(_merged, full=part.full.get(name), pair=part.low_rank.get(name), scale=scale)
        for part in contents.blocks
        for name in (*part.full, *(name for name in part.low_rank if name not in part.full))
    }


@torch.no_grad()
def _merged(base: Tensor, *, full: Stored | None, pair: LowRank | None, scale: float) -> Tensor:
    value = base if full is None else _blend(base, full.tensor, scale)
    return value if pair is None else pair.folded_into(value, scale)


def _blend(base: Tensor, trained: Tensor, scale: float) -> Tensor:
    """`base + scale * (trained - base)` in float32, rounded to the base's dtype; exactly `trained` at 1."""
    trained = trained.to(base.device)
    if scale == 1.0:
        return trained.to(base.dtype)
    return (base.float() + (trained.float() - base.float()) * scale).to(base.dtype)


@torch.no_grad()
def _apply(model: nn.Module, part: BlockContents, scale: float) -> None:
    block = module_of(model, part.block)
    for name, stored in part.full.items():
        parameter = block.get_parameter(name.removeprefix(part.block.native))
        parameter.copy_(_blend(parameter, stored.tensor, scale))
    pairs = {layer_name(part, name): pair for name, pair in part.low_rank.items()}
    for name, pair in pairs.items():
        if pair.magnitude is not None:
            weight = block.get_parameter(f"{name}.weight")
            weight.copy_(pair.folded_into(weight, scale))
    pairs = {name: pair for name, pair in pairs.items() if pair.magnitude is None}
    if not pairs:
        return
    layers = inject_for_generation(block, {name: pair.rank for name, pair in pairs.items()})
    assert layers.keys() == pairs.keys()
    for name, layer in layers.items():
        down, up = lora_matrices(layer)
        down.copy_(pairs[name].down.tensor)
        up.copy_(pairs[name].up.tensor)
        layer.scaling[ADAPTER] = pairs[name].scaling * scale


@torch.no_grad()
def _describe(part: BlockContents, block: nn.Module) -> AppliedBlock:
    changes = any(
        pair.magnitude is not None or (bool(pair.down.tensor.any()) and bool(pair.up.tensor.any()))
        for pair in part.low_rank.values()
    )
    for name, stored in part.full.items():
        base = block.get_parameter(name.removeprefix(part.block.native))
        changes = changes or not torch.equal(base, _blend(base, stored.tensor, scale=1.0))
    ranks = sorted({pair.rank for pair in part.low_rank.values()})
    forms = ["all weights"] if part.full else []
    kind = "DoRA" if any(pair.magnitude for pair in part.low_rank.values()) else "LoRA"
    forms += [f"{kind} of rank {', '.join(map(str, ranks))}"] if ranks else []
    tensors = list(part.tensors())
    return AppliedBlock(
        title=part.block.title,
        form=" and ".join(forms),
        num_tensors=len(tensors),
        num_parameters=sum(stored.tensor.numel() for stored in tensors),
        files=tuple(sorted({stored.file for stored in tensors})),
        changes_base=changes,
    )


def _language_model_tensor(model: nn.Module, name: str) -> Tensor | None:
    """A tensor of the model's language model by its native name; the output matrix may be the embedding."""
    if name.startswith("lm_head."):
        return parts.lm_head(model).weight
    try:
        return parts.language_model(model).get_parameter(name.removeprefix(LANGUAGE_MODEL.native))
    except AttributeError:
        return None


def layer_name(part: BlockContents, native_name: str) -> str:
    """The name within its block of the layer whose weight has this name."""
    return native_name.removeprefix(part.block.native).removesuffix(".weight")


def module_of(model: nn.Module, block: Block) -> nn.Module:
    """The part of a model that a block of an adapter belongs to."""
    modules: dict[Block, Callable[[nn.Module], nn.Module]] = {
        LANGUAGE_MODEL: parts.language_model,
        HEAD: parts.diffusion_head,
        ACOUSTIC_CONNECTOR: parts.acoustic_connector,
        SEMANTIC_CONNECTOR: parts.semantic_connector,
    }
    return modules[block](model)


def _base_matches(contents: AdapterContents, fingerprint: str | None) -> bool | None:
    if contents.info is None or fingerprint is None:
        return None
    return contents.info.base_fingerprint == fingerprint


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ArgumentError(f"--adapter_scale {scale}: expected a number such as 1.0, or 0 for the base model")
