"""Let a base model and its adapters say the same texts with the same voices and seeds; what exists is not made again.

A piece of audio is known by a digest of all that it depends on: base model, adapter, text, voices, seed and the
settings of generation. It is written as it is made, so a run that was stopped goes on where it was, and several
evaluations share what they have in common.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from vibevoice_finetune.adapters.read import ADAPTER_FILES
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ
from vibevoice_finetune.base_model.hub import locate
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.files.atomic import write_json, writing_file
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    Speech,
    generate,
    load_speech_model,
)
from vibevoice_finetune.generation.prompts import SpeechModel
from vibevoice_finetune.generation.scripts import Script

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Voice:
    """A model that is judged.

    Attributes:
        name: in the report, such as "base" or "checkpoint-200".
        adapter: a folder or a Hub id; None for the base model.
    """

    name: str
    adapter: str | None = None


@dataclass(frozen=True)
class Said:
    """One take of one row.

    Attributes:
        voice: name of the model.
        row: number of the row.
        seed: of the take.
        audio: the file; None if the model said nothing.
        ended: whether it ended by itself.
        fault: why there is no audio; empty if there is.
        seconds: of work for it, its share of the batch.
        duration_sec: of the audio.
        first_audio_sec: from the start of its batch to its first audio; None if that was not measured.
    """

    voice: str
    row: int
    seed: int
    audio: Path | None
    ended: bool
    fault: str
    seconds: float
    duration_sec: float
    first_audio_sec: float | None = None

    def samples(self) -> Floats:
        """The audio at 24 kHz, (N,); nothing where there is none."""
        if self.audio is None:
            return np.zeros(0, dtype=np.float32)
        samples: Floats = soundfile.read(self.audio, dtype="float32")[0]
        return samples


Progress = Callable[[int, int], None]
"""Takes done and takes in all."""

WithModel = Callable[[Voice, str, Callable[[], SpeechModel]], None]
"""Told of each model once its takes are there: which, what identifies it, and how to have it in memory."""


def say_all(
    model: ModelSource,
    voices: Sequence[Voice],
    rows: Sequence[Row],
    seeds: Sequence[int],
    folder: Path,
    settings: GenerationRequest,
    progress: Progress | None = None,
    with_model: WithModel | None = None,
) -> list[Said]:
    """Let every model say every row with every seed.

    Args:
        model: the base model.
        voices: the models, each the base with or without an adapter.
        rows: what is said.
        seeds: one take each.
        folder: where audio is kept.
        settings: guidance, steps, length and batch size; its scripts and model are not used.
        progress: told after each take.
        with_model: for what else is asked of each model while it is in memory.

    Raises:
        UserError: a model or an adapter cannot be loaded.
    """
    total = len(voices) * len(rows) * len(seeds)
    found: list[Said] = []
    for voice in voices:
        source = replace(model, adapter=voice.adapter)
        identity = _identity(source, settings)
        wanted = [
            (number, seed, folder / f"{_digest(identity, row, seed)}.json")
            for seed in seeds
            for number, row in enumerate(rows)
        ]
        missing = [one for one in wanted if not one[2].is_file()]
        done = len(found) + len(wanted) - len(missing)
        if progress is not None:
            progress(done, total)
        speaker = cache(partial(load_speech_model, source))
        for seed in seeds if missing else ():
            own = [(rows[number], path) for number, other, path in missing if other == seed]
            for _ in _say(replace(settings, model=speaker(), seed=seed), own):
                done += 1
                if progress is not None:
                    progress(done, total)
        if with_model is not None:
            with_model(voice, hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24], speaker)
        del speaker
        found += [_read(voice.name, number, seed, path) for number, seed, path in wanted]
    return found


def _say(request: GenerationRequest, rows: Sequence[tuple[Row, Path]]) -> Iterator[None]:
    """Say rows batch by batch and write each take with its record, which comes last."""
    for first in range(0, len(rows), request.batch_size):
        batch = rows[first : first + request.batch_size]
        scripts = tuple(script_of(row) for row, _ in batch)
        started_sec = time.monotonic()
        first_audio: list[float] = []

        def heard(_seconds: float, times: list[float] = first_audio, since: float = started_sec) -> None:
            if not times:
                times.append(time.monotonic() - since)

        found: Generation = generate(replace(request, scripts=scripts), on_audio=heard)
        for (_, path), speech in zip(batch, found.speeches, strict=True):
            _write(path, speech, found.seconds / len(batch), first_audio[0] if first_audio else None)
            yield


def script_of(row: Row) -> Script:
    """What generation is asked to say."""
    return Script(parse_script(row.text, row.where), tuple(row.voice_prompts or ()), row.where)


def _write(path: Path, speech: Speech, seconds: float, first_audio_sec: float | None) -> None:
    if len(speech.waveform_N):
        with (
            writing_file(path.with_suffix(".wav")) as staging,
            soundfile.SoundFile(staging, "w", SAMPLING_RATE_HZ, 1, "FLOAT", format="WAV") as file,
        ):
            file.write(speech.waveform_N)
    write_json(
        path,
        {
            "audio": path.with_suffix(".wav").name if len(speech.waveform_N) else None,
            "ended": speech.ended,
            "fault": speech.fault,
            "seconds": round(seconds, 3),
            "duration_sec": round(speech.duration_sec, 3),
            "first_audio_sec": None if first_audio_sec is None else round(first_audio_sec, 3),
        },
    )


def _read(voice: str, number: int, seed: int, path: Path) -> Said:
    said = json.loads(path.read_text(encoding="utf-8"))
    audio = None if said["audio"] is None else path.with_name(said["audio"])
    first = said.get("first_audio_sec")
    return Said(voice, number, seed, audio, said["ended"], said["fault"], said["seconds"], said["duration_sec"], first)


def _identity(source: ModelSource, settings: GenerationRequest) -> list[object]:
    files: Iterable[Path] = ()
    if source.adapter is not None:
        folder, _ = locate(source.adapter, ADAPTER_FILES, source.cache_dir)
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin"))
    adapter = hashlib.sha256()
    for file in files:
        adapter.update(hashlib.sha256(file.read_bytes()).digest())
    base = source.name_or_path
    stamp = sorted((p.name, p.stat().st_size) for p in Path(base).glob("*.safetensors")) if Path(base).is_dir() else []
    return [
        *(str(Path(base).resolve()) if Path(base).is_dir() else base, stamp, adapter.hexdigest()),
        *(source.adapter_scale, str(source.dtype), settings.cfg_scale, settings.num_diffusion_steps),
        settings.max_length_sec,
    ]


def _digest(identity: list[object], row: Row, seed: int) -> str:
    voices = [voice.digest() for voice in row.voice_prompts or ()]
    return hashlib.sha256(json.dumps([identity, row.text, voices, seed]).encode()).hexdigest()[:24]
