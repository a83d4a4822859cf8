"""What is measured of each take: words, voice, end, pace, sound, losses.

In come takes (`evaluation/speak.py`) and the rows that they say, out go figures per take. The judges are loaded once
and asked once for each piece of audio; their answers are kept beside it under their names, so a second evaluation does
not ask again, and answers of other judges are never mixed in.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.script import parse_script
from vibevoice_finetune.evaluation.health import health, letters_per_sec
from vibevoice_finetune.evaluation.judges.quality import Quality
from vibevoice_finetune.evaluation.losses import RowLosses
from vibevoice_finetune.evaluation.recogniser import Recogniser
from vibevoice_finetune.evaluation.speak import Said
from vibevoice_finetune.evaluation.words import Errors, letter_errors, word_errors
from vibevoice_finetune.files.atomic import write_json
from vibevoice_finetune.validation.audio_checks import MIN_SPEECH_SEC, check_sound
from vibevoice_finetune.validation.listen import Sound, measured

Floats = NDArray[np.float32]
Encode = Callable[[Floats, int], Floats]

SOUND_FAULTS = ("music", "reverberation", "noise", "clipped", "narrow-band", "dc-offset")
"""Of what `validate` remarks on, what is a fault of the sound and not of its length or its edges."""


@dataclass(frozen=True)
class Judges:
    """Who judges.

    Attributes:
        recogniser: of words.
        recogniser_name: as the report names it.
        encoder: of voices.
        encoder_name: as the report names it.
        language: of the texts.
        quality: guesses how good a take sounds; None where that is not asked for.
    """

    recogniser: Recogniser
    recogniser_name: str
    encoder: Encode
    encoder_name: str
    language: str = "en"
    quality: Quality | None = None


@dataclass(frozen=True)
class Judged:
    """The figures of one take.

    Attributes:
        said: the take.
        heard: what the recogniser heard.
        words: errors in words.
        letters: errors in letters.
        similarity: cosine to the speaker's real clips, their mean; None without such clips or without audio.
        signs: what is wrong with it, by `health.SIGNS`.
        pace: letters a second over those of the row's real clip; None without speech.
        sound: its numbers as `validate` measures them; None without speech.
        sound_faults: what `validate` would remark on in it.
        quality: predicted opinion, 1 to 5; None where it was not asked for.
        losses: of the row under the model, the same for all its takes; None where they were not computed.
    """

    said: Said
    heard: str
    words: Errors
    letters: Errors
    similarity: float | None
    signs: tuple[str, ...]
    pace: float | None
    sound: Sound | None = None
    sound_faults: tuple[str, ...] = ()
    quality: float | None = None
    losses: RowLosses | None = None


@dataclass(frozen=True)
class Reference:
    """What the real clips say.

    Attributes:
        centres: by speaker, the mean voice of the real clips.
        ceiling: similarity of a real clip to the other real clips of its speaker, mean; None with one clip each.
        floor: similarity of a real clip to those of other speakers, mean; None with one speaker.
        words: errors of the recogniser on the real clips: what it cannot do better than.
        pace: by row, letters a second of the real clip.
        duration_sec: by row, of the real clip.
        figures: what the real clips themselves get, by the keys of `compare.FIGURES`.
    """

    centres: dict[str, Floats]
    ceiling: float | None
    floor: float | None
    words: Errors
    pace: list[float | None]
    duration_sec: list[float]
    figures: dict[str, float] = field(default_factory=dict)


def spoken_text(row: Row) -> str:
    """A row's text without its tags."""
    return " ".join(turn.text for turn in parse_script(row.text, row.where))


def speaker_of(row: Row) -> str:
    """Who a row's speaker is taken for; rows without one are taken for the same person."""
    return row.speaker or "speaker"


def listen_to_real_clips(rows: Sequence[Row], judges: Judges) -> Reference:
    """Hear the rows' own recordings: the ceiling, the floor, and the pace.

    Args:
        rows: with their audio, of one speaker each.
        judges: the same that judge the model.
    """
    vectors: dict[str, list[Floats]] = defaultdict(list)
    words, letters, pace, lengths_sec = Errors(0, 0, 0, 0), Errors(0, 0, 0, 0), [], []
    sounds: list[Sound] = []
    faults = unhealthy = 0
    for row in rows:
        samples = load_audio(row.audio)
        text = spoken_text(row)
        lengths_sec.append(len(samples) / SAMPLING_RATE_HZ)
        heard = judges.recogniser(samples, SAMPLING_RATE_HZ)
        words += word_errors(text, heard, judges.language)
        letters += letter_errors(text, heard, judges.language)
        vectors[speaker_of(row)].append(judges.encoder(samples, SAMPLING_RATE_HZ))
        found = health(samples, SAMPLING_RATE_HZ, text, heard, language=judges.language)
        pace.append(letters_per_sec(text, found.speech_sec, judges.language) or None)
        unhealthy += bool(found.signs)
        sound, remarks = listen_to_sound(samples)
        sounds += [sound] if sound is not None else []
        faults += bool(remarks)
    own = [value for clips in vectors.values() for value in _against_the_others(clips)]
    centres = {speaker: _unit(np.sum(clips, axis=0)) for speaker, clips in vectors.items()}
    others = [
        float(clip @ centre)
        for speaker, clips in vectors.items()
        for clip in clips
        for name, centre in centres.items()
        if name != speaker
    ]
    ceiling = float(np.mean(own)) if own else None
    figures = {"word_error": words.rate, "letter_error": letters.rate, "pace": 1.0}
    figures |= {"unhealthy": unhealthy / len(rows), "sound_faults": faults / len(rows)} if rows else {}
    figures |= {} if ceiling is None else {"similarity": ceiling}
    if sounds:
        figures["level"] = float(np.mean([sound.level_dbfs for sound in sounds]))
        figures["noise"] = float(np.mean([sound.noise_db for sound in sounds]))
        figures["bandwidth"] = float(np.mean([sound.bandwidth_hz for sound in sounds])) / 1000
    return Reference(
        centres=centres,
        ceiling=ceiling,
        floor=float(np.mean(others)) if others else None,
        words=words,
        pace=pace,
        duration_sec=lengths_sec,
        figures=figures,
    )


