"""Which recipes there are, and where their YAML lies.

A recipe is a file like any other of `--config`: flags with values, and beside each its reason. It says how to train for
a purpose, and leaves open what only the user knows: model, data and output folder.
"""

import difflib
from pathlib import Path

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import check_path, shown

FOLDER = Path(__file__).parent
NAMES = ("voice", "voice-small-gpu", "language", "dialogue", "style", "full")


def find(recipe: str) -> Path:
    """The file of a recipe.

    Args:
        recipe: one of `NAMES`, or the path of a YAML file.

    Raises:
        ArgumentError: there is no such recipe.
    """
    check_path("recipe", recipe)
    if recipe in NAMES:
        return FOLDER / f"{recipe}.yaml"
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.exists() or "/" in recipe:
        return path
    similar = difflib.get_close_matches(recipe.lower().replace("_", "-"), NAMES, n=1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    raise ArgumentError(
        f"--recipe {shown(recipe)}: {hint}The recipes are {', '.join(NAMES)}; or name a YAML file of your own."
    )


def text_of(name: str) -> str:
    """A recipe as it is written, reasons included."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def purpose_of(name: str) -> str:
    """What a recipe is for: its first line."""
    return text_of(name).partition("\n")[0].removeprefix("#").strip()
