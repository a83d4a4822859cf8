"""How the words of a flag become its value: what argparse is told about a field, and the message for a wrong value."""

import argparse
import json
import types
from collections.abc import Callable
from dataclasses import MISSING, Field
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin

from vibevoice_finetune.flags.declare import shown
from vibevoice_finetune.flags.inherited import REFUSED

YES, NO = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


def argument_of(declared: Field[Any], hint: Any) -> dict[str, Any]:
    """What argparse is told about a flag: how its words become a value, and its line of help."""
    metadata = declared.metadata
    kinds = [kind for kind in (get_args(hint) if _is_union(hint) else (hint,)) if kind is not types.NoneType]
    options = {"help": _help(declared), **_value(declared, kinds)}
    if metadata.get("positional"):
        return {"help": options["help"], "type": text, "nargs": "?"}  # a missing one is told by `require`
    if metadata.get("bare"):
        options |= {"nargs": "?", "const": metadata["bare"]}
    return {"metavar": "VALUE", **options}


def _value(declared: Field[Any], kinds: list[Any]) -> dict[str, Any]:
    """How argparse makes a value of a flag's words; the first case that holds."""
    metadata = declared.metadata
    choices = next((found for kind in kinds if (found := _choices(kind))), tuple(metadata.get("choices") or ()))
    has_list = any(get_origin(kind) is list for kind in kinds)
    is_mapping = any(kind is dict or get_origin(kind) is dict for kind in kinds)
    is_refused = declared.name in REFUSED and not {bool, int, float} & set(kinds)
    several = {"nargs": "+", "action": "extend"} if metadata.get("is_list") else {"action": "append"}
    cases: tuple[tuple[bool, dict[str, Any]], ...] = (
        (is_refused, {"type": text, "nargs": "*", "action": _JoinWords}),  # whatever the words are
        (kinds == [bool], {"type": _boolean, "nargs": "?", "const": True, "metavar": "True|False"}),
        (bool(choices), {"type": _one_of(choices), "metavar": "|".join(choices) if len(choices) < 6 else "NAME"}),
        (is_mapping, {"type": _mapping, "metavar": "JSON"}),
        (has_list and str in kinds, {"type": text, "nargs": "+", "action": _SplitWords}),
        (has_list, {"type": text, **several}),
        (bool(metadata.get("is_list")), {"type": text, "nargs": "+", "action": _JoinWords}),
        (int in kinds, {"type": _number(int), "metavar": "N"}),
        (float in kinds, {"type": _number(float), "metavar": "N"}),
        (True, {"type": text}),
    )
    return next(options for holds, options in cases if holds)


class _JoinWords(argparse.Action):
    """Several words, from a shell or a YAML list, are one value with commas."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:  # noqa: ARG002
        setattr(namespace, self.dest, ",".join(values))


class _SplitWords(argparse.Action):
    """Words separated by commas or blanks are a list."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:  # noqa: ARG002
        setattr(namespace, self.dest, [word for value in values for word in value.replace(",", " ").split()])


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal and all(isinstance(value, str) for value in get_args(kind)):
        return get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return ()


def _help(declared: Field[Any]) -> str:
    metadata = declared.metadata
    said = str(metadata.get("help") or "").rstrip(".")
    default = metadata.get("shown_default")
    if default is None and declared.default not in (MISSING, None):
        default = str(declared.default)
    if default is None and declared.default is MISSING and declared.default_factory is MISSING:
        default = "required"
    note = f" [{default}]" if default else ""
    return f"{said}{note}".replace("%", "%%").strip()


def text(word: str) -> str:
    """A word as it is, if it can be written to a file.

    Raises:
        ArgumentTypeError: it is not UTF-8, or holds a NUL character.
    """
    try:
        word.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{shown(word)}: is not valid UTF-8; rename the file, or correct the text"
        ) from None
    if "\0" in word:
        raise argparse.ArgumentTypeError(f"{shown(word)}: holds a NUL character; leave it out")
    return word


def _boolean(word: str) -> bool:
    if word.lower() not in (*YES, *NO):
        raise argparse.ArgumentTypeError(f"{shown(word)}: must be True or False")
    return word.lower() in YES


def _number(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(word: str) -> float:
        try:
            return kind(word)
        except ValueError:
            said = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{shown(word)}: must be {said}") from None

    return number


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def choose(word: str) -> str:
        if word not in choices:
            raise argparse.ArgumentTypeError(f"{shown(word)}: must be one of {', '.join(choices)}")
        return word

    return choose


def _mapping(word: str) -> dict[str, Any]:
    try:
        value = json.loads(word)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{shown(word)}: must be a JSON object, such as {{"name": 1}}')
    return value
