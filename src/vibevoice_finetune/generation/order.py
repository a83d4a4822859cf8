"""What one `generate` command asks for, checked before the model is loaded, and the files that come of it.

In: scripts, voices, places to write to. Out: audio files, written as soon as they are spoken, and what is said of them
on the terminal. What is asked of the model is in `generation/generate.py`.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio, write_audio
from vibevoice_finetune.audio.waveform import WRITTEN_FORMATS
from vibevoice_finetune.errors import ArgumentError, UserError, require, shown
from vibevoice_finetune.files.atomic import check_writable
from vibevoice_finetune.generation.generate import (
    GenerationRequest,
    ModelSource,
    Speech,
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
        request: what to speak; its model is not loaded yet.
        source: that model.
        outputs: a file for each script.
    """

    request: GenerationRequest
    source: ModelSource
    outputs: tuple[Path, ...]


def carry_out(order: Order) -> None:
    """Load the model, speak, and write the files.

    Raises:
        UserError: the model or the adapter cannot be loaded, or a file cannot be written; after all others were
            written, also for scripts that could not be spoken.
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
        writer = _Writer(order, progress)
        generation = generate(replace(order.request, model=speaker), progress.update, writer.take)
    if generation.real_time_factor < float("inf"):
        audio_sec = sum(speech.duration_sec for speech in generation.speeches)
        console.print(
            f"{audio_sec:.1f} s of audio in {generation.seconds:.1f} s: real-time factor "
            f"{generation.real_time_factor:.2f}"
        )
    writer.check()


def output_paths(path: Path, count: int) -> tuple[Path, ...]:
    """A file for each script: the one that was named, or numbered from it.

    >>> [str(path) for path in output_paths(Path("out/a.wav"), 2)]
    ['out/a-1.wav', 'out/a-2.wav']
    """
    if count == 1:
        return (path,)
    width = len(str(count))
    return tuple(path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1))


def check_outputs(outputs: Sequence[Path], scripts: Sequence[Script], *, overwrite: bool) -> None:
    """Refuse outputs that could not be written after minutes of generating, or that would replace what is there.

    Raises:
        ArgumentError: another suffix than those that can be written, no folder to write to, a file that is there
            already, or one that is a voice of the scripts.
        WriteError: the folder cannot be written to.
    """
    voices = {voice.path for script in scripts for voice in script.voices if voice.path is not None}
    for path in outputs:
        try:
            _check_output(path, voices, overwrite)
        except OSError as error:
            raise ArgumentError(
                f"--output {shown(path)}: cannot be used ({error.strerror}); name another file."
            ) from error
    for folder in {path.parent for path in outputs}:
        check_writable(folder, "--output")


def _check_output(path: Path, voices: set[Path], overwrite: bool) -> None:
    name = f"--output {shown(path)}"
    if path.suffix.lower() not in WRITTEN_FORMATS:
        found = f"ends in {shown(path.suffix)}" if path.suffix else "has no suffix"
        raise ArgumentError(f"{name}: {found}; name the file {', '.join(WRITTEN_FORMATS)}.")
    if path.is_dir():
        raise ArgumentError(f"{name}: is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise ArgumentError(f"{name}: there is no folder {shown(path.parent)}; make it, or name another.")
    if not path.exists():
        return
    if any(path.samefile(voice) for voice in voices if voice.exists()):
        raise ArgumentError(f"{name}: is a voice of this script, and would be lost; name another file.")
    if not path.is_file():
        raise ArgumentError(f"{name}: is not a file that can be replaced; name another.")
    if not overwrite:
        raise ArgumentError(f"{name}: exists already; name another file, or replace it with --overwrite.")


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


class _Writer:
    """Writes each file as soon as its script is spoken, so that nothing is lost if a later one fails."""

    def __init__(self, order: Order, progress: "GenerationProgress") -> None:
        self._order = order
        self._progress = progress
        self._faults: list[str] = []

    def take(self, number: int, speech: Speech) -> None:
        """Write what was made of a script, and say so."""
        if speech.fault:
            self._faults.append(speech.fault)
            if len(self._order.outputs) > 1:
                self._progress.say(f"not spoken: {speech.fault}", sys.stderr)
            return
        path = self._order.outputs[number]
        write_audio(path, speech.waveform_N, SAMPLING_RATE_HZ)
        cut = "" if speech.ended else "; cut off there, the model had not ended: see --max_length_sec"
        self._progress.say(f"{shown(path)}: {speech.duration_sec:.1f} s{cut}", sys.stdout)

    def check(self) -> None:
        """Raise a UserError if there is a script of which no file was written."""
        count = len(self._order.outputs)
        if self._faults and count == 1:
            raise UserError(self._faults[0])
        if self._faults:
            rest = "no file was written" if len(self._faults) == count else "the files of the others are written"
            raise UserError(f"{len(self._faults)} of {count} scripts could not be spoken, see above; {rest}.")


class GenerationProgress:
    """How much audio there is so far, on standard error: a line that changes in a terminal, else one every ten seconds.

    No bar, because nobody knows before how long a script will be.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_sec = self._last_line_sec = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._live = None
        if sys.stderr.isatty():
            self._live = Progress(*columns, console=console, transient=True, redirect_stdout=False)
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

    def say(self, line: str, stream: TextIO) -> None:
        """Print a line above the one that changes."""
        if self._live is not None:
            self._live.stop()
        print(line, file=stream, flush=True)  # the result
        if self._live is not None:
            self._live.start()

    def update(self, audio_sec: float) -> None:
        """Show how many seconds of audio there are."""
        now_sec = time.monotonic()
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description=self._said(audio_sec, now_sec))
        elif now_sec - self._last_line_sec >= LINE_EVERY_SEC:
            self._last_line_sec = now_sec
            self._console.print(self._said(audio_sec, now_sec))

    def _said(self, audio_sec: float, now_sec: float) -> str:
        factor = f", real-time factor {(now_sec - self._started_sec) / audio_sec:.2f}" if audio_sec else ""
        return f"{audio_sec:.1f} s of audio{factor}"