def listen_to_sound(samples: Floats) -> tuple[Sound | None, tuple[str, ...]]:
    """Level, bandwidth and noise by the measure of `validate`, and which of its remarks a recording gets."""
    if not len(samples):
        return None, ()
    sound = measured(samples, samples, SAMPLING_RATE_HZ)
    if sound.speech_sec < MIN_SPEECH_SEC:
        return None, ()
    kinds = [finding.kind for finding in check_sound(sound, "") if finding.kind in SOUND_FAULTS]
    return sound, tuple(kinds)


def judge(
    takes: Sequence[Said],
    rows: Sequence[Row],
    reference: Reference,
    judges: Judges,
    progress: Callable[[int, int], None] | None = None,
) -> list[Judged]:
    """Judge all takes.

    Args:
        takes: of any models.
        rows: what they say.
        reference: of the same rows.
        judges: the same that heard the real clips.
        progress: told after each take.
    """
    judged = []
    for number, said in enumerate(takes):
        row = rows[said.row]
        text = spoken_text(row)
        samples = said.samples()
        heard, vector, quality = _ask(said, samples, judges)
        sound, remarks = listen_to_sound(samples)
        found = health(samples, SAMPLING_RATE_HZ, text, heard, ended=said.ended, language=judges.language)
        real = reference.pace[said.row]
        own = letters_per_sec(text, found.speech_sec, judges.language)
        centre = reference.centres.get(speaker_of(row))
        judged.append(
            Judged(
                said=said,
                heard=heard,
                words=word_errors(text, heard, judges.language),
                letters=letter_errors(text, heard, judges.language),
                similarity=float(vector @ centre) if vector is not None and centre is not None else None,
                signs=found.signs,
                pace=own / real if real and own else None,
                sound=sound,
                sound_faults=remarks,
                quality=quality,
            )
        )
        if progress is not None:
            progress(number + 1, len(takes))
    return judged


def _ask(said: Said, samples: Floats, judges: Judges) -> tuple[str, Floats | None, float | None]:
    """What the judges say of a take, from their earlier answers if there are any."""
    if said.audio is None:
        return "", None, None
    path = _answers(said.audio, judges)
    answer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = len(answer)
    if not known:
        vector = judges.encoder(samples, SAMPLING_RATE_HZ)
        answer = {
            "heard": judges.recogniser(samples, SAMPLING_RATE_HZ),
            "voice": [round(float(value), 6) for value in vector],
        }
    if judges.quality is not None and "quality" not in answer:
        answer["quality"] = round(judges.quality(samples, SAMPLING_RATE_HZ), 3)
    if len(answer) > known:
        write_json(path, answer)
    voice = np.asarray(answer["voice"], dtype=np.float32)
    return str(answer["heard"]), voice, answer.get("quality") if judges.quality is not None else None


def _answers(audio: Path, judges: Judges) -> Path:
    plain = "-".join(
        "".join(c if c.isalnum() else "_" for c in name) for name in (judges.recogniser_name, judges.encoder_name)
    )
    return audio.with_name(f"{audio.stem}.{plain}.json")


def _against_the_others(clips: Sequence[Floats]) -> list[float]:
    """Each clip against the mean of the others."""
    if len(clips) < 2:
        return []
    total = np.sum(clips, axis=0)
    return [float(clip @ _unit(total - clip)) for clip in clips]


def _unit(vector: Floats) -> Floats:
    unit: Floats = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def as_json(judged: Judged) -> dict[str, object]:
    """The figures of a take as plain values; paths by their name."""
    plain = asdict(replace(judged, sound=None))
    plain["said"]["audio"] = judged.said.audio.name if judged.said.audio else None
    sound = judged.sound
    plain["sound"] = sound and {
        "level_dbfs": round(sound.level_dbfs, 2),
        "noise_db": round(sound.noise_db, 2),
        "bandwidth_hz": round(sound.bandwidth_hz),
    }
    return plain
