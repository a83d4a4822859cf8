"""Whether an adapter fits a base model: before anything is changed.

Why: tensors of the wrong model, half a download or a training that broke down must be found while the model is still
whole, and be named.

In: a folder and the shapes of the base model's tensors. Out: `AdapterContents` that can be applied as they are.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vibevoice_finetune.adapters.files import Stored, check_finite, read_header_of, sha256
from vibevoice_finetune.adapters.info import INFO_FILE
from vibevoice_finetune.adapters.read import (
    CONFIG_FILE,
    HEAD,
    HEAD_LORA_FOLDER,
    LANGUAGE_MODEL,
    TENSOR_FILES,
    AdapterContents,
    Block,
    BlockContents,
    open_adapter,
)
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.errors import AdapterError, shown
from vibevoice_finetune.files.headers import StoredTensor

Shapes = Mapping[str, tuple[int, ...]]


def open_for(base_shapes: Shapes, folder: Path) -> AdapterContents:
    """Read an adapter that is to be applied to a base model, and check all of it.

    Args:
        base_shapes: native names to shapes of the base model's tensors, as `parts.tensor_shapes` gives them.
        folder: the adapter, or a folder that holds it as `lora/`.

    Raises:
        AdapterError: the folder is not whole; or a tensor has no place in the base model, another shape, or values
            that are not finite; or one is missing that the folder's own rules ask for.
    """
    contents = open_adapter(folder)
    _check_fits(contents, base_shapes)
    check_records(contents)
    return contents


def check_records(contents: AdapterContents) -> None:
    """Compare the files that were read with what was written: each is recorded, unchanged, and no block is gone.

    A folder that another program wrote has no records; then nothing is checked.

    Raises:
        AdapterError: a file or a block is not as it was written.
    """
    if contents.info is None:
        return
    root, records = contents.folder, contents.records
    for name in contents.used:
        if name not in records:
            raise AdapterError(f"{root / name}: is not recorded in {INFO_FILE}; it was added after the run; remove it")
        if sha256(root / name) != records[name].sha256:
            raise AdapterError(
                f"{root / name}: is not what was written (its SHA-256 differs from {INFO_FILE}); copy it again"
            )
    there = {_folder_of_block(part.block.folder) for part in contents.blocks}
    there |= {LANGUAGE_MODEL.folder} if contents.placeholder else set()
    for name in records:
        if name in (*TENSOR_FILES, CONFIG_FILE) and _folder_of_block(Path(name).parent.name) not in there:
            raise AdapterError(
                f"{root / name}: is missing, {INFO_FILE} says that it was written; copy the folder again"
            )


def base_tensors(tensors: Mapping[str, StoredTensor]) -> Callable[[str], Tensor | None]:
    """A base model's tensors for `compare_language_model`, each read from its file when it is asked for."""
    return lambda name: next(read_tensors({name: tensors[name]}))[1] if name in tensors else None


def compare_language_model(contents: AdapterContents, base: Callable[[str], Tensor | None]) -> str | None:
    """Compare the whole language model that older trainers leave in a folder with the base's.

    Args:
        contents: of the folder.
        base: gives the base model's tensor of a native name; None if it has none, or none that can be compared.

    Returns:
        What a user should be told; None if the folder holds no such model.

    Raises:
        AdapterError: it differs from the base: a language model that was trained whole cannot be applied here.
    """
    if not contents.language_model_copy:
        return None
    differing: list[str] = []
    count = 0
    for path in contents.language_model_copy:
        names = [stored.name for stored in read_header_of(path).tensors]
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                count += 1
                if not _equal(file.get_tensor(name), base(_native_name(name))):
                    differing.append(name)
    file_names = ", ".join(path.name for path in contents.language_model_copy[:3])
    if not differing:
        return f"{contents.folder}: {file_names} is a copy of the base's language model, all {count} tensors; not used"
    raise AdapterError(
        f"{contents.folder}: {file_names} holds a whole language model, of which {len(differing)} of {count} tensors "
        f"are not the base model's, {shown(differing[0])} for one. If it belongs to another base model, give that as "
        "--model_name_or_path. If it was trained whole, it cannot be applied as an adapter; move it elsewhere to "
        "use the other parts"
    )


def _native_name(name: str) -> str:
    for prefix in ("model.", "language_model."):
        name = name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else tensor_names.LANGUAGE_MODEL + name


def _equal(found: Tensor, base: Tensor | None) -> bool:
    """Equal up to the rounding to the coarser of the two dtypes."""
    if base is None or base.shape != found.shape:
        return False
    base = base.to("cpu")
    return torch.equal(found.to(base.dtype), base) or torch.equal(base.to(found.dtype), found)


def _check_fits(contents: AdapterContents, base_shapes: Shapes) -> None:
    for part in contents.blocks:
        for name, pair in part.low_rank.items():
            out_features, in_features = _matrix(pair.down, name, base_shapes)
            _check_shape(pair.down, (pair.rank, in_features), contents)
            _check_shape(pair.up, (out_features, pair.rank), contents)
            if pair.magnitude is not None:
                _check_shape(pair.magnitude, (out_features,), contents)
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


def _folder_of_block(folder: str) -> str:
    return HEAD.folder if folder == HEAD_LORA_FOLDER else folder
