"""What a `train` command line would need, before anything large is downloaded or encoded.

In come the flags of `train`; out go the peak of memory with what it is made of, and the number of steps. Of the model
only its configuration is read (of the released models not even that), of recordings only the headers.
"""

import io
import math
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import soundfile
from transformers import VibeVoiceConfig

from vibevoice_finetune.adapters.start import taking_over
from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.audio.source import AudioSource, num_frames
from vibevoice_finetune.base_model.config import config_to_native
from vibevoice_finetune.base_model.load import BaseModel, open_base_model
from vibevoice_finetune.base_model.parts import ModelFacts, facts
from vibevoice_finetune.base_model.random_model import Size, original_config
from vibevoice_finetune.base_model.tokenizer import load_tokenizer
from vibevoice_finetune.data.mix import Mix
from vibevoice_finetune.data.prompt import Encode, SpecialTokens, generation_prompt
from vibevoice_finetune.data.rows import BadRows
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.data.splits import read_training_rows
from vibevoice_finetune.data.voice_prompts import PlannedRow, make_requests, plan_rows
from vibevoice_finetune.latents.store import LatentStore, Segment
from vibevoice_finetune.memory.count import MicroBatch, measure
from vibevoice_finetune.memory.estimate import (
    Estimate,
    estimate,
    largest,
    micro_batches,
    optimizer_steps,
    recipe_of,
)

RELEASED: dict[str, Size] = {
    "microsoft/VibeVoice-1.5B": "1.5b",
    "microsoft/VibeVoice-Large": "7b",
    "aoi-ot/VibeVoice-Large": "7b",
}
"""Models whose configuration is known without asking the Hub."""

BYTES_A_TOKEN = 4
"""Of English text in Qwen2.5's tokenizer, about; taken where no tokenizer is at hand."""

CHARACTERS_A_SEC = 15
"""Of English speech."""

PLACEHOLDER_TOKENS = SpecialTokens(speech_start=0, speech_end=1, frame=2, end_of_text=3)
"""Lengths do not depend on ids."""


@dataclass(frozen=True)
class Workload:
    """What is trained on: rows, or what is assumed of them.

    Attributes:
        rows: planned rows; empty if they are not known.
        mix: shares of several data sets.
        notes: what was assumed, for the reader.
    """

    rows: list[PlannedRow]
    mix: Mix | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """What a command line would need.

    Attributes:
        memory: at its peak.
        rows: training rows; zero if they are not known.
        steps: optimizer steps of the whole run; zero if rows are not known.
        steps_an_epoch: the same of an epoch.
        notes: what was assumed, for the reader.
    """

    memory: Estimate
    rows: int
    steps: int
    steps_an_epoch: int
    notes: tuple[str, ...]


def predict(arguments: Arguments, clip_sec: float = 10.0, processes: int = 1) -> Prediction:
    """What the flags of a `train` command line come to; on a GPU, unless they hold `--use_cpu True`.

    Args:
        arguments: the parsed command line.
        clip_sec: length of the clips where they are not known yet.
        processes: how many would train together; the memory is that of one.

    Raises:
        BaseModelError: the model's configuration cannot be read.
        DataError: rows cannot be used.
    """
    arguments, _ = taking_over(arguments)
    config, checkpoint = _model(arguments)
    model_facts = facts(config)
    workload = _workload(arguments, clip_sec, model_facts, checkpoint)
    size = measure(config)
    recipe = recipe_of(arguments, "cpu" if arguments.given.get("use_cpu") else "cuda", processes)
    if not workload.rows:
        memory = estimate(size, recipe, _assumed(arguments, clip_sec, model_facts), encodes=True)
        return Prediction(memory, 0, 0, 0, workload.notes)
    memory = largest(size, recipe, micro_batches(arguments, workload.rows, processes, workload.mix), encodes=True)
    steps, an_epoch = optimizer_steps(arguments, workload.rows, processes, workload.mix)
    return Prediction(memory, len(workload.rows), steps, an_epoch, workload.notes)


def _model(arguments: Arguments) -> tuple[VibeVoiceConfig, BaseModel | None]:
    """The configuration, and the checkpoint if it was opened for that."""
    name = arguments.model.model_name_or_path
    if name in RELEASED and not Path(name).is_dir():
        return config_to_native(original_config(RELEASED[name]), name), None
    cache_dir = Path(arguments.model.cache_dir) if arguments.model.cache_dir else None
    checkpoint = open_base_model(name, cache_dir)
    return checkpoint.config, checkpoint


