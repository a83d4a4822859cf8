"""What a run has said so far: the folder `OUT/samples`, with a record for each sample and for each step.

    samples/index.html            the page                 samples/real/1.flac    the recordings of the texts
    samples/step-200/1.flac       what was said            samples/voice/1.flac   the voices that were given
    samples/step-200/1.png        its mel spectrogram
    samples/step-200/1.json       how it was made          samples/step-200/sample.json   the figures; written last

A record is known by a key, the digest of all that a sample depends on, weights included. A run that was killed and
goes on makes nothing again that has the same key.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.files.json_objects import object_or_empty

SAMPLES = "samples"
STEP_FILE = "sample.json"


@dataclass(frozen=True)
class Take:
    """One sample.

    Attributes:
        audio: name of the file beside the record; None if nothing was said.
        picture: likewise.
        ended: whether the model ended by itself.
        fault: why there is no audio; empty if there is.
        duration_sec: of the audio.
        heard: by the recogniser; None if nobody listened.
        word_error: errors per word, likewise.
        similarity: to the real voice, likewise.
        signs: what is wrong with it, likewise.
    """

    audio: str | None
    picture: str | None
    ended: bool
    fault: str
    duration_sec: float
    heard: str | None = None
    word_error: float | None = None
    similarity: float | None = None
    signs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """The samples of one step.

    Attributes:
        step: of the optimizer; 0 is before the first one.
        key: of all that they depend on.
        takes: one for each text.
        figures: as logged; empty if nobody listened.
    """

    step: int
    key: str
    takes: tuple[Take, ...]
    figures: Mapping[str, float]


def folder_of(samples: Path, step: int) -> Path:
    """Where the samples of a step lie."""
    return samples / f"step-{step}"


def write_take(folder: Path, number: int, key: str, take: Take) -> None:
    """Note that a sample was made; its files are there."""
    write_json(folder / f"{number}.json", {"key": key, **asdict(take)})


def read_take(folder: Path, number: int, key: str) -> Take | None:
    """A sample that was made before under this key."""
    found = object_or_empty(folder / f"{number}.json")
    return _take(found) if found.get("key") == key else None


def write_step(samples: Path, step: Step) -> None:
    """Close a step."""
    write_json(folder_of(samples, step.step) / STEP_FILE, asdict(step))


def read_step(samples: Path, step: int, key: str | None = None) -> Step | None:
    """A step that was closed before, under this key if one is given."""
    found = object_or_empty(folder_of(samples, step) / STEP_FILE)
    if not found or (key is not None and found.get("key") != key):
        return None
    try:
        return Step(found["step"], found["key"], tuple(map(_take, found["takes"])), found["figures"])
    except (KeyError, TypeError):
        return None


def read_steps(samples: Path, last: int) -> list[Step]:
    """All closed steps up to one, in order."""
    numbers = sorted(
        int(number)
        for folder in samples.glob("step-*")
        if (number := folder.name.removeprefix("step-")).isdecimal() and int(number) <= last
    )
    return [found for number in numbers if (found := read_step(samples, number)) is not None]


def digest(value: object) -> str:
    """Of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Of tensors with their names, to the last bit."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:24]


def _take(found: Mapping[str, Any]) -> Take:
    values = {field.name: found[field.name] for field in fields(Take)}
    return Take(**{**values, "signs": tuple(values["signs"])})
