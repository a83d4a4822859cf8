"""A checkpoint written anew: in the other layout, with an adapter merged into it, in another dtype.

Why: other tools know one layout and no adapters. A model of 18 GB is rewritten tensor by tensor, so that a machine with
24 GB of memory suffices for the largest; what comes out is a whole model folder or no folder.

In: a checkpoint, perhaps an adapter. Out: a folder with sharded safetensors, configuration, text tokenizer and the
settings that the layout's readers look for. A native folder loads with transformers alone.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen2Tokenizer

from vibevoice_finetune.adapters.apply import adapter_deltas
from vibevoice_finetune.adapters.check import base_tensors, compare_language_model
from vibevoice_finetune.adapters.files import is_file_inside
from vibevoice_finetune.adapters.read import open_adapter
from vibevoice_finetune.base_model.config import Layout, config_to_original
from vibevoice_finetune.base_model.load import (
    BaseModel,
    model_fingerprint,
    open_base_model,
    weight_index,
    with_special_tokens,
)
from vibevoice_finetune.base_model.original_config import Json
from vibevoice_finetune.base_model.parts import tensor_shapes
from vibevoice_finetune.base_model.processor import (
    PROCESSOR_FILE,
    TEMPLATE_FILE,
    write_native_files,
    write_original_files,
)
from vibevoice_finetune.base_model.stored_types import FLOATS_8
from vibevoice_finetune.base_model.tensor_names import to_original
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.base_model.weights import MAX_SHARD_BYTES, read_tensors, write_weights
from vibevoice_finetune.errors import ArgumentError, BaseModelError, shown
from vibevoice_finetune.files.atomic import write_json, writing_folder
from vibevoice_finetune.files.headers import StoredTensor
from vibevoice_finetune.files.locks import locked

CONFIG_FILE = "config.json"
_SMALL_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What a model's readers look for beside the weights; nothing else of a folder is copied."""

_LOST_SHARE = 0.1
"""A merged model that lacks more of the adapter's change than this is spoken of."""

Deltas = Mapping[str, Callable[[Tensor], Tensor]]
"""For each tensor that an adapter changes, the function from the base's to the merged one."""


@dataclass(frozen=True)
class ExportRequest:
    """What is to be written.

    Attributes:
        name_or_path: the base checkpoint: a folder or a Hub id, in either layout.
        output: the folder to make; its parent must exist.
        adapter: the folder of an adapter; None to write the base itself.
        adapter_scale: how much of the adapter: 0 the base, 1 as trained.
        layout: of the result; None for the base's own.
        dtype: of the result's tensors; None for what each is stored in.
        processor_name_or_path: the text tokenizer, if it is not the model's own.
        cache_dir: where downloads are kept.
        max_shard_bytes: a file of weights ends before it would grow beyond this.
    """

    name_or_path: str
    output: Path
    adapter: Path | None = None
    adapter_scale: float = 1.0
    layout: Layout | None = None
    dtype: torch.dtype | None = None
    processor_name_or_path: str | None = None
    cache_dir: Path | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: where.
        layout: of it.
        num_tensors: tensors in it.
        num_merged: tensors of them that the adapter changed.
        num_bytes: of all its files.
        warnings: what a user should be told, a line each.
    """

    folder: Path
    layout: Layout
    num_tensors: int
    num_merged: int
    num_bytes: int
    warnings: tuple[str, ...]


@dataclass
class _Rounding:
    """What rounding leaves of an adapter's change, summed over tensors: 1 if all of it, 0 if none moved."""

    kept: float = 0.0
    whole: float = 0.0

    def add(self, base: Tensor, merged: Tensor, written: Tensor) -> None:
        """Count one tensor: the base as it would be written, the exact result, the result as it is written."""
        change = (merged - base).flatten()
        moved = written.float().flatten() - base.to(written.dtype).float().flatten()
        self.kept += float(torch.dot(moved, change))
        self.whole += float(torch.dot(change, change))

    def lost(self) -> float:
        """Share of the change that is gone."""
        return 1 - self.kept / self.whole if self.whole > 0 and math.isfinite(self.whole) else 0.0


