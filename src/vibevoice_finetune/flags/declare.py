"""How a flag is declared: a field of a dataclass whose metadata says all that a parser and its help need.

Why: help, range and kind of a flag stand beside its default, once, for every command. Nothing here, nor in any other
module of this room, imports torch or transformers: `--help` has to answer in half a second.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from vibevoice_finetune.errors import ArgumentError

LARGEST_INTEGER = 2**31 - 1
LONGEST_NAME_BYTES, LONGEST_PATH_BYTES = 255, 4095
"""Of one part of a path and of a whole path: Linux's NAME_MAX and PATH_MAX."""


@dataclass(frozen=True)
class Range:
    """What a number may be; every number is finite, and an integer fits into 32 bits."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number is one of these."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least:,.12g} to {self.at_most:,.12g}"
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        words = [f"{name} {bound:,.12g}" for name, bound in bounds.items() if bound is not None]
        return " and ".join(words) or "a finite number"


SHARE = Range(at_least=0, at_most=1)
SHARE_BELOW_ONE = Range(at_least=0, below=1)
COUNT = Range(at_least=1)
NOT_NEGATIVE = Range(at_least=0)
POSITIVE = Range(above=0)


def flag(
    default: Any = MISSING,
    *,
    help: str,  # noqa: A002  # what argparse and transformers call it
    group: str | None = None,
    range: Range | None = None,  # noqa: A002
    is_path: bool = False,
    is_list: bool = False,
    positional: bool = False,
    bare: str | None = None,
    shown_default: str | None = None,
) -> Any:
    """Declare a flag as a field of a dataclass.

    Args:
        default: its value if it is not given; without one it is required.
        help: one sentence, with the unit.
        group: heading under which the help lists it.
        range: of a number.
        is_path: whether its value is, or may be, a place on this machine; see `PATH_FLAGS` in `arguments.py`.
        is_list: whether it takes several words; they are joined by commas if the field is a string.
        positional: whether its value is given without its name.
        bare: the value of the flag alone; None: it needs one.
        shown_default: what the help calls the default where the value itself says too little.
    """
    metadata = {
        "help": help,
        "group": group,
        "range": range,
        "is_path": is_path,
        "is_list": is_list,
        "positional": positional,
        "bare": bare,
        "shown_default": shown_default,
    }
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_values(values: Mapping[str, Any], kinds: Sequence[type], more: Mapping[str, Range] | None = None) -> None:
    """Refuse numbers out of their range, and paths that no file system takes.

    Args:
        values: by the flag's name, as they were parsed.
        kinds: the dataclasses that declare them.
        more: ranges of flags that transformers declares.

    Raises:
        ArgumentError: names the flag, the value, and what it must be.
    """
    declared = {f.name: f.metadata for kind in kinds for f in fields(kind)}
    for name, value in values.items():
        metadata: Mapping[str, Any] = declared.get(name, {})
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(name, value, metadata.get("range") or (more or {}).get(name) or Range())
        if metadata.get("is_path"):
            for path in value if isinstance(value, list) else [value]:
                check_path(name, path)


def check_number(name: str, value: float, allowed: Range) -> None:
    """Refuse a number out of its range.

    Raises:
        ArgumentError: says what it must be.
    """
    try:
        holds = allowed.holds(value)
    except OverflowError:  # an integer beyond any float
        holds = False
    if not holds:
        finite = "a finite number, " if isinstance(value, float) and not math.isfinite(value) else ""
        expected = f"{finite}{allowed}" if str(allowed) != str(Range()) else str(allowed)
        raise ArgumentError(f"--{name} {shown(value)}: must be {expected}.")
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER and allowed.at_most is None:
        raise ArgumentError(f"--{name} {shown(value)}: must be at most {LARGEST_INTEGER:,}.")


def check_path(name: str, path: str | None) -> None:
    """Refuse a path with a part that is longer than a file system's names.

    Raises:
        ArgumentError: says which part.
    """
    encoded = os.fsencode(path or "")
    longest = max(encoded.split(b"/"), key=len)
    if len(longest) > LONGEST_NAME_BYTES or len(encoded) > LONGEST_PATH_BYTES:
        raise ArgumentError(
            f"--{name} {shown(path)}: the name is too long ({len(longest):,} bytes; a file system takes "
            f"{LONGEST_NAME_BYTES}, and {LONGEST_PATH_BYTES:,} for a whole path)."
        )


def shown(value: object) -> str:
    r"""A value as a message quotes it: on one line, printable, of bounded length; a number without trailing zeros.

    >>> shown("a\nb"), shown(0.50), shown("x" * 100)[-8:]
    ('a\\nb', '0.5', 'xxxxxxx…')
    """
    if isinstance(value, float):
        return f"{value:g}"
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(value))
    return text if len(text) <= 80 else text[:79] + "…"