def _workload(arguments: Arguments, clip_sec: float, model_facts: ModelFacts, checkpoint: BaseModel | None) -> Workload:
    data, bad_rows = arguments.data, BadRows(arguments.data.on_bad_row)
    if not all(Path(name).is_dir() for name in data.dataset_name or ()):
        return Workload([], None, (f"rows are not known: clips of {clip_sec:g} s assumed (--clip_sec)",))
    sets, _ = read_training_rows(arguments, None, bad_rows)
    requests = [
        make_requests(
            each.rows,
            seed=arguments.loop.draw_seed,
            cuts_per_clip=arguments.data.prompt_cuts_per_clip,
            normalize_targets=arguments.data.normalize_targets,
            bad_rows=bad_rows,
        )
        for each in sets
    ]
    encode, note = _text_lengths(arguments, checkpoint)
    lengths = HeaderLengths(model_facts, clip_sec)
    longest = min(arguments.data.max_length or model_facts.max_positions, model_facts.max_positions)
    # Planning asks the latent store for nothing but keys and lengths.
    planned = [
        plan_rows(found, cast(LatentStore, lengths), encode, PLACEHOLDER_TOKENS, longest, bad_rows)
        for found in requests
    ]
    bad_rows.check(sum(len(each.rows) for each in sets) + bad_rows.counts.total())
    notes = [note] if note else []
    if lengths.unread:
        notes.append(f"{lengths.unread:,} recordings whose header says no length: taken as {clip_sec:g} s")
    if bad_rows.summary():
        notes.append(f"left out: {bad_rows.summary()}")
    mix = None if data.shares is None else Mix(tuple(map(len, planned)), data.shares)
    return Workload([row for rows in planned for row in rows], mix, tuple(notes))


def _text_lengths(arguments: Arguments, checkpoint: BaseModel | None) -> tuple[Encode, str]:
    """The text tokenizer if it lies on this machine, else a stand-in with about as many tokens; and a note of that."""
    named = arguments.model.processor_name_or_path
    folder = Path(named) if named else checkpoint.folder if checkpoint else None
    if checkpoint is not None and folder is not None and any(folder.glob("tokenizer.json")):
        tokenizer = load_tokenizer(checkpoint, named)
        return partial(tokenizer.encode, add_special_tokens=False), ""
    return approximate_encode, f"no text tokenizer at hand: a token for {BYTES_A_TOKEN} bytes of text assumed"


def approximate_encode(text: str) -> list[int]:
    """As many ids as the text has tokens, about.

    >>> len(approximate_encode("The kettle was still warm."))
    7
    """
    return [0] * math.ceil(len(text.encode()) / BYTES_A_TOKEN)


@dataclass(eq=False)
class HeaderLengths:
    """Lengths of segments from the headers of their files; stands where planning asks the latent store.

    Attributes:
        model_facts: for the frame's length.
        unknown_sec: length that is assumed where a header says none.
        unread: recordings for which that was done.
    """

    model_facts: ModelFacts
    unknown_sec: float
    unread: int = 0
    _samples: dict[AudioSource, int] = field(default_factory=dict)
    _frames: dict[str, int] = field(default_factory=dict)

    def key(self, segment: Segment) -> str:
        """A name for the segment, the same for the same piece of the same source."""
        key = f"{id(segment.source)} {segment.cut}"
        if key not in self._frames:
            if segment.source not in self._samples:
                self._samples[segment.source] = self._measure(segment.source)
            samples = self._samples[segment.source]
            if segment.cut is not None:
                start, end = segment.cut.drawn(segment.source.label).span(samples, self.model_facts.hop_length)
                samples = end - start
            self._frames[key] = num_frames(samples, self.model_facts.hop_length)
        return key

    def num_frames(self, key: str) -> int:
        """Frames of a segment by its key."""
        return self._frames[key]

    def _measure(self, source: AudioSource) -> int:
        """Samples at the model's rate."""
        if source.array is not None:
            seconds = len(source.array) / (source.sampling_rate_hz or self.model_facts.sampling_rate_hz)
        else:
            try:
                file = str(source.path) if source.path is not None else io.BytesIO(source.data or b"")
                seconds = soundfile.info(file).duration
            except soundfile.LibsndfileError:
                self.unread += 1
                seconds = self.unknown_sec
        if source.span is not None:
            end_sec = seconds if source.span.end_sec is None else min(seconds, source.span.end_sec)
            seconds = end_sec - source.span.start_sec
        return max(1, round(seconds * self.model_facts.sampling_rate_hz))


def _assumed(arguments: Arguments, clip_sec: float, model_facts: ModelFacts) -> MicroBatch:
    """A micro-batch of clips of the assumed length, with a voice prompt of half of it, at most 15 s."""
    rate = model_facts.sampling_rate_hz / model_facts.hop_length
    frames, prompt = math.ceil(clip_sec * rate), math.ceil(min(clip_sec / 2, 15) * rate)
    text = "Speaker 0: " + "x" * math.ceil(clip_sec * CHARACTERS_A_SEC)
    ids, _ = generation_prompt(approximate_encode, PLACEHOLDER_TOKENS, parse_script(text, "assumed"), [prompt])
    tokens = len(ids) + frames + 2
    rows = arguments.loop.per_device_train_batch_size
    if arguments.data.max_tokens_per_batch is not None:
        rows = max(1, arguments.data.max_tokens_per_batch // tokens)
    return MicroBatch(rows, rows * tokens, rows * frames, labels=rows * (tokens - frames - prompt))
