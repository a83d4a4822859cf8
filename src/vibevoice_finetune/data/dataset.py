"""From rows to examples: which voice prompt a row gets, and every random draw of a training step.

Before the latent store is filled, `make_requests` parses the scripts and names the audio that must be encoded; after
it, `plan_rows` looks up the frame counts and checks lengths. `SpeechDataset` then turns a row into an `Example` by
reading latents and drawing noise. All draws come from a generator seeded by (seed, epoch, row), so that they do not
depend on workers, processes, batch size or where a run was stopped.

Shapes: F target frames, V voice-prompt frames, C acoustic dim, S semantic dim, K = ddpm_batch_mul.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.data.audio import AudioSource
from vibevoice_finetune.data.latents import LatentStore, RandomCut, Segment
from vibevoice_finetune.data.manifest import BadRows, Row
from vibevoice_finetune.data.prompt import (
    Encode,
    SpecialTokens,
    TokenSequence,
    Turn,
    check_voice_count,
    generation_prompt,
    num_speakers,
    parse_script,
    training_sequence,
    unconditional_sequence,
)
from vibevoice_finetune.errors import DataError

Floats = NDArray[np.float32]

CUT_STREAM, TRAIN_STREAM, EVAL_STREAM = range(3)
"""Last number of a seed: keeps cuts, training draws and evaluation draws apart."""


class PromptSource(StrEnum):
    """Where a row's voice prompts come from."""

    GIVEN = "given in the row"
    SPEAKER = "another clip of the speaker"
    CUT = "a cut of the clip itself"
    NONE = "none (several speakers, none given)"


