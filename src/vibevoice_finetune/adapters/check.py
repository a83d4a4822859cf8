"""Whether an adapter fits a base model: before anything is changed.

Why: tensors of the wrong model, half a download or a training that broke down must be found while the model is still
whole, and be named.

In: a folder and the shapes of the base model's tensors. Out: `AdapterContents` that can be applied as they are.
"""

from collections.abc import Mapping
from pathlib import Path

from vibevoice_finetune.adapters.files import Stored, check_finite
from vibevoice_finetune.adapters.read import (
    AdapterContents,
    Block,
    BlockContents,
    check_records,
    open_adapter,
)
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.errors import AdapterError

Shapes = Mapping[str, tuple[int, ...]]


def open_for(base_shapes: Shapes, folder: Path) -> AdapterContents:
    """Read an adapter that is to be applied to a base model, and check all of it.

    Args:
        base_shapes: native names to shapes of the base model's tensors, as `vibevoice.tensor_shapes` gives them.
        folder: the adapter, or a folder that holds it as `lora/`.

    Raises:
        AdapterError: the folder is not whole; or a tensor has no place in the base model, another shape, or values
            that are not finite; or one is missing that the folder's own rules ask for.
    """
    contents = open_adapter(folder)
    _check_fits(contents, base_shapes)
    check_records(contents)
    return contents


def _check_fits(contents: AdapterContents, base_shapes: Shapes) -> None:
    for part in contents.blocks:
        for name, pair in part.low_rank.items():
            out_features, in_features = _matrix(pair.down, name, base_shapes)
            _check_shape(pair.down, (pair.rank, in_features), contents)
            _check_shape(pair.up, (out_features, pair.rank), contents)
        for form in (part.full, part.spare):
            for name, stored in form.items():
                _check_shape(stored, _shape(stored, name, base_shapes), contents)
            _check_full_is_whole(part.block, form, base_shapes)
        _check_lora_is_whole(part, base_shapes)
    for part in contents.blocks:
        for stored in (*part.tensors(), *part.spare.values()):
            check_finite(stored)


def _shape(stored: Stored, name: str, base_shapes: Shapes) -> tuple[int, ...]:
    if name not in base_shapes:
        raise AdapterError(f"{stored.where}: the base model has no {name}; the adapter was made for another model")
    return tuple(base_shapes[name])


def _matrix(stored: Stored, name: str, base_shapes: Shapes) -> tuple[int, int]:
    shape = _shape(stored, name, base_shapes)
    if len(shape) != 2:
        raise AdapterError(f"{stored.where}: {name} of the base model has shape {shape}; LoRA needs a matrix")
    return shape[0], shape[1]


def _check_shape(stored: Stored, expected: tuple[int, ...], contents: AdapterContents) -> None:
    shape = tuple(stored.tensor.shape)
    if shape != expected:
        made_for = _base_named_in(contents)
        raise AdapterError(
            f"{stored.where} has shape {shape}; the base model needs {expected}; the adapter was made for another "
            f"model{f' ({made_for})' if made_for else ''}: give that one as --model_name_or_path"
        )


def _base_named_in(contents: AdapterContents) -> str | None:
    if contents.info is not None:
        return contents.info.base_model
    return next((part.rules.base_model for part in contents.blocks if part.rules is not None), None)


def _check_full_is_whole(block: Block, form: Mapping[str, Stored], base_shapes: Shapes) -> None:
    missing = [name for name in base_shapes if form and name.startswith(block.native) and name not in form]
    if missing:
        file = next(iter(form.values())).file
        original = tensor_names.to_original(missing[0]).removeprefix(block.original)
        raise AdapterError(
            f"{file}: tensor {original} is missing ({len(missing)} of the {block.title}); copy the file again"
        )


def _check_lora_is_whole(part: BlockContents, base_shapes: Shapes) -> None:
    """Every module of the base model that the rules name must have its pair."""
    if part.rules is None:
        return
    for name, shape in base_shapes.items():
        if not name.startswith(part.block.native) or len(shape) != 2 or name == tensor_names.EMBED_TOKENS:
            continue
        module = part.wrapper + tensor_names.to_original(name).removeprefix(part.block.original).removesuffix(".weight")
        if name not in part.low_rank and part.rules.wants(module):
            file = next(iter(part.low_rank.values())).down.file
            raise AdapterError(
                f"{file}: tensor base_model.model.{module}.lora_A.weight is missing; {part.rules.where} names its "
                "module; copy the folder again, or give the base model that it was made for"
            )
