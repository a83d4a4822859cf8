"""Figures of each model, and of each against the base: means with their uncertainty, and a word for it.

Takes of one row are put together first; rows are what is drawn for the intervals (`evaluation/statistics.py`).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.evaluation.health import is_off_pace
from vibevoice_finetune.evaluation.judge import Judged
from vibevoice_finetune.evaluation.losses import BANDS, Fraction, RowLosses
from vibevoice_finetune.evaluation.statistics import Interval, difference, ratio
from vibevoice_finetune.validation.listen import Sound

Verdict = Literal["better", "worse", "inside the noise"]


@dataclass(frozen=True)
class Figure:
    """Something that is measured.

    Attributes:
        key: in `report.json`.
        name: as a person reads it.
        higher_is_better: None where neither is: the figure is then not judged.
        as_percent: whether it is shown as a percentage.
        parts: the numerator and the denominator that one take adds; None: the take has none.
        group: the heading under which a report lists it.
        unit: behind the number.
        decimals: digits after the point, where it is not a percentage.
    """

    key: str
    name: str
    higher_is_better: bool | None
    as_percent: bool
    parts: Callable[[Judged], tuple[float, float] | None]
    group: str = ""
    unit: str = ""
    decimals: int = 2


def _share(sign: str) -> Callable[[Judged], tuple[float, float]]:
    return lambda judged: (float(sign in judged.signs), 1.0)


def _mean(value: Callable[[Judged], float | None]) -> Callable[[Judged], tuple[float, float] | None]:
    def parts(judged: Judged) -> tuple[float, float] | None:
        found = value(judged)
        return None if found is None else (found, 1.0)

    return parts


def _sound(value: Callable[[Sound], float]) -> Callable[[Judged], tuple[float, float] | None]:
    return lambda judged: None if judged.sound is None else (value(judged.sound), 1.0)


def _loss(of: Callable[[RowLosses], Fraction]) -> Callable[[Judged], tuple[float, float] | None]:
    return lambda judged: None if judged.losses is None else of(judged.losses)


def _band(number: int) -> Figure:
    low, high = 1000 * number // BANDS, 1000 * (number + 1) // BANDS - 1
    name = f"diffusion loss, t {low} to {high}{(' (detail)', '', '', ' (outline)')[number]}"
    return Figure(
        f"diffusion_{number + 1}", name, False, False, _loss(lambda row: row.diffusion[number]), "Losses", decimals=4
    )


VOICE, WORDS, ENDING, PACE, SOUND, LOSSES, SPEED = "Voice", "Words", "Endings", "Pace", "Sound", "Losses", "Speed"

FIGURES = (
    Figure("similarity", "speaker similarity", True, False, _mean(lambda j: j.similarity), VOICE),
    Figure("word_error", "word error", False, True, lambda j: (j.words.edits, j.words.total), WORDS),
    Figure("letter_error", "letter error", False, True, lambda j: (j.letters.edits, j.letters.total), WORDS),
    Figure("words_deleted", "words left out", False, True, lambda j: (j.words.deleted, j.words.total), WORDS),
    Figure("words_inserted", "words added", False, True, lambda j: (j.words.inserted, j.words.total), WORDS),
    Figure("unhealthy", "takes with a fault", False, True, lambda j: (float(bool(j.signs)), 1.0), ENDING),
    Figure("last_words_missing", "last words missing", False, True, _share("last words missing"), ENDING),
    Figure("long_silence", "long silence at the end", False, True, _share("long silence at the end"), ENDING),
    Figure("no_end", "ran to the length limit", False, True, _share("ran to the length limit"), ENDING),
    Figure("loops", "repeats itself", False, True, _share("repeats itself"), ENDING),
    Figure("stopped_at_once", "stopped at once", False, True, _share("stopped at once"), ENDING),
    Figure("pace", "pace against the real clips", None, False, _mean(lambda j: j.pace), PACE, "×"),
    Figure(
        "off_pace",
        "takes a quarter too fast or too slow",
        False,
        True,
        _mean(lambda j: None if j.pace is None else float(is_off_pace(j.pace))),
        PACE,
    ),
    Figure(
        "pace_off",
        "distance from the real pace",
        False,
        True,
        _mean(lambda j: None if j.pace is None else abs(math.log(j.pace))),
        PACE,
    ),
    Figure("level", "level of the speech", None, False, _sound(lambda sound: sound.level_dbfs), SOUND, "dBFS", 1),
    Figure(
        "noise",
        "noise in pauses, against the speech",
        None,
        False,
        _sound(lambda sound: sound.noise_db),
        SOUND,
        "dB",
        1,
    ),
    Figure("bandwidth", "bandwidth", None, False, _sound(lambda sound: sound.bandwidth_hz / 1000), SOUND, "kHz", 1),
    Figure(
        "sound_faults", "takes with a fault of sound", False, True, lambda j: (float(bool(j.sound_faults)), 1.0), SOUND
    ),
    Figure("quality", "predicted quality, 1 to 5", True, False, _mean(lambda j: j.quality), SOUND),
    *map(_band, range(BANDS)),
    Figure("text_loss", "text loss", None, False, _loss(lambda row: row.text), LOSSES, decimals=4),
    Figure("control_loss", "control loss", False, False, _loss(lambda row: row.control), LOSSES, decimals=4),
    Figure("go_on", "right to go on", True, True, _loss(lambda row: row.go_on), LOSSES),
    Figure("stop", "right to stop", True, True, _loss(lambda row: row.stop), LOSSES),
    Figure(
        "real_time_factor",
        "seconds of work per second",
        None,
        False,
        lambda j: (j.said.seconds, j.said.duration_sec),
        SPEED,
    ),
    Figure("first_audio", "first audio after", None, False, _mean(lambda j: j.said.first_audio_sec), SPEED, "s"),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


@dataclass(frozen=True)
class Compared:
    """One figure of one model.

    Attributes:
        figure: which.
        own: of this model.
        against_base: its difference to the base; None for the base itself.
        verdict: of that difference; None where it is not judged.
    """

    figure: Figure
    own: Interval
    against_base: Interval | None
    verdict: Verdict | None


def compare(judged: Sequence[Judged], base: str) -> dict[str, dict[str, Compared]]:
    """All figures, by model and by the figure's key.

    Args:
        judged: takes of all models.
        base: name of the model that the others are compared with.
    """
    by_voice: dict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        by_voice[one.said.voice].append(one)
    found: dict[str, dict[str, Compared]] = {}
    for voice, takes in by_voice.items():
        found[voice] = {}
        for figure in FIGURES:
            own = rows_of(takes, figure)
            if not own:
                continue
            against = None if voice == base else _against(own, rows_of(by_voice[base], figure))
            interval = ratio(*zip(*own.values(), strict=True))
            found[voice][figure.key] = Compared(figure, interval, against, _verdict(figure, against))
    return found


def rows_of(takes: Sequence[Judged], figure: Figure) -> dict[int, tuple[float, float]]:
    """Numerator and denominator of each row, its takes added up."""
    rows: dict[int, tuple[float, float]] = {}
    for take in takes:
        parts = figure.parts(take)
        if parts is not None:
            before = rows.get(take.said.row, (0.0, 0.0))
            rows[take.said.row] = (before[0] + parts[0], before[1] + parts[1])
    return rows


def _against(own: dict[int, tuple[float, float]], base: dict[int, tuple[float, float]]) -> Interval | None:
    both = sorted(set(own) & set(base))
    if not both:
        return None
    sides = [tuple(zip(*(side[row] for row in both), strict=True)) for side in (own, base)]
    return difference(sides[0], sides[1])  # type: ignore[arg-type]  # pairs of equal tuples


def _verdict(figure: Figure, against: Interval | None) -> Verdict | None:
    if against is None or figure.higher_is_better is None:
        return None
    if against.holds_zero:
        return "inside the noise"
    return "better" if (against.value > 0) == figure.higher_is_better else "worse"
