"""Samples of a run: at the right step, the model as it stands says the texts; they are kept, measured and shown.

Only the first of several processes speaks; the others wait for it, however long it takes, and hear the figures, so that
all decide alike.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor
from transformers import TrainerCallback

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio, write_audio
from vibevoice_finetune.errors import UserError, is_out_of_memory, require
from vibevoice_finetune.files.atomic import explaining_write_errors, remove_folder, remove_leftovers, write_file
from vibevoice_finetune.generation.generate import Speech
from vibevoice_finetune.latents.processes import Processes
from vibevoice_finetune.samples import page
from vibevoice_finetune.samples.figures import Floats, Judges, TakeFigures, together
from vibevoice_finetune.samples.loggers import Shown, show
from vibevoice_finetune.samples.picture import mel_picture, png
from vibevoice_finetune.samples.record import (
    Step,
    Take,
    digest,
    folder_of,
    read_step,
    read_steps,
    read_take,
    weights_digest,
    write_step,
    write_take,
)
from vibevoice_finetune.samples.script import SampleText
from vibevoice_finetune.samples.speak import SEED, Speaker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """What is said and by whom it is heard; known before training begins.

    Attributes:
        texts: what is said.
        judges: who measures; None: nobody, or another process does.
        judged_by: names of the judges; empty if nobody measures.
    """

    texts: tuple[SampleText, ...]
    judges: Judges | None
    judged_by: tuple[str, ...]


def check_packages() -> None:
    """Find out now what is not installed.

    Raises:
        UserError: says how to install it.
    """
    require("generate", "diffusers")
    require("evaluate", "matplotlib")
    require("evaluate", "jinja2")


class Samples:
    """Speaks, measures and shows.

    Args:
        folder: `OUT/samples`.
        plan: what is said.
        speaker: the model as it stands whenever it is asked.
        base: what identifies the model that is fine-tuned.
        processes: this process among those that train together.
    """

    def __init__(self, folder: Path, plan: SamplePlan, speaker: Speaker, base: str, processes: Processes) -> None:
        self._folder = folder
        self._plan = plan
        self._speaker = speaker
        self._processes = processes
        self._limit_sec = max(text.limit_sec() for text in plan.texts)
        self._what = [
            base,
            [[[turn.speaker, turn.text] for turn in text.script.turns] for text in plan.texts],
            [[voice.digest() for voice in text.script.voices] for text in plan.texts],
            SEED,
            round(self._limit_sec, 3),
        ]

    def at(self, step: int, weights: Mapping[str, Tensor], callbacks: Iterable[TrainerCallback]) -> Mapping[str, float]:
        """Make the samples of a step, unless they were made before with these weights.

        Args:
            step: of the optimizer.
            weights: the trained tensors as the model has them now.
            callbacks: of the trainer; its loggers are among them.

        Returns:
            Their figures, in all processes; empty if nobody measures.

        Raises:
            UserError: a file cannot be written.
        """
        return self._by_the_first(lambda: self._at(step, weights, callbacks))

    def _by_the_first(self, work: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        outcome: Mapping[str, float] | UserError | None = None
        if self._processes.index == 0:
            try:
                with explaining_write_errors(self._folder):
                    outcome = work()
            except UserError as error:
                if self._processes.count == 1:
                    raise
                outcome = error
        first: Mapping[str, float] | UserError = self._processes.gather(outcome)[0]
        if isinstance(first, UserError):
            raise first
        return first

    def _at(
        self, step: int, weights: Mapping[str, Tensor], callbacks: Iterable[TrainerCallback]
    ) -> Mapping[str, float]:
        said_key = digest([self._what, weights_digest(weights)])
        key = digest([said_key, self._plan.judged_by])
        found = read_step(self._folder, step, key)
        if found is None:
            found = self._make(step, said_key, key, callbacks)
        self._write_real_clips()
        write_file(self._folder / page.PAGE, page.page(self._plan.texts, read_steps(self._folder, step)))
        return found.figures

    def _make(self, step: int, said_key: str, key: str, callbacks: Iterable[TrainerCallback]) -> Step:
        folder = folder_of(self._folder, step)
        count = len(self._plan.texts)
        takes = {number: take for number in range(count) if (take := read_take(folder, number + 1, said_key))}
        if not takes and folder.is_dir():
            remove_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        missing = [number for number in range(count) if number not in takes]
        if missing:
            takes |= self._say(folder, missing, said_key)
        audio = {number: _samples_of(folder, take) for number, take in takes.items()}
        figures: Mapping[str, float] = {}
        if self._plan.judges is not None:
            measured = {
                number: self._plan.judges.judge(number, self._plan.texts[number], audio[number], ended=take.ended)
                for number, take in takes.items()
            }
            takes = {number: _with_figures(take, measured[number]) for number, take in takes.items()}
            figures = together(list(measured.values()))
        show(callbacks, step, [self._shown(number, audio[number]) for number in sorted(takes) if len(audio[number])])
        made = Step(step, key, tuple(takes[number] for number in range(count)), figures)
        write_step(self._folder, made)
        return made

    def _say(self, folder: Path, numbers: list[int], key: str) -> dict[int, Take]:
        """Say texts and write each with its picture as soon as it is said."""
        takes: dict[int, Take] = {}

        def keep(position: int, speech: Speech) -> None:
            number = numbers[position]
            takes[number] = _write(folder, number + 1, speech)
            write_take(folder, number + 1, key, takes[number])

        fault = ""
        try:
            self._speaker.say([self._plan.texts[number] for number in numbers], self._limit_sec, keep)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fault = "there is not enough memory for the speech tokenizers beside the training"
        for number in numbers:
            if number not in takes:
                takes[number] = Take(None, None, ended=False, fault=fault, duration_sec=0.0)
        faults = [take.fault for take in takes.values() if take.fault]
        if faults:
            logger.warning("%d of %d samples could not be spoken: %s", len(faults), len(numbers), faults[0])
        return takes

    def _shown(self, number: int, samples: Floats) -> Shown:
        text = self._plan.texts[number].text
        return Shown(f"samples/{number + 1}", text, samples, mel_picture(samples))

    def _write_real_clips(self) -> None:
        """The recordings beside which samples are heard; written once."""
        for number, text in enumerate(self._plan.texts, start=1):
            if text.real is not None:
                _write_once(self._folder / page.REAL / f"{number}.flac", text.real)
            for voice in text.script.voices[:1]:
                _write_once(self._folder / page.VOICE / f"{number}.flac", voice)


def _write(folder: Path, number: int, speech: Speech) -> Take:
    if not len(speech.waveform_N):
        return Take(None, None, speech.ended, speech.fault or "the model said nothing", 0.0)
    audio, picture = f"{number}.flac", f"{number}.png"
    write_audio(folder / audio, speech.waveform_N, SAMPLING_RATE_HZ)
    write_file(folder / picture, png(mel_picture(speech.waveform_N)))
    return Take(audio, picture, speech.ended, speech.fault, round(speech.duration_sec, 3))


def _write_once(path: Path, source: AudioSource) -> None:
    picture = path.with_suffix(".png")
    if not picture.is_file():
        samples = load_audio(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, samples, SAMPLING_RATE_HZ)
        write_file(picture, png(mel_picture(samples)))


def _samples_of(folder: Path, take: Take) -> Floats:
    if take.audio is None:
        return np.zeros(0, dtype=np.float32)
    samples: Floats = soundfile.read(folder / take.audio, dtype="float32")[0]
    return samples


def _with_figures(take: Take, figures: TakeFigures) -> Take:
    return replace(
        take,
        heard=figures.heard,
        word_error=figures.words.rate,
        similarity=figures.similarity,
        signs=figures.signs,
    )
