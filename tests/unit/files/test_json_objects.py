"""What a JSON file may hold, and what is said of one that holds something else."""

import os
from pathlib import Path

import pytest

from vibevoice_finetune.errors import BaseModelError
from vibevoice_finetune.files import json_objects
from vibevoice_finetune.files.json_objects import read_json_object


def read(path: Path) -> object:
    return read_json_object(path, BaseModelError, "download it again")


def test_an_object_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"name": "Zo\u00eb", "size": [1, 2.5, null]}', encoding="utf-8")
    assert read(path) == {"name": "Zo\u00eb", "size": [1, 2.5, None]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b'{"a": ', "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[1]", "holds a JSON list; expected an object"),
        (b"null", "holds a JSON NoneType"),
    ],
)
def test_what_is_not_an_object_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BaseModelError, match=rf"config\.json: {said}.*download it again$"):
        read(path)


def test_what_is_not_a_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BaseModelError, match="cannot be read"):
        read(tmp_path / "absent.json")
    with pytest.raises(BaseModelError, match="is not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BaseModelError, match="is not a file"):
        read(tmp_path / "pipe")
    monkeypatch.setattr(json_objects, "MAX_JSON_BYTES", 10)
    (tmp_path / "large.json").write_text('{"a": "12345678"}')
    with pytest.raises(BaseModelError, match="has 17 bytes; expected a JSON file of at most 10"):
        read(tmp_path / "large.json")
