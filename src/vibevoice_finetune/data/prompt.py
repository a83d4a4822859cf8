"""From a script to what the language model reads: token ids and the positions that matter.

In comes a script ("Speaker 0: Hello."), the number of voice-prompt frames of each speaker and, for training, the number
of target frames. Out comes a `TokenSequence`: ids, and for every loss the positions it reads from with what it should
find there. A position is always one into the sequence's own ids, and every shift by one (a frame's condition lies one
position before its token, a token's label is the next token) is made here and nowhere else.

The pieces are tokenized one by one and concatenated, as the original implementation does it; joining them first would
merge tokens across the borders.

Shapes: T tokens, V voice-prompt frames, F target frames.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.data.script import Turn, check_voice_count, num_speakers, shorten
from vibevoice_finetune.errors import DataError

SYSTEM_PIECE = (
    " Transform the text provided by various speakers into speech output, "
    "utilizing the distinct voice of each respective speaker.\n"
)
VOICE_HEADING = " Voice input:\n"
TEXT_HEADING = " Text input:\n"
SPEECH_HEADING = " Speech output:\n"

Encode = Callable[[str], Sequence[int]]
"""Text to token ids, no special tokens added."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the four tokens that generation chooses among; `ids` fixes their order as classes.

    Attributes:
        reserved: the tokenizer's added tokens by id; what is said may hold none of them.
    """

    speech_start: int
    speech_end: int
    frame: int
    end_of_text: int
    reserved: Mapping[int, str] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @property
    def ids(self) -> tuple[int, int, int, int]:
        """The four ids in class order: start, end, frame, end of text."""
        return (self.speech_start, self.speech_end, self.frame, self.end_of_text)


CONTROL_START, CONTROL_END, CONTROL_FRAME, CONTROL_END_OF_TEXT = range(4)
"""Classes of a control decision: indices into `SpecialTokens.ids`."""


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


def generation_prompt(
    encode: Encode,
    special: SpecialTokens,
    turns: Sequence[Turn],
    voice_frames: Sequence[int],
    where: str = "the prompt",
) -> tuple[Indices, Indices]:
    """What generation is given: everything up to and including the `<start>` of the speech output.

    Args:
        encode: the text tokenizer without special tokens.
        special: ids of the control tokens.
        turns: the script.
        voice_frames: frames of each speaker's voice prompt, in the speakers' order; empty for none.
        where: what to name in an error.

    Returns:
        Ids (T,) and the positions of the voice-prompt frames (V,).

    Raises:
        DataError: the number of voice prompts is neither zero nor the number of speakers, or the text holds a token
            that only the program may place.
    """
    check_voice_count(len(voice_frames), num_speakers(turns), where)
    ids, voice_positions = _before_text(encode, special, voice_frames)
    ids += encode_turns(encode, special, turns, where)
    ids += _after_text(encode, special)
    return np.asarray(ids, dtype=np.int64), np.asarray(voice_positions, dtype=np.int64)


def num_prompt_tokens(encode: Encode, special: SpecialTokens, num_text_tokens: int, voice_frames: Sequence[int]) -> int:
    """Length of the `generation_prompt` of a script whose turns (`encode_turns`) have this many tokens."""
    before, _ = _before_text(encode, special, voice_frames)
    return len(before) + num_text_tokens + len(_after_text(encode, special))


def encode_turns(encode: Encode, special: SpecialTokens, turns: Sequence[Turn], where: str) -> list[int]:
    """The ids of the script's lines.

    Raises:
        DataError: the text holds a token that only the program may place.
    """
    ids = [token for turn in turns for token in encode(f" Speaker {turn.speaker}: {turn.text}\n")]
    if not special.reserved.keys().isdisjoint(ids):
        raise _control_token(next(special.reserved[token] for token in ids if token in special.reserved), turns, where)
    return ids


def check_no_control_tokens(special: SpecialTokens, turns: Sequence[Turn], where: str) -> None:
    """Raise DataError if the text spells one of the tokenizer's added tokens; needs no tokenizer."""
    for turn in turns:
        text = turn.text if turn.text.isascii() else unicodedata.normalize("NFC", turn.text)
        for token in special.reserved.values():
            if token in text:
                raise _control_token(token, turns, where)


class FixedPieces:
    """A text tokenizer that remembers the pieces that every prompt has; an `Encode`."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._fixed: dict[str, Sequence[int]] = {
            piece: encode(piece) for piece in (SYSTEM_PIECE, VOICE_HEADING, TEXT_HEADING, SPEECH_HEADING, "\n")
        }
        self._fixed |= {piece: encode(piece) for piece in map(" Speaker {}:".format, range(16))}

    def __call__(self, text: str) -> Sequence[int]:
        """Token ids; not to be changed."""
        known = self._fixed.get(text)
        return self._encode(text) if known is None else known


def _before_text(encode: Encode, special: SpecialTokens, voice_frames: Sequence[int]) -> tuple[list[int], list[int]]:
    """Everything before the script's lines, and the positions of the voice-prompt frames."""
    ids = list(encode(SYSTEM_PIECE))
    voice_positions: list[int] = []
    if voice_frames:
        ids += encode(VOICE_HEADING)
        for speaker, frames in enumerate(voice_frames):
            ids += [*encode(f" Speaker {speaker}:"), special.speech_start]
            voice_positions += range(len(ids), len(ids) + frames)
            ids += [special.frame] * frames + [special.speech_end, *encode("\n")]
    ids += encode(TEXT_HEADING)
    return ids, voice_positions


def _after_text(encode: Encode, special: SpecialTokens) -> list[int]:
    return [*encode(SPEECH_HEADING), special.speech_start]


def _control_token(token: str, turns: Sequence[Turn], where: str) -> DataError:
    said = next((turn.text for turn in turns if token in turn.text), turns[0].text)
    start = max(0, said.find(token) - 20)
    return DataError(
        f'{where}: the text holds "{token}" (…{shorten(said[start:])}), a control token of the text tokenizer; '
        "expected only what is said; remove it."
    )


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
