"""The verdict in plain sentences: what an evaluation says to someone who trains a voice for the first time."""

from vibevoice_finetune.evaluation.compare import Compared, Figure
from vibevoice_finetune.evaluation.evaluate import BASE, Evaluation
from vibevoice_finetune.evaluation.statistics import Interval


def sentences(found: Evaluation) -> list[str]:
    """Two sentences on the recommended model, and one on which it is."""
    if found.choice is None:
        return ["Only the base model was judged; name an adapter to compare it with."]
    own = found.compared[found.choice.voice]
    base = found.compared[BASE]
    lines = []
    if "similarity" in own and "similarity" in base:
        lines.append(_similarity(own["similarity"], base["similarity"], found.reference.ceiling))
    lines.append(_words(own["word_error"], base["word_error"]))
    worst = _worst_fault(own, base)
    if worst:
        lines.append(worst)
    verdicts = {own[key].verdict for key in ("similarity", "word_error") if key in own}
    if "worse" in verdicts and "better" not in verdicts:
        lines.append("It is worse than the base model: train again, with a lower learning rate or fewer steps.")
    elif len(found.request.voices) > 1:
        lines.append(f"Use {found.choice.voice}: {found.choice.reason}.")
    return lines


def shown(interval: Interval, figure: Figure) -> str:
    """A figure with its interval.

    >>> from vibevoice_finetune.evaluation.compare import BY_KEY
    >>> shown(Interval(0.0512, 0.02, 0.091, 30), BY_KEY["word_error"])
    '5.1 % (2.0 to 9.1)'
    """
    if figure.as_percent:
        return f"{interval.value * 100:.1f} % ({interval.low * 100:.1f} to {interval.high * 100:.1f})"
    number = f".{figure.decimals}f"
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{interval.value:{number}}{unit} ({interval.low:{number}} to {interval.high:{number}})"


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
    return f"{head}: word error {base.own.value:.0%} → {own.own.value:.0%}."


def _worst_fault(own: dict[str, Compared], base: dict[str, Compared]) -> str:
    """The fault that has become most frequent, if one has for sure."""
    keys = ("last_words_missing", "long_silence", "no_end", "loops", "stopped_at_once")
    worse = [own[key] for key in keys if key in own and own[key].verdict == "worse"]
    if not worse:
        return ""
    most = max(worse, key=lambda one: one.against_base.value if one.against_base else 0.0)
    before = base[most.figure.key].own.value
    return f"More takes have a fault: {most.figure.name} in {before:.0%} → {most.own.value:.0%}."
