"""A checkpoint written anew: in the other layout, with an adapter merged into it, in another dtype.

Why: other tools know one layout and no adapters. A model of 18 GB is rewritten tensor by tensor, so that a machine with
24 GB of memory suffices for the largest; what comes out is a whole model folder or no folder.

In: a checkpoint, perhaps an adapter. Out: a folder with sharded safetensors, configuration, text tokenizer and the
settings that the layout's readers look for. A native folder loads with transformers alone.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import Qwen2Tokenizer

from vibevoice_finetune.adapters.apply import adapter_deltas
from vibevoice_finetune.adapters.read import open_adapter
from vibevoice_finetune.base_model.config import Layout, config_to_original
from vibevoice_finetune.base_model.load import (
    Checkpoint,
    model_fingerprint,
    open_checkpoint,
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
from vibevoice_finetune.base_model.tensor_names import to_original
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.base_model.weights import INDEX_FILE, MAX_SHARD_BYTES, read_tensors, write_weights
from vibevoice_finetune.errors import ArgumentError, CheckpointError
from vibevoice_finetune.files.headers import StoredTensor

CONFIG_FILE = "config.json"
_SMALL_FILES = (".json", ".txt", ".jinja")

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


def export(request: ExportRequest) -> Exported:
    """Write a checkpoint anew.

    Raises:
        ArgumentError: the output is there already or cannot be made.
        CheckpointError: the base or its text tokenizer cannot be used, its configuration cannot be said in the other
            layout, or the disk is full; nothing is left behind.
        AdapterError: the adapter cannot be read or does not fit.
    """
    output = request.output.expanduser().absolute()
    _check_output(output)
    checkpoint = open_checkpoint(request.name_or_path, request.cache_dir)
    layout = request.layout or checkpoint.layout
    tokenizer = _tokenizer(checkpoint, layout, request)
    if layout is Layout.NATIVE and tokenizer is not None:
        checkpoint = with_special_tokens(checkpoint, special_tokens(tokenizer))
    config = _config_json(checkpoint, layout, request.dtype)  # refuses what the layout cannot say, before any writing
    index = weight_index(checkpoint)
    deltas: Deltas = {}
    warnings: tuple[str, ...] = ()
    if request.adapter is not None:
        deltas = adapter_deltas(request.adapter, tensor_shapes(checkpoint.config), scale=request.adapter_scale)
        warnings = _base_warnings(checkpoint, request.adapter)
    staging = output.with_name(f".{output.name}.writing")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir()
        _write_small_files(staging, checkpoint, layout, tokenizer)
        (staging / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = _result(index.tensors, deltas, layout, request.dtype)
        write_weights(staging, tensors, request.max_shard_bytes)
        _finish(staging)
        staging.rename(output)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{request.output}: could not be written: {error}; make room on the disk or name another place; "
            "nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    num_bytes = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return Exported(request.output, layout, len(index.tensors), len(deltas), num_bytes, warnings)


def _result(
    tensors: Mapping[str, StoredTensor], deltas: Deltas, layout: Layout, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors to be written, in turn: merged in float32, rounded once."""
    for name, base in read_tensors(tensors):
        value = deltas[name](base.float()) if name in deltas else base
        yield (to_original(name) if layout is Layout.ORIGINAL else name), value.to(dtype or base.dtype)


def _config_json(checkpoint: Checkpoint, layout: Layout, dtype: torch.dtype | None) -> Json:
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


def _tokenizer(checkpoint: Checkpoint, layout: Layout, request: ExportRequest) -> Qwen2Tokenizer | None:
    """The text tokenizer to be written; None where the base's own files are copied as they are."""
    copies = checkpoint.layout is layout and (layout is Layout.ORIGINAL or _has_processor(checkpoint))
    if copies and request.processor_name_or_path is None:
        return None
    return load_tokenizer(checkpoint, request.processor_name_or_path, request.cache_dir)


def _has_processor(checkpoint: Checkpoint) -> bool:
    return all((checkpoint.folder / name).is_file() for name in (PROCESSOR_FILE, TEMPLATE_FILE))


def _write_small_files(folder: Path, checkpoint: Checkpoint, layout: Layout, tokenizer: Qwen2Tokenizer | None) -> None:
    if checkpoint.layout is layout:
        for path in sorted(checkpoint.folder.iterdir()):
            if path.suffix in _SMALL_FILES and path.name not in (CONFIG_FILE, INDEX_FILE) and path.is_file():
                shutil.copyfile(path, folder / path.name)
    if layout is Layout.NATIVE:
        if tokenizer is not None:
            write_native_files(folder, checkpoint.config, tokenizer)
    elif checkpoint.layout is Layout.NATIVE:
        write_original_files(folder, checkpoint.config, tokenizer)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _base_warnings(checkpoint: Checkpoint, adapter: Path) -> tuple[str, ...]:
    contents = open_adapter(adapter)
    warnings = list(contents.warnings)
    if contents.info is not None:
        fingerprint = model_fingerprint(checkpoint)
        if contents.info.base_fingerprint != fingerprint:
            warnings.append(
                f"{contents.folder}: was made on another base model ({contents.info.base_model}, fingerprint "
                f"{contents.info.base_fingerprint}; {checkpoint.source} has {fingerprint}); merge into that one, or "
                "listen closely"
            )
    return tuple(warnings)


def _check_output(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise ArgumentError(f"--output {output}: is there already; name a folder that is not")
    if not output.parent.is_dir():
        raise ArgumentError(f"--output {output}: there is no folder {output.parent}; make it, or name another place")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise ArgumentError(f"--output {output}: {output.parent} is not writable; name another place")


def _finish(folder: Path) -> None:
    """Bring all bytes to the disk, readable for whom the umask allows (safetensors makes files for their owner)."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())
