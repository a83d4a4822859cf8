"""From rows to a plan: which audio has to be encoded, and which voice prompts a row may get.

Before the latent store is filled, `make_requests` parses the scripts and names the audio; after it, `plan_rows` looks
up the frame counts, lists the choices of voice prompts and checks lengths.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vibevoice_finetune.audio.source import AudioSource
from vibevoice_finetune.data.jsonl import BadRows, Row
from vibevoice_finetune.data.prompt import (
    Encode,
    SpecialTokens,
    check_no_control_tokens,
    encode_turns,
    num_prompt_tokens,
)
from vibevoice_finetune.data.script import Turn, check_voice_count, num_speakers, parse_script
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents.store import CutNumber, LatentStore, Segment

Choices = tuple[tuple[str, ...], ...]
"""Choices of voice prompts, each one latent key a speaker."""


class PromptSource(StrEnum):
    """Where a row's voice prompts come from."""

    GIVEN = "given in the row"
    SPEAKER = "another clip of the speaker"
    CUT = "a cut of the clip itself"
    NONE = "none (several speakers, or no second clip)"


@dataclass(frozen=True, eq=False, slots=True)  # there may be millions
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


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A row ready for training: what is said and where its latents lie.

    Attributes:
        where: file and line, or data set and row.
        turns: the script.
        target_key: key of the target's latents.
        target_frames: F.
        prompt_choices: choices of voice prompts, one latent key a speaker; empty if the row never has any. All rows of
            a speaker share one tuple.
        own_choice: which of the choices is this row's own clip, and is never taken; None if there is none.
        num_tokens: tokens of the row with its longest choice of prompts.
        speaker: the row's speaker label, if it has one.
        source: where the prompts come from.
    """

    where: str
    turns: tuple[Turn, ...]
    target_key: str
    target_frames: int
    prompt_choices: Choices
    own_choice: int | None
    num_tokens: int
    speaker: str | None
    source: PromptSource

    def draw_prompts(self, rng: np.random.Generator) -> tuple[str, ...]:
        """One of the choices, at random; empty if there is none."""
        number = len(self.prompt_choices) - (self.own_choice is not None)
        if number <= 0:
            return ()
        choice = int(rng.integers(number))
        return self.prompt_choices[choice + (self.own_choice is not None and choice >= self.own_choice)]

    @property
    def has_prompts(self) -> bool:
        """Whether the row can have voice prompts."""
        return len(self.prompt_choices) > (self.own_choice is not None)


@dataclass(frozen=True, eq=False)
class _Pool:
    """Choices of voice prompts that rows share, and the two longest of them."""

    choices: Choices
    place: dict[tuple[str, ...], int]
    longest: Choices

    @classmethod
    def of(cls, choices: Choices, store: LatentStore) -> "_Pool":
        by_length = sorted(choices, key=lambda keys: -sum(map(store.num_frames, keys)))
        return cls(choices, {keys: place for place, keys in enumerate(choices)}, tuple(by_length[:2]))


def make_requests(
    rows: Sequence[Row],
    *,
    seed: int,
    cuts_per_clip: int,
    normalize_targets: bool,
    bad_rows: BadRows,
    special: SpecialTokens | None = None,
) -> list[RowRequest]:
    """Read the scripts and say what audio each row needs.

    Voice prompts are, in this order: the row's own; another clip of its speaker; a random cut of the target. Rows of
    several speakers without prompts of their own get none.

    Args:
        rows: what was read.
        seed: of the random cuts.
        cuts_per_clip: random cuts of a clip.
        normalize_targets: bring targets to −25 dBFS.
        bad_rows: takes rows whose script cannot be used.
        special: the control tokens, which no text may spell; None where no tokenizer is at hand.

    Raises:
        DataError: a script without speaker tags or with a wrong number of prompts, unless `bad_rows` skips those.
    """
    clips_of_speaker = Counter(row.speaker for row in rows)
    requests = []
    for row in rows:
        try:
            turns = parse_script(row.text, row.where)
        except DataError as error:
            bad_rows.report(error, "no speaker tag")
            continue
        try:
            if special is not None:
                check_no_control_tokens(special, turns, row.where)
        except DataError as error:
            bad_rows.report(error, "control token")
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
                prompts=_prompt_segments(row, source, cuts_per_clip, seed),
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


def _prompt_segments(row: Row, source: PromptSource, cuts_per_clip: int, seed: int) -> tuple[Segment, ...]:
    def prompt(audio: AudioSource, cut: CutNumber | None = None) -> Segment:
        return Segment(audio, normalize=True, cut=cut, semantic=False)

    if source is PromptSource.GIVEN:
        return tuple(prompt(audio) for audio in row.voice_prompts or ())
    if source is PromptSource.SPEAKER:
        return (prompt(row.audio),)
    if source is PromptSource.CUT:
        return tuple(prompt(row.audio, CutNumber(seed, number)) for number in range(cuts_per_clip))
    return ()


def plan_rows(
    requests: Sequence[RowRequest],
    store: LatentStore,
    encode: Encode,
    special: SpecialTokens,
    max_tokens: int,
    bad_rows: BadRows,
    *,
    model_positions: int | None = None,
) -> list[PlannedRow]:
    """Look up what the store holds of every row, list its choices of voice prompts and check its length.

    Args:
        requests: rows whose segments are all in the store.
        store: the filled latent store.
        encode: the text tokenizer.
        special: ids of the control tokens.
        max_tokens: the longest sequence that is allowed, prompts included.
        bad_rows: takes rows that are too long.
        model_positions: how many the model has; only named in messages.
    """
    pools = _speaker_pools(requests, store)
    planned = []
    for request in requests:
        pool, own = _pool_of(request, store, pools)
        longest = next((keys for keys in pool.longest if own is None or keys != pool.choices[own]), ())
        voice_frames = [store.num_frames(key) for key in longest]
        target_key = store.key(request.target)
        target_frames = store.num_frames(target_key)
        try:
            num_text = len(encode_turns(encode, special, request.turns, request.where))
        except DataError as error:
            bad_rows.report(error, "control token")
            continue
        num_tokens = num_prompt_tokens(encode, special, num_text, voice_frames) + target_frames + 2
        if num_tokens > max_tokens:
            limit = (
                f"the model has {max_tokens:,} positions; cut the clip up"
                if max_tokens == model_positions
                else f"at most {max_tokens:,} fit; cut the clip up or raise --max_length"
            )
            bad_rows.report(
                DataError(
                    f"{request.where}: the row is {num_tokens:,} tokens long ({target_frames:,} of audio, "
                    f"{sum(voice_frames):,} of voice prompts); {limit}."
                ),
                "too long",
            )
            continue
        planned.append(
            PlannedRow(
                where=request.where,
                turns=request.turns,
                target_key=target_key,
                target_frames=target_frames,
                prompt_choices=pool.choices,
                own_choice=own,
                num_tokens=num_tokens,
                speaker=request.speaker,
                source=request.source if longest else PromptSource.NONE,
            )
        )
    return planned


def _speaker_pools(requests: Sequence[RowRequest], store: LatentStore) -> dict[str, _Pool]:
    """The clips of each speaker whose rows take one another as voice prompts."""
    clips: dict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps each clip once, in order
    for request in requests:
        if request.source is PromptSource.SPEAKER and request.speaker is not None:
            clips[request.speaker][store.key(request.prompts[0])] = None
    return {speaker: _Pool.of(tuple((key,) for key in keys), store) for speaker, keys in clips.items()}


def _pool_of(request: RowRequest, store: LatentStore, pools: dict[str, _Pool]) -> tuple[_Pool, int | None]:
    if request.source is PromptSource.SPEAKER and request.speaker is not None:
        pool = pools[request.speaker]
        return pool, pool.place[(store.key(request.prompts[0]),)]
    keys = tuple(store.key(segment) for segment in request.prompts)
    choices = (keys,) if request.source is PromptSource.GIVEN else tuple((key,) for key in keys)
    return _Pool.of(choices, store), None
