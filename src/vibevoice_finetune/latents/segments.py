"""What is to be encoded, and the key under which it is found again.

A `Segment` is a clip or a random cut of it, normalised or not. Its key is a hash of the audio's bytes, the cut and the
normalisation: what a file is called and which row names it do not matter, so rows can be moved, files renamed, and
several jobs find each other's work.
"""

import hashlib
from dataclasses import dataclass

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource

KEY_LENGTH = 32

PROCESSING_VERSION = 1
"""Part of every key; raise it when decoding, resampling, cutting or normalising gives other samples than before."""


@dataclass(frozen=True)
class RandomCut:
    """Two draws from [0, 1) that choose a piece of a clip to serve as a voice prompt.

    Attributes:
        length_draw: chooses the length between min(5 s, a quarter of the clip) and min(15 s, a half).
        start_draw: chooses the start among all places where the piece fits.
    """

    length_draw: float
    start_draw: float

    def span(self, num_samples: int, hop_length: int) -> tuple[int, int]:
        """First sample of the piece and the one behind its last; never shorter than a frame if the clip is not.

        >>> RandomCut(length_draw=0.0, start_draw=0.5).span(num_samples=4 * 24_000, hop_length=3_200)  # 1 s of 4 s
        (36000, 60000)
        >>> RandomCut(length_draw=0.5, start_draw=0.0).span(num_samples=60 * 24_000, hop_length=3_200)  # 5 to 15 s
        (0, 240000)
        """
        shortest = min(5.0 * SAMPLING_RATE_HZ, num_samples / 4)
        longest = min(15.0 * SAMPLING_RATE_HZ, num_samples / 2)
        drawn = int(shortest + self.length_draw * (longest - shortest))
        length = min(max(drawn, hop_length), num_samples)
        start = int(self.start_draw * (num_samples - length))
        return start, start + length


@dataclass(frozen=True)
class CutNumber:
    """One of a clip's random cuts. Where it lies follows from what the clip holds, not from where its row stands.

    So a file of rows and any piece of it cut the same voice prompts, and find each other's in the store.

    Attributes:
        seed: of the run.
        number: of the cut among those of its clip.
    """

    seed: int
    number: int

    def drawn(self, digest: str) -> RandomCut:
        """The cut of the audio with this digest: 64 bits of a hash a draw, of which a float64 holds 53."""
        text = f"cut {self.seed} {self.number} {digest}"
        bits = hashlib.blake2b(text.encode(), digest_size=16).digest()
        length, start = (int.from_bytes(half, "little") >> 11 for half in (bits[:8], bits[8:]))
        return RandomCut(length * 2.0**-53, start * 2.0**-53)


@dataclass(frozen=True, eq=False)
class Segment:
    """One thing to encode.

    Attributes:
        source: the audio.
        normalize: bring what is encoded to −25 dBFS.
        cut: which of the audio's random cuts; None for all of it.
        semantic: whether semantic features are needed (targets) or not (voice prompts). Not part of the key: an entry
            that has them serves both.
    """

    source: AudioSource
    normalize: bool
    cut: CutNumber | None
    semantic: bool


def make_key(digest: str, segment: Segment) -> str:
    """The key of a segment whose audio has this digest."""
    cut = "whole"
    if segment.cut is not None:
        drawn = segment.cut.drawn(digest)
        cut = f"{drawn.length_draw.hex()} {drawn.start_draw.hex()}"
    text = f"{PROCESSING_VERSION} {digest} {'normalized' if segment.normalize else 'as it is'} {cut}"
    return hashlib.blake2b(text.encode(), digest_size=KEY_LENGTH // 2).hexdigest()
