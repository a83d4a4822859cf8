"""`--config FILE` and `--recipe FILE`: flags from a YAML file, turned into the words that a command line would have.

Words, so that a value means the same in both places and is checked by the same code.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from vibevoice_finetune.errors import ArgumentError, shown

MAX_BYTES = 100_000
MAX_VALUES = 10_000
"""Of a file with all aliases written out: a few lines of them, each naming the one before ten times, make gigabytes."""


def words_of(path: Path, flag: str = "--config", several: Collection[str] = ()) -> list[str]:
    """The flags that a file holds, each as one word `--name=value`; what is null is left out.

    Lists become values separated by commas, mappings JSON.

    Args:
        path: the YAML file.
        flag: what named it, for messages.
        several: flags of which every value is a word of its own: names of files, which may contain commas.

    Raises:
        ArgumentError: the file cannot be read, or is not a mapping of flags to values.
    """
    content = _read(path, flag)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ArgumentError(f"{flag} {shown(path)}: expected `name: value` lines with the names of flags.")
    words = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name == "config" or (name == "recipe" and flag == "--recipe"):
            raise ArgumentError(f"{flag} {shown(path)}: a file cannot name another one; leave `{name}` out.")
        if isinstance(value, list) and name in several:
            words += [f"--{name}={_text(item)}" for item in value]
        elif value is not None:
            words.append(f"--{name}={_text(value)}")
    return words


def _read(path: Path, flag: str) -> Any:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            found = "a file that is too large" if path.is_file() else "not a file" if path.exists() else "not there"
            raise ArgumentError(f"{flag} {shown(path)}: {found}; name a YAML file of at most {MAX_BYTES:,} bytes.")
        text = path.read_text(encoding="utf-8")
        _check_size(yaml.compose(text, Loader=yaml.SafeLoader), f"{flag} {shown(path)}")
        return yaml.safe_load(text)
    except OSError as error:
        raise ArgumentError(f"{flag} {shown(path)}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise ArgumentError(f"{flag} {shown(path)}: is not valid YAML: {' '.join(str(error).split())}") from error


def _check_size(root: yaml.Node | None, where: str) -> None:
    """Count values with aliases written out, before anything is built of them."""
    waiting = [root] if root is not None else []
    count = 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise ArgumentError(f"{where}: holds more than {MAX_VALUES:,} values once its aliases are written out.")
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            waiting.extend(part for pair in node.value for part in pair)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    if isinstance(value, list):
        return ",".join(_text(item) for item in value)
    return str(value)