def export(request: ExportRequest) -> Exported:
    """Write a checkpoint anew.

    Raises:
        ArgumentError: the output is there already or cannot be made.
        BaseModelError: the base or its text tokenizer cannot be used, its configuration cannot be expressed in the
            other layout, or a value to be written is not finite; nothing is left behind.
        AdapterError: the adapter cannot be read or does not fit.
        WriteError: the output cannot be written; nothing is left behind.
        InUseError: another process is writing there.
    """
    output = request.output.expanduser().absolute()
    _check_output(output)
    with locked(output, "convert" if request.adapter is None else "merge"):
        _check_output(output)
        return _export(request, output)


def _export(request: ExportRequest, output: Path) -> Exported:
    checkpoint = open_base_model(request.name_or_path, request.cache_dir)
    layout = request.layout or checkpoint.layout
    tokenizer = text_tokenizer(checkpoint, layout, request.processor_name_or_path, request.cache_dir)
    if layout is Layout.NATIVE and tokenizer is not None:
        checkpoint = with_special_tokens(checkpoint, special_tokens(tokenizer))
    index = weight_index(checkpoint)
    deltas: Deltas = {}
    warnings: list[str] = []
    if request.adapter is not None:
        deltas = adapter_deltas(request.adapter, tensor_shapes(checkpoint.config), scale=request.adapter_scale)
        warnings += _base_warnings(checkpoint, request.adapter, index.tensors)
    dtypes = _Dtypes(request.dtype, rounds_up=bool(deltas))
    num_float8 = sum(stored.dtype in FLOATS_8 for stored in index.tensors.values())
    config_dtype = torch.bfloat16 if num_float8 and deltas and request.dtype is None else request.dtype
    # Refuses what the layout cannot say before anything is written.
    config = config_json(checkpoint, layout, config_dtype)
    rounding = _Rounding()
    with writing_folder(output) as staging:
        write_small_files(staging, checkpoint, layout, tokenizer)
        write_json(staging / CONFIG_FILE, config)
        write_weights(staging, _result(index.tensors, deltas, layout, dtypes, rounding), request.max_shard_bytes)
    if num_float8 and config_dtype is not request.dtype:
        warnings.append(
            f"{checkpoint.source}: {num_float8} of {len(index.tensors)} tensors are stored in 8 bits, which would "
            "round the adapter's change away; they are written in bf16"
        )
    if rounding.lost() > _LOST_SHARE:
        warnings.append(
            f"{request.output}: rounding to the model's number format takes {rounding.lost():.0%} of the adapter's "
            "change away; --dtype float32 keeps all of it, and so does generate --adapter"
        )
    num_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Exported(request.output, layout, len(index.tensors), len(deltas), num_bytes, tuple(warnings))


@dataclass(frozen=True)
class _Dtypes:
    """In which number format tensors are written.

    Attributes:
        asked: for all tensors; None for what each is stored in.
        rounds_up: whether tensors of 8 bits become bf16.
    """

    asked: torch.dtype | None
    rounds_up: bool

    def of(self, stored: torch.dtype) -> torch.dtype:
        """The format of a tensor that is stored in this one."""
        if self.asked is not None:
            return self.asked
        return torch.bfloat16 if self.rounds_up and stored.itemsize == 1 else stored


def _result(
    tensors: Mapping[str, StoredTensor], deltas: Deltas, layout: Layout, dtypes: _Dtypes, rounding: _Rounding
) -> Iterator[tuple[str, Tensor]]:
    """The tensors to be written, in turn: merged in float32, rounded once."""
    for name, base in read_tensors(tensors):
        dtype = dtypes.of(base.dtype)
        value = base.to(dtype)
        if name in deltas:
            exact = base.float()
            merged = deltas[name](exact)
            value = merged.to(dtype)
            if dtype not in (torch.float32, torch.float64):
                rounding.add(exact, merged, value)
        _check_finite(tensors[name], base, value)
        yield (to_original(name) if layout is Layout.ORIGINAL else name), value


