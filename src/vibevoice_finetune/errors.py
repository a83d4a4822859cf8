"""Mistakes of the user, and how they are said.

Every mistake that a user can make and fix is a `UserError`; its message says where it is, what was found, what was
expected and what to do. The command line prints the message and exits with code 2. Anything else that is raised is a
defect of this program and keeps its traceback.
"""

import importlib
from types import ModuleType


class UserError(Exception):
    """A mistake that the person at the keyboard can fix; the message is meant for them."""


class ArgumentError(UserError):
    """A flag, or a combination of flags, that cannot be carried out."""


class DataError(UserError):
    """A row, a file or a data set that cannot be trained on."""


class BaseModelError(UserError):
    """A model folder, its configuration, its weights or its text tokenizer."""


class RunCheckpointError(UserError):
    """A folder `checkpoint-N` that a run cannot go on from."""


class AdapterError(UserError):
    """A folder with the result of a fine-tune that cannot be read or does not fit."""


class StoppedRun(Exception):
    """A signal asked the run to stop; it has saved where it was. The message says how to go on."""


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a GPU's, or the machine's, which torch reports as a `RuntimeError`."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in _NO_MEMORY)
    )


def require(extra: str, module: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        extra: the extra of this package that brings it, as in ``pip install "vibevoice-finetune[extra]"``.
        module: the module's import name.

    Raises:
        UserError: the module is not installed; the message holds the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise UserError(f'{module} is not installed; run: pip install "vibevoice-finetune[{extra}]"') from error


def shown(name: object, limit: int = 300) -> str:
    r"""What comes from outside as a message can hold it: on one line, printable, not endless.

    Control characters, escape sequences and marks of writing direction would change what a terminal shows.

    >>> shown("clip\x1b[2J.wav")
    'clip\\x1b[2J.wav'
    """
    text = str(name)
    if len(text) > limit:
        text = f"{text[: limit * 2 // 3]}…{text[-(limit // 4) :]}"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
