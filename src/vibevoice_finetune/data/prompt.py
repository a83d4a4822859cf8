"""From a script to what the language model reads: token ids and the positions that matter.

In comes a script ("Speaker 0: Hello."), the number of voice-prompt frames of each speaker and, for training, the number
of target frames. Out comes a `TokenSequence`: ids, and for every loss the positions it reads from with what it should
find there. A position is always one into the sequence's own ids, and every shift by one (a frame's condition lies one
position before its token, a token's label is the next token) is made here and nowhere else.

The pieces are tokenized one by one and concatenated, as the original implementation does it; joining them first would
merge tokens across the borders.

Shapes: T tokens, V voice-prompt frames, F target frames.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.errors import DataError

SYSTEM_PIECE = (
    " Transform the text provided by various speakers into speech output, "
    "utilizing the distinct voice of each respective speaker.\n"
)
VOICE_HEADING = " Voice input:\n"
TEXT_HEADING = " Text input:\n"
SPEECH_HEADING = " Speech output:\n"

SPEAKER_LINE = re.compile(r"speaker\s*(\d{1,9})\s*:(.*)", re.IGNORECASE | re.DOTALL)

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, no special tokens added."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the four tokens that generation chooses among; `ids` fixes their order as classes."""

    speech_start: int
    speech_end: int
    frame: int
    end_of_text: int

    @property
    def ids(self) -> tuple[int, int, int, int]:
        """The four ids in class order: start, end, frame, end of text."""
        return (self.speech_start, self.speech_end, self.frame, self.end_of_text)


CONTROL_START, CONTROL_END, CONTROL_FRAME, CONTROL_END_OF_TEXT = range(4)
"""Classes of a control decision: indices into `SpecialTokens.ids`."""


@dataclass(frozen=True)
class Turn:
    """One line of a script: the speaker's number (0, 1, … after renumbering) and what is said."""

    speaker: int
    text: str


@dataclass(frozen=True, eq=False)
class TokenSequence:
    """Token ids of one row and the positions that embeddings and losses refer to.

    Attributes:
        token_ids: (T,) ids; frames hold the placeholder's id.
        voice_positions: (V,) where voice-prompt embeddings go.
        target_positions: (F,) where target-frame embeddings go.
        condition_positions: (F,) where the hidden state that conditions each target frame is read.
        text_positions: positions whose next token is a label of the text cross-entropy.
        text_labels: those labels, ids of the vocabulary.
        control_positions: (F + 2,) positions at which generation decides how to go on.
        control_labels: (F + 2,) the right decision, an index into `SpecialTokens.ids`.
    """

    token_ids: Indices
    voice_positions: Indices
    target_positions: Indices
    condition_positions: Indices
    text_positions: Indices
    text_labels: Indices
    control_positions: Indices
    control_labels: Indices


