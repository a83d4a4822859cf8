"""Headers of safetensors files: what they say is checked before it is believed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vibevoice_finetune.files import headers
from vibevoice_finetune.files.headers import HeaderError, read_header


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_it_reads_what_the_library_wrote(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    found = {tensor.name: tensor for tensor in header.tensors}
    assert {name: (t.dtype, t.shape, t.num_bytes) for name, t in found.items()} == {
        "a": ("F32", (2, 3), 24),
        "b": ("BF16", (5,), 10),
        "none": ("F32", (0, 4), 0),
    }
    raw = (tmp_path / "x.safetensors").read_bytes()
    start = found["b"].start
    assert raw[start : start + 2] == b"\x80\x3f"  # 1.0 in bf16, little end first


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "is not JSON"),
        (b"[" * 100_000, b"", "is not JSON"),
        ([], b"", "is not a JSON object"),
        ({"__metadata__": {"a": 1}}, b"", "metadata are not strings"),
        ({"__metadata__": [1]}, b"", "metadata are not strings"),
        ({"a": 1}, b"", "'a' is not that of a tensor"),
        ({"a": {"shape": [1]}}, b"", "'a' is not that of a tensor"),
        ({"a": entry([-1], 0, 4)}, b"1234", "'a' is not that of a tensor"),
        ({"a": entry([True], 0, 4)}, b"1234", "'a' is not that of a tensor"),
        ({"a": entry([1], 0, 4, "F33")}, b"1234", "'a' is not that of a tensor"),
        ({"a": entry([2], 0, 4)}, b"1234", r"'a' is F32 \[2\] but takes 4 bytes"),
        ({"a": entry([10**12], 0, 4 * 10**12)}, b"1234", "it ends within 'a'"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "'b' does not begin where the tensor before it ends"),
        ({"a": entry([1], 4, 8)}, b"12345678", "'a' does not begin where"),
        ({"a": entry([1], 0, 4)}, b"12345", "1 bytes after its last tensor"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(HeaderError, match=message):
        read_header(write(tmp_path / "x.safetensors", header, data))


def test_a_file_that_was_cut_names_the_tensor(tmp_path: Path) -> None:
    path = write(tmp_path / "x", {"a": entry([1], 0, 4), "b": entry([2], 4, 12)}, b"1234" + b"5678")
    with pytest.raises(HeaderError) as caught:
        read_header(path)
    assert caught.value.cut_tensor == "b"


def test_lengths_that_cannot_be_true_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    for content in (b"", b"1234", (100).to_bytes(8, "little") + b"{}", b"\xff" * 30):
        path.write_bytes(content)
        with pytest.raises(HeaderError, match=r"its header is (said to be|not JSON)"):
            read_header(path)
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", 10)
    with pytest.raises(HeaderError, match="at most 10 are read"):
        read_header(write(path, {"a": entry([1], 0, 4)}, b"1234"))
