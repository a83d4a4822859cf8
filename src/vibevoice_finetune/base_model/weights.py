"""A base model's tensors as its files hold them: which there are, whether they fit, one after the other, and back.

Why: a model of 18 GB must be looked through, hashed, loaded and rewritten without a second copy of it in memory, and a
file that lacks a tensor or has one too many must be refused before anything is loaded.

In: a folder with safetensors, sharded or single, in either layout. Out: an index under native names, the tensors in
turn; and the other way: tensors in turn into a folder.
"""

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.stored_types import check_stored_types
from vibevoice_finetune.base_model.tensor_names import EMBED_TOKENS, LATENT_SCALE, LM_HEAD, to_native, to_original
from vibevoice_finetune.errors import BaseModelError, shown
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.files.headers import HeaderError, StoredTensor, read_header
from vibevoice_finetune.files.json_objects import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 1024**3
_LISTED = 20
_WRAPPED = re.compile(r"^(?:(?:module|_orig_mod)\.)+|_orig_mod\.")
"""What DDP and torch.compile put into the names of what they wrap."""


@dataclass(frozen=True)
class WeightIndex:
    """All tensors of a base model, by native name.

    Attributes:
        tensors: native name to place.
        unnamed: names in the files that no VibeVoice model has.
        layout: whose names the files use.
        where: the file to name in messages.
    """

    tensors: Mapping[str, StoredTensor]
    unnamed: tuple[str, ...]
    layout: Layout
    where: Path

    def block(self, *prefixes: str) -> dict[str, StoredTensor]:
        """The tensors whose native names begin with one of these."""
        return {name: stored for name, stored in self.tensors.items() if name.startswith(prefixes)}


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, whole or not."""
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def index_weights(folder: Path, layout: Layout) -> WeightIndex:
    """Read the headers of a model's files; no tensor is read. What wrappers add to names is left out of the index.

    Raises:
        BaseModelError: there are no safetensors, a shard is missing, a file is cut off, two hold the same tensor, or
            they hold something else than floating-point weights, as quantised models do.
    """
    where, files = _files(folder)
    found = [stored for file in files for stored in _stored_tensors(file)]
    check_stored_types(found, where)
    tensors: dict[str, StoredTensor] = {}
    unnamed: list[str] = []
    for stored in found:
        try:
            unwrapped = _WRAPPED.sub("", stored.name)
            name = to_native(unwrapped) if layout is Layout.ORIGINAL else unwrapped
        except BaseModelError:
            unnamed.append(stored.name)
            continue
        if name in tensors:
            first = tensors[name]
            raise BaseModelError(
                f"{stored.file}: {shown(stored.name)} is the same tensor as {shown(first.name)} in {first.file.name}; "
                "remove one of them"
            )
        tensors[name] = stored
    return WeightIndex(tensors, tuple(unnamed), layout, where)


def check_weights(index: WeightIndex, shapes: Mapping[str, tuple[int, ...]]) -> WeightIndex:
    """Compare what a model's files hold with what its configuration asks for.

    A tied model's files may hold the output matrix a second time if it equals the embedding; it is left out of the
    result, which holds exactly the tensors of `shapes`.

    Args:
        index: what the files hold.
        shapes: native name and shape of every tensor that the model has.

    Raises:
        BaseModelError: tensors are missing, left over or of another shape (all are listed), the tied output matrix
            differs from the embedding, or the latents' scale is not a usable number.
    """
    tensors = dict(index.tensors)
    if LM_HEAD not in shapes and LM_HEAD in tensors and EMBED_TOKENS in tensors:
        _check_tied(index, tensors.pop(LM_HEAD), tensors[EMBED_TOKENS])
    absent = [name for name in shapes if name not in tensors]
    missing = [to_original(name) for name in absent] if index.layout is Layout.ORIGINAL else absent
    left_over = [*index.unnamed, *(tensors[name].name for name in tensors if name not in shapes)]
    misshapen = [
        f"{stored.name} is {stored.shape}, expected {shapes[name]}"
        for name, stored in tensors.items()
        if name in shapes and stored.shape != shapes[name]
    ]
    faults = [
        f"{len(found)} {kind}: {_listing(found)}"
        for kind, found in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if found
    ]
    if faults:
        raise BaseModelError(
            f"{index.where}: the weights do not fit the config.json beside them: {'; '.join(faults)}; "
            "download the model again, or give the config.json that belongs to it"
        )
    checked = replace(index, tensors=tensors)
    _check_scale(checked)
    return checked


def read_tensors(tensors: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors in turn, file by file, as stored; each is read when it is asked for and freed when it is dropped."""
    by_file: dict[Path, list[tuple[str, StoredTensor]]] = {}
    for name, stored in tensors.items():
        by_file.setdefault(stored.file, []).append((name, stored))
    for file, entries in by_file.items():
        with _open(file) as handle:
            for name, stored in entries:
                yield name, handle.get_tensor(stored.name)


def read_bytes(stored: StoredTensor, chunk_bytes: int = 8 * 1024**2) -> Iterator[bytes]:
    """A tensor's bytes as they lie in the file, in pieces: nothing is mapped, so memory stays flat."""
    with stored.file.open("rb") as stream:
        stream.seek(stored.start)
        left = stored.num_bytes
        while left > 0:
            chunk = stream.read(min(left, chunk_bytes))
            left -= len(chunk)
            yield chunk


