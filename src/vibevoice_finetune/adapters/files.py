"""Reading and writing single files of an adapter folder, with distrust.

Why: adapter folders come from strangers. A file is read only if it lies inside its folder; a pickle is read as a plain
state dict or not at all; a torn file is told from a whole one before anything else happens.

In: paths. Out: JSON objects and named tensors, views of the mapped file that cost no memory until they are used.
"""

import hashlib
import json
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vibevoice_finetune.errors import AdapterError

SAFETENSORS = ".safetensors"
# An adapter_config.json has a few kilobytes; this stops a wrong or hostile file before it is parsed.
_MAX_JSON_BYTES = 16 * 2**20
# The format's own limit for the header of a safetensors file.
_MAX_HEADER_BYTES = 100 * 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What torch.load raises on bytes that are no state dict. It says nowhere which, so these are the kinds seen on damaged
# and on hostile files; none of them is a fault of this program, as only torch.load stands inside the `try`.
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
        return f"{self.file}: tensor {self.name}"


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
            f"{path}: is a link that leads out of the adapter's folder, to {target}; only files inside are read; "
            "put a copy in its place"
        )
    return True


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Parse a small JSON object.

    Raises:
        AdapterError: the file is unreadable, too large, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_JSON_BYTES:
            raise AdapterError(f"{path}: has {size:,} bytes; expected a small JSON file")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: is no JSON ({error}); download or copy the folder again") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{path}: holds a JSON {type(value).__name__}; expected an object with named values")
    return value


def read_tensors(path: Path) -> dict[str, Stored]:
    """All tensors of a `.safetensors` file, or of a `.bin` file that holds a plain state dict.

    Returns:
        Floating-point tensors on the CPU by the names that the file gives them. They are views of the mapped file and
        must not be written to. Their values are not checked here.

    Raises:
        AdapterError: the file is torn, is something else, is empty, or holds what is no floating-point tensor.
    """
    tensors = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_state_dict(path)
    if not tensors:
        raise AdapterError(f"{path}: holds no tensors")
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise AdapterError(
                f"{path}: tensor {name} is a {tensor.layout} tensor of {tensor.dtype}; "
                "expected float32, bfloat16 or float16"
            )
    return {name: Stored(path, name, tensor.detach()) for name, tensor in tensors.items()}


def check_finite(stored: Stored) -> None:
    """Raise AdapterError if a value is NaN or infinite."""
    bad = stored.tensor.numel() - int(torch.isfinite(stored.tensor).sum())
    if bad:
        raise AdapterError(
            f"{stored.where} has {bad:,} values of {stored.tensor.numel():,} that are not finite numbers; "
            "the training that wrote it had broken down; use an earlier checkpoint"
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except OSError as error:
        raise AdapterError(f"{path}: cannot be read: {error}") from error
    except SafetensorError as error:
        cut = _first_cut_tensor(path)
        if cut is None:
            raise AdapterError(f"{path}: is no safetensors file ({error}); download or copy it again") from error
        raise AdapterError(
            f"{path}: is cut off within tensor {cut} (the file has {path.stat().st_size:,} bytes); "
            "download or copy it again"
        ) from error


def _first_cut_tensor(path: Path) -> str | None:
    """Name of the first tensor that a file's header promises and its bytes do not hold, if the header is whole."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            return None
        header = file.read(header_bytes)
    try:
        entries = json.loads(header)
        ends = {name: int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"}
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    cut = [name for name in ends if 8 + header_bytes + ends[name] > size]
    return min(cut, key=lambda name: ends[name], default=None)


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        # Zip files only: the format before torch 1.6 is a chain of pickles, which cannot be mapped into memory.
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True) if zipfile.is_zipfile(path) else None
    except _NO_STATE_DICT as error:
        first_line = str(error).strip().split("\n")[0]
        raise AdapterError(
            f"{path}: holds no tensor that could be read: it is no plain PyTorch state dict "
            f"({type(error).__name__}: {first_line}); nothing in it was executed; "
            "download or copy it again, or save the state dict as safetensors"
        ) from error
    if not isinstance(value, dict):
        found = "another kind of file" if value is None else f"a {type(value).__name__}"
        raise AdapterError(
            f"{path}: holds no tensor that could be read: found {found}, expected a PyTorch state dict (names to "
            "tensors); download or copy it again"
        )
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise AdapterError(f"{path}: {name!r} is a {type(tensor).__name__}; expected names with a tensor each")
    return dict(value)
