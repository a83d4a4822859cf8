"""Reading single files of an adapter folder without trusting them.

Why: adapter folders come from strangers. A file is read only if it lies inside its folder; a pickle is read as a plain
state dict or not at all; a file that is cut off, or that would take more memory or time than any adapter needs, is
refused before anything is loaded.

In: paths. Out: JSON objects and named tensors, views of the mapped file that cost no memory until they are used.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vibevoice_finetune.errors import AdapterError, shown
from vibevoice_finetune.files.headers import Header, HeaderError, read_header
from vibevoice_finetune.files.json_objects import read_json_object

SAFETENSORS = ".safetensors"
MAX_TENSORS = 10_000
"""LoRA on every linear layer of the 7B model has 438 tensors."""
MAX_FILE_BYTES = 16 * 2**30
"""The diffusion head of the 7B model in float32, the largest part that is trained whole, has 2.7 GB."""
_MAX_PICKLE_BYTES = 4 * 2**20  # 10,000 tensors of a state dict take 2 MB
_MAX_DIRECTORY_BYTES = 4 * 2**20
_CHUNK = 2**24  # numbers that are looked at in one go
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FLOAT_WORDS = ("F32", "BF16", "F16", "F64")
# What torch.load raises on bytes that are not a state dict. It does not document which, so these are the kinds seen on
# damaged and on hostile files; none of them is a fault of this program, as only torch.load stands inside the `try`.
_NO_STATE_DICT = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    ImportError,
    OverflowError,
    zipfile.BadZipFile,
    OSError,
)


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor together with where it was found."""

    file: Path
    name: str
    tensor: Tensor

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.file}: tensor {shown(self.name)}"


def is_file_inside(root: Path, name: str) -> bool:
    """Whether `name` is a regular file of the folder `root`, following symbolic links only to where they may lead.

    Raises:
        AdapterError: it is a link that leads out of the folder (out of the repository, in a cache of the Hub, whose
            snapshots are links to `../../blobs`).
    """
    path = root / name
    if not path.is_file():
        return False
    allowed = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        allowed.append(root.resolve().parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise AdapterError(
            f"{path}: is a link that leads out of its folder, to {shown(target)}; only files inside are read; "
            "put a copy in its place"
        )
    return True


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON object of an adapter folder.

    Raises:
        AdapterError: the file is unreadable, too large, not JSON, or not an object.
    """
    return read_json_object(path, AdapterError, "download or copy the folder again")


def read_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a `.safetensors` file, or of a `.bin` file that holds a plain state dict.

    Returns:
        Floating-point tensors on the CPU by the names that the file gives them. They are views of the mapped file and
        must not be written to. Their values are not checked here.

    Raises:
        AdapterError: the file is cut off, is something else, is empty or too large, or holds anything but
            floating-point tensors.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise AdapterError(
            f"{path}: has {size:,} bytes; a part of an adapter has at most {MAX_FILE_BYTES:,}; "
            "check that it is the file you mean"
        )
    tensors = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_state_dict(path)
    if not tensors:
        raise AdapterError(f"{path}: holds no tensors")
    return {name: Stored(path, name, tensor.detach()) for name, tensor in tensors.items()}


def read_header_of(path: Path) -> Header:
    """The header of a safetensors file.

    Raises:
        AdapterError: it is not such a file, it is cut off, or it names too many tensors.
    """
    try:
        header = read_header(path)
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except HeaderError as error:
        if error.cut_tensor is None:
            raise AdapterError(f"{path}: is not a safetensors file ({error}); download or copy it again") from error
        raise AdapterError(
            f"{path}: is cut off within tensor {shown(error.cut_tensor)} (the file has {path.stat().st_size:,} "
            "bytes); download or copy it again"
        ) from error
    _check_count(path, len(header.tensors))
    return header


def check_finite(stored: Stored) -> None:
    """Raise AdapterError if a value is NaN or infinite."""
    flat = stored.tensor.flatten()
    pieces = (flat[start : start + _CHUNK] for start in range(0, len(flat), _CHUNK))
    bad = sum(piece.numel() - int(torch.isfinite(piece).sum()) for piece in pieces)
    if bad:
        raise AdapterError(
            f"{stored.where} has {bad:,} values of {stored.tensor.numel():,} that are not finite numbers; "
            "the training that wrote it had broken down; use an earlier checkpoint"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    header = read_header_of(path)
    for stored in header.tensors:
        if stored.dtype not in _FLOAT_WORDS:
            raise AdapterError(_not_floats(path, stored.name, stored.dtype))
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a dictionary
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: is not a safetensors file ({shown(error)}); download or copy it again") from error


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        # Zip files only: the format before torch 1.6 is a chain of pickles, which cannot be mapped into memory.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if zipfile.is_zipfile(path) else None
    except _NO_STATE_DICT as error:
        first_line = shown(str(error).strip().split("\n")[0])
        raise AdapterError(
            f"{path}: holds no tensor that could be read: it is not a plain PyTorch state dict "
            f"({type(error).__name__}: {first_line}); nothing in it was executed; "
            "download or copy it again, or save the state dict as safetensors"
        ) from error
    if not isinstance(value, dict):
        found = "another kind of file" if value is None else f"a {type(value).__name__}"
        raise AdapterError(
            f"{path}: holds no tensor that could be read: found {found}, expected a PyTorch state dict (names to "
            "tensors); download or copy it again"
        )
    _check_count(path, len(value))
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            kinds = f"{type(name).__name__} to {type(tensor).__name__}"
            raise AdapterError(f"{path}: holds an entry from {kinds}; expected names with a tensor each")
        if tensor.dtype not in _FLOATS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise AdapterError(_not_floats(path, name, f"{tensor.layout} {tensor.dtype}".replace("torch.", "")))
    _check_no_overlap(path, value.values())
    return dict(value)


def _check_archive(path: Path) -> None:
    """Refuse a zip file whose list of contents or whose pickle is larger than that of any state dict.

    The end of a zip file says how large the list is: 12 bytes after the last "PK\\5\\6", in four bytes.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 70_000))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        return
    if int.from_bytes(tail[end + 12 : end + 16], "little") > _MAX_DIRECTORY_BYTES:
        raise AdapterError(f"{path}: holds more than {MAX_TENSORS:,} tensors; that is not an adapter")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # torch.load says what is wrong with it
    if any(entry.file_size > _MAX_PICKLE_BYTES for entry in pickles):
        raise AdapterError(f"{path}: its list of tensors is larger than that of any adapter; it is not read")


def _check_count(path: Path, count: int) -> None:
    if count > MAX_TENSORS:
        raise AdapterError(f"{path}: holds {count:,} tensors; an adapter has at most {MAX_TENSORS:,}")


def _check_no_overlap(path: Path, tensors: Iterable[Tensor]) -> None:
    """Every byte of the file may be used once: a tensor with strides of 0 is small on the disk and huge when copied."""
    needed, stored = sum(tensor.nbytes for tensor in tensors), path.stat().st_size
    if needed > stored:
        raise AdapterError(
            f"{path}: its tensors take {needed:,} bytes, the file has {stored:,}: they overlap; "
            "save copies of the tensors (tensor.clone())"
        )


def _not_floats(path: Path, name: str, found: str) -> str:
    return (
        f"{path}: tensor {shown(name)} is stored as {found}; expected float32, bfloat16 or float16; "
        "save the adapter's own weights, not quantised ones"
    )
