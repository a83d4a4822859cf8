"""The `generate` command: words of a command line in, audio files out.

Why: the only place of generation that knows flags, files and a terminal; what it asks for and gets is in
`generation/generate.py`. Everything that can be refused without the model is refused before it is loaded.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from vibevoice_finetune.audio.source import (
    SAMPLING_RATE_HZ,
    WRITTEN_FORMATS,
    AudioSource,
    load_audio,
    parse_audio,
    write_audio,
)
from vibevoice_finetune.data.prompt import shorten
from vibevoice_finetune.errors import ArgumentError, UserError, require
from vibevoice_finetune.generation.generate import (
    Generation,
    GenerationRequest,
    ModelSource,
    generate,
    load_speech_model,
    voice_warnings,
)
from vibevoice_finetune.generation.scripts import Script, read_scripts, script_from_text

DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LINE_EVERY_SEC = 10.0


@dataclass(frozen=True, eq=False)
class Order:
    """A parsed command line.

    Attributes:
        request: what is to be said; its model is still to be loaded.
        source: that model.
        outputs: a file for each script.
    """

    request: GenerationRequest
    source: ModelSource
    outputs: tuple[Path, ...]


def generate_files(words: list[str]) -> None:
    """Run `generate` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, the scripts, the voices, the model or the adapter; or nothing was said.
    """
    order = parse(words)
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


def parse(words: list[str]) -> Order:
    """Check a command line and read its scripts; no model yet.

    Raises:
        ArgumentError: a flag, a combination of flags or an output that cannot be.
        DataError: a script that cannot be said, a voice that is not there.
    """
    flags = _parser().parse_args(words)
    if not (flags.text or flags.script):
        raise ArgumentError('nothing to say: give --text "Hello." or --script FILE.')
    if flags.adapter is None and flags.adapter_scale != 1.0:
        raise ArgumentError("--adapter_scale needs --adapter: there is nothing to scale.")
    voices = [_voice(path) for path in flags.voice]
    texts = [text.replace("\\n", "\n") for text in flags.text]  # a shell has no easy way to type a new line
    scripts = [script_from_text(text, voices, f'--text "{shorten(" ".join(text.split()), 40)}"') for text in texts]
    for path in flags.script:
        scripts += read_scripts(Path(path), voices)
    outputs = output_paths(Path(flags.output), len(scripts))
    for path in outputs:
        check_writable(path)
    check_voices(scripts, voices)
    source = ModelSource(
        name_or_path=flags.model_name_or_path,
        adapter=flags.adapter,
        adapter_scale=flags.adapter_scale,
        dtype=None if flags.dtype is None else DTYPES[flags.dtype],
        device=flags.device,
        processor_name_or_path=flags.processor_name_or_path,
        cache_dir=None if flags.cache_dir is None else Path(flags.cache_dir),
    )
    request = GenerationRequest(
        model=source,
        scripts=tuple(scripts),
        cfg_scale=flags.cfg_scale,
        num_diffusion_steps=flags.num_diffusion_steps,
        seed=flags.seed,
        max_length_sec=flags.max_length_sec,
        batch_size=flags.batch_size,
    )
    return Order(request, source, outputs)


def output_paths(path: Path, count: int) -> tuple[Path, ...]:
    """A file for each script: the one that was named, or numbered from it.

    >>> [str(path) for path in output_paths(Path("out/a.wav"), 2)]
    ['out/a-1.wav', 'out/a-2.wav']
    """
    if count == 1:
        return (path,)
    width = len(str(count))
    return tuple(path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1))


def check_writable(path: Path) -> None:
    """Refuse an output that could not be written after minutes of generating.

    Raises:
        ArgumentError: another suffix than those that can be written, or no place to write to.
    """
    if path.suffix.lower() not in WRITTEN_FORMATS:
        found = f"ends in {path.suffix}" if path.suffix else "has no suffix"
        raise ArgumentError(f"--output {path}: {found}; name the file {', '.join(WRITTEN_FORMATS)}.")
    if path.is_dir():
        raise ArgumentError(f"--output {path}: is a folder; name a file in it.")
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


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing a page of usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (all flags: vibevoice-finetune generate --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="vibevoice-finetune generate",
        description="Say a text with a VibeVoice model, with or without an adapter.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="VibeVoice checkpoint: a folder or a Hub id, in either layout")
    add("--adapter", help="result of a fine-tune: OUT/lora, OUT/checkpoint-N or a Hub id")
    add(
        "--adapter_scale",
        type=float,
        default=1.0,
        help="how much of the adapter: 0 the base, 1 as trained (%(default)s)",
    )
    add(
        "--text",
        action="append",
        default=[],
        help='what is said, plain or with "Speaker N: " before each line; \\n is a new line; may be repeated',
    )
    add(
        "--script", metavar="FILE", nargs="+", action="extend", default=[], help=".txt or .json files with what is said"
    )
    add(
        "--voice",
        metavar="FILE",
        nargs="+",
        action="extend",
        default=[],
        help="a recording of each speaker, in ascending order of their numbers; for scripts that name none themselves",
    )
    add("--output", required=True, help="file to write, .wav, .flac or .ogg; numbered if there are several scripts")
    add("--cfg_scale", type=float, default=1.3, help="guidance by text and voice; 1 is none (%(default)s)")
    add("--num_diffusion_steps", type=int, default=10, help="solver steps a frame (%(default)s)")
    add("--seed", type=int, default=42, help="the same seed makes the same audio (%(default)s)")
    add("--max_length_sec", type=float, default=300.0, help="where a script without an end is cut, in s (%(default)s)")
    add("--batch_size", type=int, default=8, help="scripts that are spoken at the same time (%(default)s)")
    add("--dtype", choices=sorted(DTYPES), help="of the weights; by default bf16 on an NVIDIA GPU, else float32")
    add("--device", help="as torch names it; by default an NVIDIA GPU if there is one, else cpu")
    add("--processor_name_or_path", help="text tokenizer, a folder or a Hub id; by default the model's")
    add("--cache_dir", help="where downloads from the Hub are kept")
    return parser


def _voice(path: str) -> AudioSource:
    return parse_audio(path, None, "--voice")
