"""What one `generate` command asks for, checked before the model is loaded, and the files that come of it.

In: scripts, voices, places to write to. Out: audio files, written as soon as they are spoken, and what is said of them
on the terminal. What is asked of the model is in `generation/generate.py`.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, WRITTEN_FORMATS, AudioSource, load_audio, write_audio
from vibevoice_finetune.errors import ArgumentError, UserError, require
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    generate,
    load_speech_model,
    voice_warnings,
)
from vibevoice_finetune.generation.scripts import Script

DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LINE_EVERY_SEC = 10.0


@dataclass(frozen=True, eq=False)
class Order:
    """What a command line asks for.

    Attributes:
        request: what is to be said; its model is still to be loaded.
        source: that model.
        outputs: a file for each script.
    """

    request: GenerationRequest
    source: ModelSource
    outputs: tuple[Path, ...]


def carry_out(order: Order) -> None:
    """Load the model, speak, and write the files.

    Raises:
        UserError: the model or the adapter cannot be loaded, a voice cannot be read; or nothing was said.
    """
    require("generate", "diffusers")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    speaker = load_speech_model(order.source)
    if speaker.adapter is not None:
        for line in speaker.adapter.lines():
            console.print(line, markup=False)
    warnings = speaker.adapter.warnings if speaker.adapter is not None else ()
    for warning in (*warnings, *voice_warnings(speaker.adapter, order.request.scripts)):
        console.print(f"warning: {warning}", markup=False)
    with GenerationProgress(console) as progress:
        generation = generate(replace(order.request, model=speaker), progress.update)
    write(generation, order, console)


def output_paths(path: Path, count: int) -> tuple[Path, ...]:
    """A file for each script: the one that was named, or numbered from it.

    >>> [str(path) for path in output_paths(Path("out/a.wav"), 2)]
    ['out/a-1.wav', 'out/a-2.wav']
    """
    if count == 1:
        return (path,)
    width = len(str(count))
    return tuple(path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1))


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Refuse an output that could not be written after minutes of generating.

    Raises:
        ArgumentError: another suffix than those that can be written, or no place to write to.
    """
    if path.suffix.lower() not in WRITTEN_FORMATS:
        found = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        raise ArgumentError(f"--output {path}: {found}; name the file {', '.join(WRITTEN_FORMATS)}.")
    if path.is_dir():
        raise ArgumentError(f"--output {path}: is a folder; name a file in it.")
    if path.exists() and not overwrite:
        raise ArgumentError(f"--output {path}: is there already; name another file, or replace it with --overwrite.")
    if not path.parent.is_dir():
        raise ArgumentError(f"--output {path}: there is no folder {path.parent}; make it, or name another.")
    if not os.access(path.parent, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ArgumentError(f"--output {path}: cannot be written; check its permissions, or name another place.")


def check_voices(scripts: Sequence[Script], given: Sequence[AudioSource]) -> None:
    """Refuse voices that cannot be used, and those given on the command line that nobody uses.

    Raises:
        ArgumentError: all scripts name voices of their own.
        AudioError: a voice cannot be decoded, or is silent.
    """
    used = {voice for script in scripts for voice in script.voices}
    if used.isdisjoint(given) and given:
        raise ArgumentError("--voice: every script names voices of its own; leave the flag out.")
    for voice in used:
        load_audio(voice)


def write(generation: Generation, order: Order, console: Console) -> None:
    """Write the files and say what became of each script, and how fast it was.

    Raises:
        UserError: for a script of which nothing was said, after all others were written.
    """
    silent: list[Script] = []
    for script, speech, path in zip(order.request.scripts, generation.speeches, order.outputs, strict=True):
        if speech.num_frames == 0:
            silent.append(script)
            continue
        write_audio(path, speech.waveform_N, SAMPLING_RATE_HZ)
        cut = "" if speech.ended else "; cut off there, the model had not ended: see --max_length_sec"
        print(f"{path}: {speech.duration_sec:.1f} s{cut}")  # noqa: T201  # the result
    if generation.real_time_factor < float("inf"):
        audio_sec = sum(speech.duration_sec for speech in generation.speeches)
        console.print(
            f"{audio_sec:.1f} s of audio in {generation.seconds:.1f} s: real-time factor "
            f"{generation.real_time_factor:.2f}"
        )
    if silent:
        names = ", ".join(script.where for script in silent)
        raise UserError(
            f"{names}: the model said nothing, so no file was written; try another --seed, --cfg_scale or --voice."
        )


class GenerationProgress:
    """How much audio there is so far, on standard error: a line that changes in a terminal, else one every ten seconds.

    No bar, because nobody knows before how long a script will be.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_sec = self._last_line_sec = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._live = Progress(*columns, console=console, transient=True) if sys.stderr.isatty() else None
        self._task = None if self._live is None else self._live.add_task("reading the prompt")

    def __enter__(self) -> "GenerationProgress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, audio_sec: float) -> None:
        """Say that there are so many seconds of audio."""
        now_sec = time.monotonic()
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=self._said(audio_sec, now_sec))
        elif now_sec - self._last_line_sec >= LINE_EVERY_SEC:
            self._last_line_sec = now_sec
            self._console.print(self._said(audio_sec, now_sec))

    def _said(self, audio_sec: float, now_sec: float) -> str:
        factor = f", real-time factor {(now_sec - self._started_sec) / audio_sec:.2f}" if audio_sec else ""
        return f"{audio_sec:.1f} s of audio{factor}"