@contextmanager
def lazy_tensors(tensors: Mapping[str, StoredTensor], *, mapped: bool = True) -> Iterator[dict[str, Any]]:
    """Native name to safetensors' slice object, which reads its tensor only when it is indexed.

    Args:
        tensors: which ones.
        mapped: a tensor is a view of the mapped file, so one that keeps its type on the CPU costs no memory of its own.
            What is only read to be turned into something else is better copied out of the file: mapped pages count as
            the process's memory until the kernel wants them back. Then memory freed since is given back first.
    """
    backend = "mmap" if mapped else "pread"
    with ExitStack() as stack:
        files = {stored.file for stored in tensors.values()}
        handles = {file: stack.enter_context(_open(file, backend)) for file in files}
        slices = {name: handles[stored.file].get_slice(stored.name) for name, stored in tensors.items()}
        yield slices if mapped else {name: _Copied(piece) for name, piece in slices.items()}
    if not mapped:
        _trim()


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Write tensors as safetensors: one `model.safetensors`, or shards with an index if they are larger together.

    At most one shard is in memory, twice while it is written. If it fails, files are left half written: the folder is
    to be one that `files.atomic.writing_folder` gave.

    Args:
        folder: where they go.
        tensors: at least one; names, in the layout that is to be written, and tensors.
        max_shard_bytes: a shard ends before it would grow beyond this.

    Returns:
        The files written, the index included.

    Raises:
        BaseModelError: the folder already holds weights.
    """
    if has_weights(folder):
        raise BaseModelError(f"{folder}: already holds a model's weights; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[tuple[Path, list[str]]] = []
    total_bytes = 0
    for number, shard in enumerate(_shards(tensors, max_shard_bytes), start=1):
        path = folder / f"model-{number:05d}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append((path, list(shard)))
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    return _rename(folder, shards, total_bytes)


def _rename(folder: Path, shards: list[tuple[Path, list[str]]], total_bytes: int) -> list[Path]:
    """Give the files their final names, which say how many there are, and write the index of several."""
    if len(shards) == 1:
        return [shards[0][0].rename(folder / SINGLE_FILE)]
    finals = [folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: final.name for final, (_, names) in zip(finals, shards, strict=True) for name in names}
    written = [path.rename(final) for (path, _), final in zip(shards, finals, strict=True)]
    write_json(
        folder / INDEX_FILE, {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    )
    return [*written, folder / INDEX_FILE]


def _shards(tensors: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors:
        if shard and num_bytes + tensor.nbytes > max_bytes:
            yield shard
            shard, num_bytes = {}, 0
        shard[name] = tensor.contiguous()
        num_bytes += tensor.nbytes
    yield shard


@dataclass(frozen=True)
class _Copied:
    """A slice that gives freed memory back to the system before it takes more."""

    piece: Any

    def __getitem__(self, index: Any) -> Tensor:
        _trim()
        tensor: Tensor = self.piece[index]
        return tensor


def _trim() -> None:
    """Glibc keeps freed blocks of up to 32 MB for later; after quantising a 7B model that is 1.2 GB (measured)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries lack it
        if trim is not None:
            trim(0)


def _files(folder: Path) -> tuple[Path, list[Path]]:
    """The file to name in messages, and the safetensors that hold the weights; a single file goes before an index."""
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return single, [single]
    if not index.is_file():
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".gguf"}))
        raise BaseModelError(
            f"{folder}: no weights: found {found or 'none'}, expected {SINGLE_FILE} or {INDEX_FILE}; "
            "download the model again, or convert its weights to safetensors"
        )
    weight_map = read_json_object(index, BaseModelError, "download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BaseModelError(f"{index}: weight_map is missing or empty; expected the file of each tensor")
    for tensor, name in weight_map.items():
        # Another folder's files are not this model's: a path is refused, whether it leads there or not.
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\0" in name:
            raise BaseModelError(
                f"{index}: weight_map says that {shown(tensor)} is in {shown(repr(name))}; expected the name of a "
                ".safetensors file in this folder; download the model again"
            )
    files = [folder / name for name in sorted(set(weight_map.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise BaseModelError(
            f"{index}: {len(absent)} of {len(files)} shards missing: {_listing(absent)}; download the model again"
        )
    return index, files


@contextmanager
def _open(file: Path, backend: str = "mmap") -> Iterator[Any]:
    try:
        handle = safe_open(file, framework="pt", backend=backend)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{file}: cannot be read ({error}); download it again") from error
    with handle:
        yield handle


def _stored_tensors(file: Path) -> tuple[StoredTensor, ...]:
    try:
        return read_header(file).tensors
    except HeaderError as error:
        raise BaseModelError(
            f"{file}: not a complete safetensors file: {error}; found {file.stat().st_size:,} bytes; download it again"
        ) from error
    except OSError as error:
        raise BaseModelError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def _check_tied(index: WeightIndex, output: StoredTensor, embedding: StoredTensor) -> None:
    read = dict(read_tensors({"output": output, "embedding": embedding}))
    if output.shape != embedding.shape or not torch.equal(read["output"], read["embedding"]):
        raise BaseModelError(
            f"{index.where}: {output.name} differs from {embedding.name}, but config.json ties them "
            "(decoder_config.tie_word_embeddings or text_config.tie_word_embeddings is true); "
            "set it to false if the model was trained untied, or remove the tensor"
        )


def _check_scale(index: WeightIndex) -> None:
    scale = next(tensor for _, tensor in read_tensors(index.block(LATENT_SCALE))).item()
    if not (abs(scale) > 0 and abs(scale) != float("inf")):
        raise BaseModelError(
            f"{index.tensors[LATENT_SCALE].file}: {index.tensors[LATENT_SCALE].name} is {scale}; expected a finite "
            "number other than 0: this model was saved before its latents' scale was measured"
        )


def _listing(found: list[str]) -> str:
    listed = ", ".join(shown(name) for name in found[:_LISTED])
    return listed if len(found) <= _LISTED else f"{listed} and {len(found) - _LISTED} more"
