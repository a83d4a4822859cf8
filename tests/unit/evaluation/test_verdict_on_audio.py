"""From audio to the verdict with the real judges: a voice that got closer, and transcripts that were shuffled."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tests.unit.evaluation.test_report import evaluation, rows
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.evaluation.evaluate import BASE
from vibevoice_finetune.evaluation.judge import Judges, judge, listen_to_real_clips
from vibevoice_finetune.evaluation.recogniser import load_recogniser
from vibevoice_finetune.evaluation.speak import Said
from vibevoice_finetune.evaluation.speaker_similarity import load_speaker_encoder
from vibevoice_finetune.evaluation.verdict import overall, sentences

ROWS = rows(8)


def takes(folder: Path, name: str, audio: list[np.ndarray]) -> list[Said]:
    """Takes of a model from given audio, its files in the folder."""
    found = []
    for number, samples in enumerate(audio):
        path = folder / f"{name}-{number}.wav"
        soundfile.write(path, samples, SAMPLING_RATE_HZ)
        found.append(Said(name, number, 0, path, True, "", 1.0, len(samples) / SAMPLING_RATE_HZ))
    return found


@pytest.mark.slow
def test_good_and_broken_fine_tunes_are_told_by_their_audio(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = [load_audio(row.audio) for row in ROWS]
    # A higher voice at another pace; the speaker with a little noise; the speaker who says the next row's text.
    other = [soxr.resample(one, 1.2 * SAMPLING_RATE_HZ, SAMPLING_RATE_HZ) for one in real]
    good = [one + 0.001 * rng.standard_normal(len(one)).astype(np.float32) for one in real]
    shuffled = [*good[1:], good[0]]

    encoder, encoder_name = load_speaker_encoder("campplus")
    judges = Judges(load_recogniser("moonshine", "en"), "moonshine", encoder, encoder_name)
    reference = listen_to_real_clips(ROWS, judges)
    heard = {
        name: judge(takes(tmp_path, name, audio), ROWS, reference, judges)
        for name, audio in (("other", other), ("good", good), ("shuffled", shuffled))
    }

    def found(base: str, tuned: str) -> tuple[str, list[str]]:
        judged = [replace(one, said=replace(one.said, voice=BASE)) for one in heard[base]] + heard[tuned]
        result = replace(evaluation(judged, tuned), reference=reference)
        return overall(result), sentences(result)

    outcome, (similarity, _) = found("other", "good")
    assert outcome == "better"
    assert similarity.startswith("Closer to the speaker")
    outcome, (_, words) = found("good", "shuffled")
    assert outcome == "worse"
    assert "word error" in words
    assert "stay with the base model" in words
