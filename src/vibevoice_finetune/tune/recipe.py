"""The flags of a recipe as values, for the estimate and for `train`."""

from typing import Any

import yaml

from vibevoice_finetune.errors import ArgumentError, shown
from vibevoice_finetune.recipes.shelf import NAMES, find, purpose_of

__all__ = ["NAMES", "purpose_of", "values_of"]


def values_of(recipe: str) -> dict[str, Any]:
    """The flags of a recipe, its name among them.

    Args:
        recipe: its name, or the path of a YAML file.

    Raises:
        ArgumentError: there is no such recipe, or the file cannot be read.
    """
    path = find(recipe)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"--recipe {shown(path)}: cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise ArgumentError(f"--recipe {shown(path)}: holds no flags; expected lines such as learning_rate: 2.5e-5.")
    return {"recipe": recipe, **values}
