"""What is measured of a sample: words, voice, end. The same judges as in `evaluate`, asked of a few texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, AudioSource, load_audio
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.evaluation.health import health
from vibevoice_finetune.evaluation.recogniser import Recogniser, load_recogniser
from vibevoice_finetune.evaluation.speaker_similarity import centroid, load_speaker_encoder, similarity
from vibevoice_finetune.evaluation.words import Errors, letter_errors, word_errors
from vibevoice_finetune.flags.samples import Steering
from vibevoice_finetune.samples.script import SampleText

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TakeFigures:
    """What is measured of one sample.

    Attributes:
        heard: by the recogniser.
        words: errors in words.
        letters: errors in letters.
        similarity: to the speaker's real clips; 0 if nothing was said; None if there is no such clip.
        signs: what is wrong with it, of `evaluation.health.SIGNS`.
    """

    heard: str
    words: Errors
    letters: Errors
    similarity: float | None
    signs: tuple[str, ...]


class Judges:
    """Loaded before anything else is done, so that a missing one is found then.

    Args:
        recogniser: of words: "moonshine" or a Whisper model.
        language: of the texts.

    Attributes:
        names: recogniser, language and speaker encoder; figures of others are not compared with theirs.

    Raises:
        UserError: a package is not installed, or weights cannot be had.
    """

    def __init__(self, recogniser: str, language: str) -> None:
        # On the processor: the GPU is full of the training.
        self._recogniser: Recogniser = load_recogniser(recogniser, language, device="cpu")
        self._encoder, encoder_name = load_speaker_encoder()
        self.names = (recogniser, language, encoder_name)
        self._language = language
        self._voices: list[Floats | None] = []
        word_errors("one", "one", language)  # says now what is not installed

    def learn_voices(self, texts: Sequence[SampleText], steering: Steering | None) -> None:
        """Listen to the speakers of the texts that will be judged.

        Raises:
            DataError: the similarity is to decide, and there is no recording to compare with.
        """
        self._voices = [self._voice(text.speaker_clips) for text in texts]
        decides = steering is not None and steering.figure == "sample_similarity"
        if decides and all(voice is None for voice in self._voices):
            raise DataError(
                "--metric_for_best_model sample_similarity: no text of the samples has a recording of its speaker to "
                "compare with; give texts of one speaker each, with voices."
            )

    def judge(self, number: int, text: SampleText, samples: Floats, *, ended: bool) -> TakeFigures:
        """Measure one sample.

        Args:
            number: of the text.
            text: what should have been said.
            samples: (N,) at 24 kHz; empty if nothing was said.
            ended: whether the model ended by itself.
        """
        heard = self._recogniser(samples, SAMPLING_RATE_HZ) if len(samples) else ""
        voice = self._voices[number]
        found = health(samples, SAMPLING_RATE_HZ, text.text, heard, ended=ended, language=self._language)
        alike = None
        if voice is not None:
            alike = similarity(self._encoder(samples, SAMPLING_RATE_HZ), voice) if len(samples) else 0.0
        return TakeFigures(
            heard=heard,
            words=word_errors(text.text, heard, self._language),
            letters=letter_errors(text.text, heard, self._language),
            similarity=alike,
            signs=found.signs,
        )

    def _voice(self, clips: Sequence[AudioSource]) -> Floats | None:
        if not clips:
            return None
        return centroid([self._encoder(load_audio(clip), SAMPLING_RATE_HZ) for clip in clips])


def together(takes: Sequence[TakeFigures]) -> Mapping[str, float]:
    """The figures of all samples of a step, as they are logged.

    Errors are added up over all words; the similarity is the mean over the texts that have one.
    """
    words = sum((take.words for take in takes), Errors(0, 0, 0, 0))
    letters = sum((take.letters for take in takes), Errors(0, 0, 0, 0))
    alike = [take.similarity for take in takes if take.similarity is not None]
    figures = {
        "sample_word_error": words.rate,
        "sample_letter_error": letters.rate,
        "sample_unhealthy": sum(bool(take.signs) for take in takes) / len(takes),
    }
    return figures | ({"sample_similarity": float(np.mean(alike))} if alike else {})
