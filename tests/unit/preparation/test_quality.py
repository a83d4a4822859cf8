"""`validate`'s checks on clips that are being made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from tests.speechlike import RATE_HZ, speechlike, with_noise
from vibevoice_finetune.audio.stream import Piece, cut_out
from vibevoice_finetune.preparation.quality import (
    check_piece,
    check_text,
    compare_clips,
    leave_out,
    with_findings,
    without_tag,
)
from vibevoice_finetune.preparation.recordings import Clip, Dialogue, Record, Turn
from vibevoice_finetune.validation.findings import Finding


def piece(samples: np.ndarray) -> Piece:
    return Piece(0, samples.astype(np.float32), samples.astype(np.float32), RATE_HZ)


def clip(number: int, text: str = "Fourteen letters", **changes: object) -> Clip:
    """Two seconds of speech from second 3 × number on; 15 letters in 2 s."""
    start = 3.0 * number
    one = Clip("talk", start, start + 2.4, start + 0.1, start + 2.1, f"clips/talk/{number:04d}.flac", text, "Anna")
    return replace(one, **changes)  # type: ignore[arg-type]


def record(clips: list[Clip], *dialogues: Dialogue) -> Record:
    return Record("digest", "talk", "talk", 100.0, tuple(clips), dialogues)


def test_clean_speech_has_figures_and_no_fault() -> None:
    figures, findings = check_piece(piece(speechlike(1)))
    assert findings == []
    assert figures["signal_to_noise_db"] > 30
    assert figures["clipped_share"] == 0
    assert figures["level_dbfs"] == pytest.approx(20 * np.log10(np.sqrt(np.mean(speechlike(1) ** 2))), abs=6)


def test_noise_is_a_warning_with_its_figure() -> None:
    figures, findings = check_piece(piece(with_noise(speechlike(1), 12.0)))
    assert [found.kind for found in findings] == ["noise"]
    assert figures["signal_to_noise_db"] == pytest.approx(12, abs=3)


def test_clipping_is_seen_as_the_file_has_it(tmp_path: Path) -> None:
    """At 24 kHz the flat tops of a file of 48 kHz are round."""
    loud = soxr.resample(speechlike(1), RATE_HZ, 48_000)
    loud = np.clip(4 * loud / np.abs(loud).max(), -1, 1)
    soundfile.write(tmp_path / "loud.wav", np.stack([loud, loud], axis=1), 48_000)
    (found,) = cut_out(tmp_path / "loud.wav", [(0.0, len(loud) / 48_000)])
    assert found.rate_hz == 48_000
    assert found.original.shape == (len(loud), 2)
    assert len(found.samples) == pytest.approx(len(loud) / 2, abs=2)
    assert "clipped" in [one.kind for one in check_piece(found)[1]]
    assert "clipped" not in [one.kind for one in check_piece(piece(found.samples))[1]]


def test_spans_come_with_their_originals_whatever_their_order(tmp_path: Path) -> None:
    samples = np.arange(16_000 * 4) / 80_000
    soundfile.write(tmp_path / "ramp.wav", samples, 16_000, subtype="FLOAT")
    spans = [(3.0, 4.0), (0.25, 1.0), (0.5, 3.5)]
    found = {one.number: one for one in cut_out(tmp_path / "ramp.wav", spans)}
    assert sorted(found) == [0, 1, 2]
    for number, (start, end) in enumerate(spans):
        np.testing.assert_allclose(found[number].original, samples[int(start * 16_000) : int(end * 16_000)], atol=1e-6)
        assert len(found[number].samples) == pytest.approx((end - start) * 24_000, abs=1)


def test_an_error_leaves_the_clip_out_and_a_warning_stays_with_it() -> None:
    _, silent = check_piece(piece(np.zeros(RATE_HZ)))
    assert with_findings(clip(0), silent).rejected == "there is no sound: nothing but silence"
    assert "<|vision_end|>" in str(with_findings(clip(0), check_text("So <|vision_end|> it is.")).rejected)
    warned = with_findings(clip(0), check_text("There are 12 of them."), {"level_dbfs": -20.0})
    assert (warned.rejected, list(warned.warnings), warned.figures) == (None, ["digits"], {"level_dbfs": -20.0})


def test_a_text_may_have_a_tag_already() -> None:
    assert [without_tag(text) for text in ("Speaker 2: Yes.", "speaker 0 : Yes.", "Speakers: three.")] == [
        "Yes.",
        "Yes.",
        "Speakers: three.",
    ]


def test_a_text_of_another_clip_is_seen_among_the_others() -> None:
    long = "Here are far more letters than anybody could say in such a short time, so they belong to another clip."
    clips = [clip(number) for number in range(12)] + [clip(12, long)]
    (found,) = compare_clips([record(clips)])
    assert [list(one.warnings) for one in found.clips] == [[]] * 12 + [["speaking-rate"]]


def test_clips_and_dialogues_with_a_named_warning_are_left_out() -> None:
    noisy = with_findings(clip(1), [Finding("noise", "", "noise only 12 dB below the speech")])
    turns = (Turn("Anna", "a"), Turn("Ben", "b"))
    with_it, without = Dialogue("d0.flac", 0.0, 5.4, turns), Dialogue("d1.flac", 6.0, 11.4, turns)
    before = record([clip(0), noisy, clip(2), clip(3)], with_it, without)
    assert leave_out([before], ()) == [before]
    assert leave_out([before], ("music",)) == [before]
    (after,) = leave_out([before], ("noise",))
    assert [one.rejected for one in after.clips] == [
        None,
        "noise in the pauses: noise only 12 dB below the speech",
        None,
        None,
    ]
    assert after.dialogues == (without,)
