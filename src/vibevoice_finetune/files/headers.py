"""The headers of safetensors files, read and checked without touching a tensor."""

import json
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 25_000_000
"""A released model of 1,205 tensors has a header of 0.15 MB."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of an element of every type that safetensors knows (safetensors 0.8, `tensor.rs`)."""


class HeaderError(ValueError):
    """The header of a safetensors file cannot be read; the message says why, without the file's name.

    Attributes:
        cut_tensor: the first tensor that the file is too short for, if that is what is wrong.
    """

    def __init__(self, message: str, cut_tensor: str | None = None) -> None:
        super().__init__(message)
        self.cut_tensor = cut_tensor


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a safetensors file.

    Attributes:
        file: the file.
        name: in the file.
        dtype: safetensors' word, such as "BF16".
        shape: of the tensor.
        start: position of its first byte in the file.
        num_bytes: how many.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """What the header of a safetensors file says; checked against the size of the file."""

    tensors: tuple[StoredTensor, ...]
    metadata: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    The format: 8 bytes for the length of a JSON object, the object, then the tensors' bytes
    (https://huggingface.co/docs/safetensors).

    Raises:
        HeaderError: it is not such a file, or it ends before its last tensor.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise HeaderError(f"its header is said to be {length:,} bytes long, the file has {size:,}")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(f"its header is {length:,} bytes long; at most {MAX_HEADER_BYTES:,} are read")
        text = file.read(length)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError("its header is not JSON") from error
    if not isinstance(entries, dict):
        raise HeaderError("its header is not a JSON object")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its metadata are not strings")
    tensors = tuple(_stored_tensor(path, name, entry, 8 + length) for name, entry in entries.items())
    _check_layout(tensors, 8 + length, size)
    return Header(tensors, metadata)


def _stored_tensor(file: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        shape, (begin, end), dtype = tuple(entry["shape"]), entry["data_offsets"], entry["dtype"]
    except (TypeError, KeyError, ValueError) as error:
        raise HeaderError(f"its entry {name[:80]!r} is not that of a tensor") from error
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)) or dtype not in DTYPE_BITS:
        raise HeaderError(f"its entry {name[:80]!r} is not that of a tensor")
    if (end - begin) * 8 != prod(shape) * DTYPE_BITS[dtype]:
        raise HeaderError(f"{name[:80]!r} is {dtype} {list(shape)} but takes {end - begin:,} bytes")
    return StoredTensor(file, name, dtype, shape, data_start + begin, end - begin)


def _check_layout(tensors: tuple[StoredTensor, ...], data_start: int, size: int) -> None:
    """Tensors lie end to end, in any order of their names, and the file ends with the last."""
    at = data_start
    for tensor in sorted(tensors, key=lambda one: (one.start, one.num_bytes)):
        if tensor.start != at:
            raise HeaderError(f"{tensor.name[:80]!r} does not begin where the tensor before it ends")
        at += tensor.num_bytes
        if at > size:
            raise HeaderError(f"it ends within {tensor.name[:80]!r}; copy or download it again", tensor.name)
    if at != size:
        raise HeaderError(f"it has {size - at:,} bytes after its last tensor")