def parse_script(text: str, where: str, *, default_speaker: bool = False) -> tuple[Turn, ...]:
    """Split a script into turns, speakers renumbered 0, 1, 2 … in ascending order of the numbers given.

    Args:
        text: one ``Speaker N: text`` a line; case and spaces around the colon do not matter, blank lines are skipped.
        where: what to name in an error, as in ``train.jsonl:17``.
        default_speaker: plain text without any tag is one turn of Speaker 0 (generation), no error (training).

    Raises:
        DataError: nothing is said, or a line has no speaker tag.

    >>> parse_script("Speaker 2: Hi.\\nspeaker 1 :  Hello there. ", "here")
    (Turn(speaker=1, text='Hi.'), Turn(speaker=0, text='Hello there.'))
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f'{where}: the text is empty; write what is said, as in "Speaker 0: Hello there."')
    matches = [SPEAKER_LINE.fullmatch(line) for line in lines]
    if default_speaker and not any(matches):
        return (Turn(0, " ".join(lines)),)
    turns = []
    for line, match in zip(lines, matches, strict=True):
        if match is None:
            raise DataError(f'{where}: no speaker tag in "{shorten(line)}"; write "Speaker 0: {shorten(line)}"')
        said = match[2].strip()
        if not said:
            raise DataError(f'{where}: "{shorten(line)}" has a speaker but no words; add them or remove the line.')
        turns.append((int(match[1]), said))
    numbers = sorted({number for number, _ in turns})
    return tuple(Turn(numbers.index(number), said) for number, said in turns)


def num_speakers(turns: Sequence[Turn]) -> int:
    """How many speakers a parsed script has."""
    return 1 + max(turn.speaker for turn in turns)


def generation_prompt(
    encode: Encode, special: SpecialTokens, turns: Sequence[Turn], voice_frames: Sequence[int]
) -> tuple[Indices, Indices]:
    """What generation is given: everything up to and including the `<start>` of the speech output.

    Args:
        encode: the text tokenizer without special tokens.
        special: ids of the control tokens.
        turns: the script.
        voice_frames: frames of each speaker's voice prompt, in the speakers' order; empty for none.

    Returns:
        Ids (T,) and the positions of the voice-prompt frames (V,).

    Raises:
        DataError: the number of voice prompts is neither zero nor the number of speakers.
    """
    check_voice_count(len(voice_frames), num_speakers(turns), "the prompt")
    ids = list(encode(SYSTEM_PIECE))
    voice_positions: list[int] = []
    if voice_frames:
        ids += encode(VOICE_HEADING)
        for speaker, frames in enumerate(voice_frames):
            ids += [*encode(f" Speaker {speaker}:"), special.speech_start]
            voice_positions += range(len(ids), len(ids) + frames)
            ids += [special.frame] * frames + [special.speech_end, *encode("\n")]
    ids += encode(TEXT_HEADING)
    for turn in turns:
        ids += encode(f" Speaker {turn.speaker}: {turn.text}\n")
    ids += [*encode(SPEECH_HEADING), special.speech_start]
    return np.asarray(ids, dtype=np.int64), np.asarray(voice_positions, dtype=np.int64)


def training_sequence(
    encode: Encode, special: SpecialTokens, turns: Sequence[Turn], voice_frames: Sequence[int], target_frames: int
) -> TokenSequence:
    """The generation prompt followed by the target: frames, `<end>`, end of text.

    Every token that is not a frame is a label of the text loss; every position from the last `<start>` on is a control
    decision.

    >>> special = SpecialTokens(speech_start=90, speech_end=91, frame=92, end_of_text=93)
    >>> one_id_a_piece = lambda text: [len(text) % 10]
    >>> row = training_sequence(one_id_a_piece, special, (Turn(0, "Hi."),), [], target_frames=2)
    >>> row.token_ids.tolist()  # system, text heading, turn, speech heading, <start>, two frames, <end>, end of text
    [6, 3, 6, 6, 90, 92, 92, 91, 93]
    >>> row.target_positions.tolist(), row.condition_positions.tolist()
    ([5, 6], [4, 5])
    >>> row.text_positions.tolist(), row.text_labels.tolist()
    ([0, 1, 2, 3, 6, 7], [3, 6, 6, 90, 91, 93])
    >>> row.control_positions.tolist(), row.control_labels.tolist()
    ([4, 5, 6, 7], [2, 2, 1, 3])
    """
    prompt_ids, voice_positions = generation_prompt(encode, special, turns, voice_frames)
    frames = np.full(target_frames, special.frame, dtype=np.int64)
    tail = np.array([special.speech_end, special.end_of_text], dtype=np.int64)
    token_ids = np.concatenate([prompt_ids, frames, tail])
    target_positions = len(prompt_ids) + np.arange(target_frames, dtype=np.int64)
    is_frame = np.zeros(len(token_ids), dtype=bool)
    is_frame[voice_positions] = True
    is_frame[target_positions] = True
    text_positions, text_labels = label_text(token_ids, is_frame)
    control_labels = np.full(target_frames + 2, CONTROL_FRAME, dtype=np.int64)
    control_labels[-2:] = CONTROL_END, CONTROL_END_OF_TEXT
    return TokenSequence(
        token_ids=token_ids,
        voice_positions=voice_positions,
        target_positions=target_positions,
        condition_positions=target_positions - 1,
        text_positions=text_positions,
        text_labels=text_labels,
        control_positions=len(prompt_ids) - 1 + np.arange(target_frames + 2, dtype=np.int64),
        control_labels=control_labels,
    )


def unconditional_sequence(special: SpecialTokens, target_frames: int) -> TokenSequence:
    """What generation's unconditional branch sees: `<start>` and the frames; only the diffusion loss applies.

    >>> special = SpecialTokens(speech_start=90, speech_end=91, frame=92, end_of_text=93)
    >>> row = unconditional_sequence(special, target_frames=2)
    >>> row.token_ids.tolist(), row.target_positions.tolist(), row.condition_positions.tolist()
    ([90, 92, 92], [1, 2], [0, 1])
    """
    none = np.zeros(0, dtype=np.int64)
    target_positions = 1 + np.arange(target_frames, dtype=np.int64)
    return TokenSequence(
        token_ids=np.array([special.speech_start] + [special.frame] * target_frames, dtype=np.int64),
        voice_positions=none,
        target_positions=target_positions,
        condition_positions=target_positions - 1,
        text_positions=none,
        text_labels=none,
        control_positions=none,
        control_labels=none,
    )


def label_text(token_ids: Indices, is_frame: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """Positions and labels of next-token cross-entropy over every token that is not a frame.

    Args:
        token_ids: (T,) ids, without padding.
        is_frame: (T,) true at voice-prompt and target frames.

    >>> label_text(np.array([5, 92, 92, 91]), np.array([False, True, True, False]))
    (array([2]), array([91]))
    """
    positions = np.flatnonzero(~is_frame[1:])
    return positions, token_ids[positions + 1]


def check_voice_count(num_prompts: int, speakers: int, where: str) -> None:
    """Raise DataError unless there is no voice prompt or one for each speaker."""
    if num_prompts not in (0, speakers):
        raise DataError(
            f"{where}: {num_prompts} voice prompts for {speakers} speaker{'s' if speakers > 1 else ''}; "
            "give one for each speaker, in ascending order of their numbers, or none."
        )


def shorten(line: str, limit: int = 60) -> str:
    """The line, cut with an ellipsis to fit into a message."""
    return line if len(line) <= limit else line[: limit - 1] + "…"
