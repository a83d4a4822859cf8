"""The verdict in plain sentences: what an evaluation says to someone who trains a voice for the first time."""

from typing import Literal

from vibevoice_finetune.evaluation.compare import Compared, Figure
from vibevoice_finetune.evaluation.evaluate import BASE, Evaluation
from vibevoice_finetune.evaluation.statistics import Interval

Outcome = Literal["better", "worse", "mixed", "inside the noise", "base"]

DECISIVE = ("similarity", "word_error", "unhealthy")
"""What a fine-tune is called better or worse by."""

FAULTS = {
    "last_words_missing": "More sentences lose their last words",
    "long_silence": "More takes end in a long silence",
    "no_end": "More takes never end",
    "loops": "More takes repeat themselves",
    "stopped_at_once": "More takes stop at once",
}


def sentences(found: Evaluation) -> list[str]:
    """Two sentences on the recommended model; a third where the model has forgotten how to speak with other voices."""
    if found.choice is None:
        return ["Only the base model was judged; name an adapter to compare it with."]
    own = found.compared[found.choice.voice]
    base = found.compared[BASE]
    lines = []
    if "similarity" in own and "similarity" in base:
        lines.append(_similarity(own["similarity"], base["similarity"], found.reference.ceiling))
    lines.append(f"{_fault(own, base) or _words(own['word_error'], base['word_error'])}{_advice(found)}.")
    return lines + _forgotten(found)


def overall(found: Evaluation) -> Outcome:
    """The verdict in a word, by similarity, word error and faults of the recommended model."""
    if found.choice is None:
        return "base"
    own = found.compared[found.choice.voice]
    verdicts = {own[key].verdict for key in DECISIVE if key in own}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    if "worse" in verdicts:
        return "worse"
    return "better" if "better" in verdicts else "inside the noise"


def recommendation(found: Evaluation) -> str:
    """Which checkpoint to use and why; empty where there is nothing to choose from."""
    if found.choice is None or len(found.request.voices) < 2:
        return ""
    if overall(found) == "worse":
        return f"None of them is better than the base model; {found.choice.voice} is {found.choice.reason}."
    return f"Use {found.choice.voice}: {found.choice.reason}."


def shown(interval: Interval, figure: Figure) -> str:
    """A figure with its interval.

    >>> from vibevoice_finetune.evaluation.compare import BY_KEY
    >>> shown(Interval(0.0512, 0.02, 0.091, 30), BY_KEY["word_error"])
    '5.1 % (2.0 to 9.1)'
    """
    factor, number = (100, ".1f") if figure.as_percent else (1, f".{figure.decimals}f")
    ends = f"({interval.low * factor:{number}} to {interval.high * factor:{number}})"
    return f"{shown_value(interval.value, figure)} {ends}"


def shown_value(value: float, figure: Figure) -> str:
    """A figure without its interval."""
    if figure.as_percent:
        return f"{value * 100:.1f} %"
    return f"{value:.{figure.decimals}f}{f' {figure.unit}' if figure.unit else ''}"


def _similarity(own: Compared, base: Compared, ceiling: float | None) -> str:
    words = {"better": "Closer to the speaker", "worse": "Further from the speaker", "inside the noise": "No closer"}
    head = words[own.verdict] if own.verdict else "Speaker similarity"
    most = f" of a possible {ceiling:.2f}" if ceiling is not None else ""
    return f"{head}: similarity {base.own.value:.2f} → {own.own.value:.2f}{most}."


def _words(own: Compared, base: Compared) -> str:
    words = {
        "better": "Easier to understand",
        "worse": "Harder to understand",
        "inside the noise": "As easy to understand",
    }
    head = words[own.verdict] if own.verdict else "Word error"
    return f"{head}: word error {_change(own, base)}"


def _fault(own: dict[str, Compared], base: dict[str, Compared]) -> str:
    """The fault that has become most frequent, if one has for sure; word error too where that is worse as well."""
    worse = [own[key] for key in FAULTS if key in own and own[key].verdict == "worse"]
    if not worse:
        return ""
    most = max(worse, key=lambda one: one.against_base.value if one.against_base else 0.0)
    text = f"{FAULTS[most.figure.key]}: {_change(most, base[most.figure.key])} of the takes"
    if own["word_error"].verdict == "worse":
        text += f", and word error rises: {_change(own['word_error'], base['word_error'])}"
    return text


def _advice(found: Evaluation) -> str:
    assert found.choice is not None
    if overall(found) == "worse":
        return "; stay with the base model, or train again with a lower learning rate or fewer steps"
    return f"; use {found.choice.voice}" if len(found.request.voices) > 1 else ""


def _forgotten(found: Evaluation) -> list[str]:
    if found.forgetting is None or found.choice is None:
        return []
    own, base = (found.forgetting.compared[name] for name in (found.choice.voice, BASE))
    worse = own["word_error"].verdict == "worse" or own["unhealthy"].verdict == "worse"
    if not worse:
        return []
    words, faults = _change(own["word_error"], base["word_error"]), _change(own["unhealthy"], base["unhealthy"])
    return [f"Other voices suffer: their word error {words}, takes with a fault {faults}."]


def _change(own: Compared, base: Compared) -> str:
    return f"{base.own.value * 100:.0f} % → {own.own.value * 100:.0f} %"
