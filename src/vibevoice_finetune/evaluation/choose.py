"""Which checkpoint to use: the earliest that is not worse than the best by more than the noise.

Later checkpoints know the voice better and the language worse; a difference that the rows cannot show is no reason to
train longer. So the best is found first, and then the first one whose difference to it may be zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.evaluation.compare import BY_KEY, Figure, rows_of
from vibevoice_finetune.evaluation.judge import Judged
from vibevoice_finetune.evaluation.statistics import difference, ratio

Criterion = Literal["similarity", "word_error", "composite"]

WORDS_WEIGHT = 1.0
"""In the composite, a word error of one point weighs as much as a similarity of one hundredth."""


@dataclass(frozen=True)
class Choice:
    """What is recommended.

    Attributes:
        voice: the model's name.
        best: the one with the best figure.
        reason: one sentence.
    """

    voice: str
    best: str
    reason: str


def choose(judged: Sequence[Judged], candidates: Sequence[str], by: Criterion = "composite") -> Choice:
    """Choose among models.

    Args:
        judged: takes of all of them.
        candidates: their names, the earliest first.
        by: what counts.
    """
    assert candidates, "nothing to choose from"
    figure = COMPOSITE if by == "composite" else BY_KEY[by]
    sign = 1.0 if figure.higher_is_better else -1.0
    rows = {name: rows_of([one for one in judged if one.said.voice == name], figure) for name in candidates}
    values = {name: ratio(*zip(*own.values(), strict=True)).value for name, own in rows.items() if own}
    if not values:
        return Choice(candidates[0], candidates[0], "nothing could be measured; the first is taken")
    best = max(values, key=lambda name: (sign * values[name], -candidates.index(name)))
    for name in candidates:
        both = sorted(set(rows[name]) & set(rows[best]))
        if name == best or not both:
            if name == best:
                break
            continue
        own, other = ([tuple(side[row][i] for row in both) for i in (0, 1)] for side in (rows[name], rows[best]))
        if difference((own[0], own[1]), (other[0], other[1])).holds_zero:
            return Choice(
                name,
                best,
                f"the earliest that is not worse than {best}, the best by {figure.name}, by more than the noise",
            )
    return Choice(best, best, f"the best by {figure.name}, and the others before it are worse by more than the noise")


def _composite(judged: Judged) -> tuple[float, float] | None:
    if judged.similarity is None:
        return None
    return judged.similarity - WORDS_WEIGHT * min(judged.words.rate, 1.0), 1.0


COMPOSITE = Figure("composite", "similarity less word error", True, False, _composite)
