"""The command `recipes`."""

from dataclasses import dataclass

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import flag
from vibevoice_finetune.recipes.shelf import NAMES, find, purpose_of, text_of

SUMMARY = "List the recipes of train, or print one: flags for a purpose, with the reason for each."


@dataclass(kw_only=True)
class RecipesFlags:
    """The flags of `recipes`."""

    name: str | None = flag(None, help="The recipe to print; without it all are listed.", positional=True)


def recipes(words: list[str]) -> None:
    """Run `recipes` with the words that follow the command.

    Raises:
        ArgumentError: there is no such recipe.
    """
    name = parse_flags(RecipesFlags, "recipes", words, SUMMARY).name
    if name is None:
        width = max(map(len, NAMES))
        for each in NAMES:
            print(f"{each:<{width}}  {purpose_of(each)}")  # noqa: T201  # the result
        print("\nprint one: vibevoice-finetune recipes NAME; use it: vibevoice-finetune train --recipe NAME …")  # noqa: T201
        return
    if name not in NAMES:
        find(name)  # says which there are
        raise ArgumentError(f"{name}: only recipes of this program are printed: {', '.join(NAMES)}.")
    print(text_of(name), end="")  # noqa: T201
