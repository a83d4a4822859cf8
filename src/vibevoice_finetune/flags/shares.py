"""`--mix`: the share of each of several data sets in what a run visits."""

import math
from collections.abc import Sequence

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import shown


def parse_shares(text: str) -> tuple[float, ...]:
    """The shares of `--mix`.

    >>> parse_shares("0.8,0.2")
    (0.8, 0.2)

    Raises:
        ArgumentError: not numbers above 0 that add up to 1.
    """
    try:
        shares = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        shares = ()
    if not shares or not all(math.isfinite(share) and share > 0 for share in shares):
        raise ArgumentError(f"--mix {shown(text)}: expected a number above 0 for each data set, as in 0.8,0.2.")
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        corrected = ",".join(f"{share / sum(shares):.3g}" for share in shares)
        raise ArgumentError(
            f"--mix {shown(text)}: the shares add up to {sum(shares):g}; expected 1, as in {corrected}."
        )
    return shares


def check_count(shares: Sequence[float], names: Sequence[str]) -> None:
    """Refuse shares for another number of data sets than there are.

    Raises:
        ArgumentError: says how many of each there are.
    """
    if len(shares) != len(names):
        given = ",".join(f"{share:g}" for share in shares)
        sets = f"{len(names)} data set{'s' if len(names) > 1 else ''} ({shown(', '.join(names))})"
        alone = "; `rehearse` makes one against forgetting, and --mix 1 trains without" if len(names) == 1 else ""
        raise ArgumentError(
            f"--mix {given}: {len(shares)} share{'s' if len(shares) > 1 else ''} for {sets}; give one for each, those "
            f"of --train_jsonl first, then those of --dataset_name{alone}."
        )
