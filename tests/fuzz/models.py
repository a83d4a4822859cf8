"""Folders of base models with one file damaged; opening one gives a model or a `UserError`, and nothing else.

A case copies a tiny model, damages one of its files (a key removed, a value of another kind, a cut, flipped bits, bytes
of nonsense), and does with it what `generate` does before it speaks: configuration, text tokenizer, weights.
"""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vibevoice_finetune.base_model.load import load_for_generation, open_base_model, with_special_tokens
from vibevoice_finetune.base_model.processor import write_native_files
from vibevoice_finetune.base_model.random_model import write_random_model
from vibevoice_finetune.base_model.tensor_names import to_native
from vibevoice_finetune.base_model.tokenizer import load_tokenizer, special_tokens
from vibevoice_finetune.base_model.weights import index_weights, read_tensors, write_weights
from vibevoice_finetune.data.prompt import generation_prompt
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.errors import UserError

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "64", "3-3", "<|vision_pad|>", "\ud800", "../..", "/etc/passwd", "\x1b[31m", "a" * 5000),
    *([], [None], [1, 2], [[1]], [-1], ["2"], {}, {"a": 1}, {"content": "x"}, [10**12], [0, 0]),
)
FILES = (
    *("config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"),
    *("model.safetensors.index.json", "generation_config.json", "processor_config.json"),
)


@dataclass(frozen=True)
class Model:
    """A whole model folder, and the files of it that are damaged in turn."""

    folder: Path
    files: tuple[str, ...]


def make_models(folder: Path) -> tuple[Model, Model]:
    """A tiny model in the original layout and the same, sharded, in the native one."""
    original = write_random_model(folder / "original")
    opened = open_base_model(str(original))
    tokenizer = load_tokenizer(opened)
    opened = with_special_tokens(opened, special_tokens(tokenizer))
    native = folder / "native"
    index = index_weights(original, opened.layout)
    write_weights(native, ((to_native(stored.name), tensor) for stored, tensor in _stored(index)), 2_000_000)
    write_native_files(native, opened.config, tokenizer)
    (native / "config.json").write_text(opened.config.to_json_string(use_diff=False), encoding="utf-8")
    return tuple(  # type: ignore[return-value]
        Model(place, tuple(name for name in FILES if (place / name).is_file())) for place in (original, native)
    )


def _stored(index: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    for name, tensor in read_tensors(index.tensors):
        yield index.tensors[name], tensor


def use(folder: Path) -> bool:
    """What `generate` does before it speaks; whether it went well rather than being refused with a message."""
    try:
        model = open_base_model(str(folder))
        tokenizer = load_tokenizer(model)
        special = special_tokens(tokenizer)
        model = with_special_tokens(model, special)
        encode = partial(tokenizer.encode, add_special_tokens=False)
        ids, _ = generation_prompt(encode, special, parse_script("Speaker 0: Hi, you.", "here"), [])
        assert ids.max() < model.config.vocab_size
        load_for_generation(model, torch.float32, "cpu")
    except UserError as error:
        message = str(error)
        assert 0 < len(message) < 20_000
        assert "\n" not in message, "a message of several lines"
        assert "\x1b" not in message, "a message that colours the terminal"
        return False
    return True


@contextmanager
def damaged(model: Model, name: str, content: bytes) -> Iterator[Path]:
    """The model with other content in one file, for a while."""
    path = model.folder / name
    whole = path.with_suffix(".whole")
    shutil.copy2(path, whole)
    try:
        path.write_bytes(content)
        yield model.folder
    finally:
        whole.replace(path)


def damage(content: bytes, is_json: bool, rng: random.Random) -> bytes:
    """One damage of a file: three of four in the meaning of JSON, the rest in the bytes."""
    if is_json and rng.random() < 0.75:
        return _json_damage(json.loads(content), rng)
    kind = rng.randrange(4)
    data = bytearray(content)
    at = rng.randrange(max(1, min(len(data), 4096 if rng.random() < 0.7 else len(data))))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[at : at + 8] = rng.randbytes(8)
    else:
        del data[at : at + rng.choice([1, 8, 100])]
    return bytes(data)


def _json_damage(value: Any, rng: random.Random) -> bytes:
    value = copy.deepcopy(value)
    places = [place for place in _places(value) if len(place) < 5]
    # Large vocabularies would otherwise take nearly all of the damage.
    depth = rng.randrange(4)
    *way, last = rng.choice([place for place in places if len(place) <= depth] or places)
    inner = value
    for step in way:
        inner = inner[step]
    if rng.random() < 0.25:
        del inner[last]
    elif rng.random() < 0.2 and isinstance(inner[last], int | float):
        inner[last] = rng.choice([inner[last] + 1, inner[last] * 2, -inner[last], str(inner[last]), [inner[last]]])
    else:
        inner[last] = rng.choice(VALUES)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to every value inside; of a list or object, the first hundred."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, item in list(inner)[:100]:
        yield (*way, step)
        yield from _places(item, (*way, step))