@dataclass(frozen=True, eq=False)
class RowRequest:
    """A row whose script has been read, with the audio that it needs encoded.

    Attributes:
        where: file and line, or data set and row.
        turns: the script.
        speaker: the row's speaker label, if it has one.
        target: the audio to learn.
        prompts: the voice prompts in speaker order (GIVEN), the choices of a random cut (CUT), this clip as a prompt
            for the speaker's other rows (SPEAKER), or nothing.
        source: how to read `prompts`.
    """

    where: str
    turns: tuple[Turn, ...]
    speaker: str | None
    target: Segment
    prompts: tuple[Segment, ...]
    source: PromptSource

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Everything of this row that has to be in the latent store."""
        return (self.target, *self.prompts)


@dataclass(frozen=True)
class PlannedRow:
    """A row ready for training: what is said and where its latents lie.

    Attributes:
        where: file and line, or data set and row.
        turns: the script.
        target_key: key of the target's latents.
        target_frames: F.
        prompt_choices: every choice of voice prompts, one latent key a speaker; empty if the row never has any.
        num_tokens: tokens of the row with its longest choice of prompts.
        speaker: the row's speaker label, if it has one.
        source: where the prompts come from.
    """

    where: str
    turns: tuple[Turn, ...]
    target_key: str
    target_frames: int
    prompt_choices: tuple[tuple[str, ...], ...]
    num_tokens: int
    speaker: str | None
    source: PromptSource


@dataclass(frozen=True)
class Draw:
    """One visit of a row: what a sampler yields and `SpeechDataset` takes.

    A ghost is a row that a process runs without counting it, where the rows of a step do not suffice for all processes.
    """

    epoch: int
    row: int
    ghost: bool = False


@dataclass(frozen=True, eq=False)
class Example:
    """One row of a step with all its draws.

    Attributes:
        where: the row, for messages.
        ghost: whether the row's losses do not count.
        sequence: ids and positions.
        voice_mean_VC: acoustic means of the voice prompts, speakers in order.
        voice_jitter_VC: standard normal noise times one standard normal factor a clip.
        target_mean_FC: acoustic means of the target.
        target_jitter_FC: as `voice_jitter_VC`.
        target_semantic_FS: semantic features of the target.
        timestep_FK: diffusion timesteps.
        noise_FKC: diffusion noise.
    """

    where: str
    ghost: bool
    sequence: TokenSequence
    voice_mean_VC: Floats
    voice_jitter_VC: Floats
    target_mean_FC: Floats
    target_jitter_FC: Floats
    target_semantic_FS: Floats
    timestep_FK: NDArray[np.int64]
    noise_FKC: Floats


@dataclass(frozen=True)
class DrawSettings:
    """What the draws depend on besides the row.

    Attributes:
        seed: the run's data seed.
        ddpm_batch_mul: K, noise draws a frame.
        num_timesteps: length of the noise tables.
        voice_prompt_drop_rate: share of rows that lose their whole "Voice input" section.
        unconditional_rate: share of rows presented as the unconditional branch of guidance.
        evaluation: fixed draws, nothing dropped.
    """

    seed: int
    ddpm_batch_mul: int
    num_timesteps: int
    voice_prompt_drop_rate: float = 0.0
    unconditional_rate: float = 0.0
    evaluation: bool = False


def make_requests(
    rows: Sequence[Row], *, seed: int, cuts_per_clip: int, normalize_targets: bool, bad_rows: BadRows
) -> list[RowRequest]:
    """Read the scripts and say what audio each row needs.

    Voice prompts are, in this order: the row's own; another clip of its speaker; a random cut of the target. Rows of
    several speakers without prompts of their own get none.

    Raises:
        DataError: a script without speaker tags or with a wrong number of prompts, unless `bad_rows` skips those.
    """
    clips_of_speaker = Counter(row.speaker for row in rows)
    requests = []
    for index, row in enumerate(rows):
        try:
            turns = parse_script(row.text, row.where)
        except DataError as error:
            bad_rows.report(error, "no speaker tag")
            continue
        try:
            check_voice_count(len(row.voice_prompts or ()), num_speakers(turns), row.where)
        except DataError as error:
            bad_rows.report(error, "wrong number of prompts")
            continue
        source = _prompt_source(row, turns, clips_of_speaker)
        requests.append(
            RowRequest(
                where=row.where,
                turns=turns,
                speaker=row.speaker,
                target=Segment(row.audio, normalize=normalize_targets, cut=None, semantic=True),
                prompts=_prompt_segments(row, source, cuts_per_clip, (seed, index, CUT_STREAM)),
                source=source,
            )
        )
    return requests


def _prompt_source(row: Row, turns: tuple[Turn, ...], clips_of_speaker: Counter[str | None]) -> PromptSource:
    if row.voice_prompts:
        return PromptSource.GIVEN
    if num_speakers(turns) > 1:
        return PromptSource.NONE
    if row.speaker is not None and clips_of_speaker[row.speaker] > 1:
        return PromptSource.SPEAKER
    return PromptSource.CUT


def _prompt_segments(row: Row, source: PromptSource, cuts_per_clip: int, seed: tuple[int, ...]) -> tuple[Segment, ...]:
    def prompt(audio: AudioSource, cut: RandomCut | None = None) -> Segment:
        return Segment(audio, normalize=True, cut=cut, semantic=False)

    if source is PromptSource.GIVEN:
        return tuple(prompt(audio) for audio in row.voice_prompts or ())
    if source is PromptSource.SPEAKER:
        return (prompt(row.audio),)
    if source is PromptSource.CUT:
        draws = np.random.default_rng(seed).random((cuts_per_clip, 2))
        return tuple(prompt(row.audio, RandomCut(float(length), float(start))) for length, start in draws)
    return ()


def plan_rows(
    requests: Sequence[RowRequest],
    store: LatentStore,
    encode: Encode,
    special: SpecialTokens,
    max_tokens: int,
    bad_rows: BadRows,
) -> list[PlannedRow]:
    """Look up what the store holds of every row, list its choices of voice prompts and check its length.

    Args:
        requests: rows whose segments are all in the store.
        store: the filled latent store.
        encode: the text tokenizer.
        special: ids of the control tokens.
        max_tokens: the longest sequence that is allowed, prompts included.
        bad_rows: takes rows that are too long.
    """
    clips_of_speaker: dict[str, list[str]] = defaultdict(list)
    for request in requests:
        if request.source is PromptSource.SPEAKER and request.speaker is not None:
            clips_of_speaker[request.speaker].append(store.key(request.prompts[0]))
    planned = []
    for request in requests:
        choices = _prompt_choices(request, store, clips_of_speaker)
        longest = max(choices, key=lambda keys: sum(map(store.num_frames, keys)), default=())
        target_frames = store.num_frames(store.key(request.target))
        prompt_ids, voice = generation_prompt(encode, special, request.turns, [store.num_frames(k) for k in longest])
        num_tokens = len(prompt_ids) + target_frames + 2
        if num_tokens > max_tokens:
            bad_rows.report(
                DataError(
                    f"{request.where}: the row is {num_tokens:,} tokens long ({target_frames:,} of audio, "
                    f"{len(voice):,} of voice prompts); at most {max_tokens:,} fit; shorten the clip or raise --max_length."
                ),
                "too long",
            )
            continue
        planned.append(
            PlannedRow(
                where=request.where,
                turns=request.turns,
                target_key=store.key(request.target),
                target_frames=target_frames,
                prompt_choices=choices,
                num_tokens=num_tokens,
                speaker=request.speaker,
                source=request.source,
            )
        )
    return planned


def _prompt_choices(
    request: RowRequest, store: LatentStore, clips_of_speaker: dict[str, list[str]]
) -> tuple[tuple[str, ...], ...]:
    if request.source is PromptSource.GIVEN:
        return (tuple(store.key(segment) for segment in request.prompts),)
    if request.source is PromptSource.SPEAKER and request.speaker is not None:
        own = store.key(request.prompts[0])
        others = [key for key in clips_of_speaker[request.speaker] if key != own]
        return tuple((key,) for key in others)
    return tuple((store.key(segment),) for segment in request.prompts)


class SpeechDataset:
    """Planned rows as training examples; indexed by `Draw`, safe to copy into workers."""

    def __init__(
        self,
        rows: Sequence[PlannedRow],
        store: LatentStore,
        encode: Encode,
        special: SpecialTokens,
        settings: DrawSettings,
    ) -> None:
        self.rows = rows
        self.store = store
        self.encode = encode
        self.special = special
        self.settings = settings

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> Example:
        settings = self.settings
        row = self.rows[draw.row]
        if settings.evaluation:
            rng = np.random.default_rng((settings.seed, draw.row, EVAL_STREAM))
        else:
            rng = np.random.default_rng((settings.seed, draw.epoch, draw.row, TRAIN_STREAM))
        unconditional = rng.random() < settings.unconditional_rate and not settings.evaluation
        dropped = rng.random() < settings.voice_prompt_drop_rate and not settings.evaluation
        voice_keys: tuple[str, ...] = ()
        if row.prompt_choices:
            choice = row.prompt_choices[rng.integers(len(row.prompt_choices))]
            voice_keys = () if unconditional or dropped else choice
        voices = [self.store.read(key).acoustic_FC for key in voice_keys]
        target = self.store.read(row.target_key)
        assert target.semantic_FS is not None, f"{row.where}: stored without semantic features"
        num_frames, acoustic_dim = target.acoustic_FC.shape
        if unconditional:
            sequence = unconditional_sequence(self.special, num_frames)
        else:
            sequence = training_sequence(self.encode, self.special, row.turns, [len(v) for v in voices], num_frames)
        nothing = np.zeros((0, acoustic_dim), dtype=np.float32)
        return Example(
            where=row.where,
            ghost=draw.ghost,
            sequence=sequence,
            target_mean_FC=target.acoustic_FC,
            target_jitter_FC=_jitter(rng, target.acoustic_FC),
            target_semantic_FS=target.semantic_FS,
            timestep_FK=rng.integers(settings.num_timesteps, size=(num_frames, settings.ddpm_batch_mul)),
            noise_FKC=rng.standard_normal((num_frames, settings.ddpm_batch_mul, acoustic_dim), dtype=np.float32),
            voice_mean_VC=np.concatenate([nothing, *voices]),
            voice_jitter_VC=np.concatenate([nothing, *(_jitter(rng, voice) for voice in voices)]),
        )


def _jitter(rng: np.random.Generator, mean_FC: Floats) -> Floats:
    """Noise of one clip: a single standard normal factor times elementwise standard normal noise, (F, C)."""
    return np.float32(rng.standard_normal()) * rng.standard_normal(mean_FC.shape, dtype=np.float32)