def _check_finite(stored: StoredTensor, base: Tensor, value: Tensor) -> None:
    if _finite(value):
        return
    where = f"{stored.file}: tensor {shown(stored.name)}"
    if not _finite(base):
        raise BaseModelError(f"{where} has values that are not finite numbers; download the model again")
    dtype = str(value.dtype).removeprefix("torch.")
    raise BaseModelError(
        f"{where} would have values that are not finite numbers in {dtype} after merging; "
        "nothing was written; choose --dtype bf16 or float32, or a smaller --adapter_scale"
    )


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor.float() if tensor.dtype.itemsize == 1 else tensor).all())


def config_json(checkpoint: BaseModel, layout: Layout, dtype: torch.dtype | None) -> Json:
    """The result's `config.json`: the base's own where the layout stays, so that nothing it says is lost."""
    if layout is Layout.NATIVE:
        config: Json = json.loads(checkpoint.config.to_json_string())
        return config if dtype is None else _with_dtype(config, _word(dtype))
    if checkpoint.layout is Layout.ORIGINAL:
        config = dict(checkpoint.raw_config)
        config.setdefault("tie_word_embeddings", config["decoder_config"]["tie_word_embeddings"])
    else:
        config = config_to_original(checkpoint.config)
    if dtype is not None:
        config["torch_dtype"] = _word(dtype)
        config["decoder_config"] = config["decoder_config"] | {"torch_dtype": _word(dtype)}
    return config


def _with_dtype(config: Json, word: str) -> Json:
    """The native configuration with this dtype, also in those of its parts that name one."""
    sections = {
        name: value | {"dtype": word} for name, value in config.items() if isinstance(value, dict) and "dtype" in value
    }
    return config | sections | {"dtype": word}


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def text_tokenizer(
    checkpoint: BaseModel, layout: Layout, processor: str | None, cache_dir: Path | None
) -> Qwen2Tokenizer | None:
    """The text tokenizer to be written; None where the base's own files are copied as they are."""
    copies = checkpoint.layout is layout and (layout is Layout.ORIGINAL or _has_processor(checkpoint))
    if copies and processor is None:
        return None
    return load_tokenizer(checkpoint, processor, cache_dir)


def _has_processor(checkpoint: BaseModel) -> bool:
    return all((checkpoint.folder / name).is_file() for name in (PROCESSOR_FILE, TEMPLATE_FILE))


def write_small_files(folder: Path, checkpoint: BaseModel, layout: Layout, tokenizer: Qwen2Tokenizer | None) -> None:
    """Write what a model's readers look for beside weights and configuration."""
    if checkpoint.layout is layout:
        for name in _SMALL_FILES:
            if is_file_inside(checkpoint.folder, name):
                shutil.copyfile(checkpoint.folder / name, folder / name)
    if layout is Layout.NATIVE:
        if tokenizer is not None:
            write_native_files(folder, checkpoint.config, tokenizer)
    elif checkpoint.layout is Layout.NATIVE:
        write_original_files(folder, checkpoint.config, tokenizer)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _base_warnings(checkpoint: BaseModel, adapter: Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    contents = open_adapter(adapter)
    warnings = list(contents.warnings)
    copied = compare_language_model(contents, base_tensors(tensors))
    warnings += [copied] if copied else []
    if contents.info is not None:
        fingerprint = model_fingerprint(checkpoint)
        if contents.info.base_fingerprint != fingerprint:
            warnings.append(
                f"{contents.folder}: was made on another base model ({contents.info.base_model}, fingerprint "
                f"{contents.info.base_fingerprint}; {checkpoint.source} has {fingerprint}); merge into that one, or "
                "listen carefully to the result"
            )
    return warnings


def _check_output(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise ArgumentError(f"--output {output}: already exists; name a new folder")
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}; make it, or name another place")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ArgumentError(f"--output {output}: {output.parent} is not writable; name another place")
