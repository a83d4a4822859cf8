"""The command line: a table of commands, of which only the chosen one is imported.

In come the words after ``vibevoice-finetune``, out goes an exit code. torch and transformers take seconds to import,
so nothing here touches them: ``--help`` and a mistyped command answer at once. To add a command, add a line to
`COMMANDS`; its function takes the words that follow the command and parses them itself.

A `UserError` becomes one line on stderr and exit code 2; anything else that is raised is a defect of this program and
keeps its traceback.
"""

import atexit
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vibevoice_finetune import __version__
from vibevoice_finetune.errors import ArgumentError, StoppedRun, UserError

PROGRAM = "vibevoice-finetune"
EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: saved, to be started again
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


@dataclass(frozen=True)
class Command:
    """One command: its name, where its function lives (``module:function``), and what it does in a line."""

    name: str
    target: str
    summary: str

    def load(self) -> Callable[[list[str]], None]:
        """Import the function; everything heavy is imported with it."""
        function: Callable[[list[str]], None] = pkgutil.resolve_name(f"vibevoice_finetune.{self.target}")
        return function


COMMANDS = (
    Command("tune", "commands.tune:tune", "from recordings to a voice, in one go: prepare, validate, train, evaluate"),
    Command("web", "commands.web:web", "the same as a page in a browser"),
    Command("prepare", "commands.prepare:prepare", "make a data set of recordings: cut, transcribe, level, split"),
    Command("validate", "commands.validate:validate", "find every problem of a data set, before training"),
    Command("train", "commands.train:train", "fine-tune a checkpoint on speech; writes an adapter"),
    Command("recipes", "commands.recipes:recipes", "list the recipes of train, or print one, with its reasons"),
    Command("rehearse", "commands.rehearse:rehearse", "let the base model speak: a data set against forgetting"),
    Command("encode", "commands.encode:encode", "fill the latent store of a data set, without training"),
    Command("estimate", "commands.estimate:estimate", "say what memory a training needs, and which GPUs it fits"),
    Command("generate", "commands.generate:generate", "say a text with a model, with or without an adapter"),
    Command("evaluate", "commands.evaluate:evaluate", "say whether a fine-tune helped, in figures and side by side"),
    Command("inspect", "commands.inspect:inspect", "say what is inside an adapter or a model, and who can load it"),
    Command("merge", "commands.merge:merge", "put an adapter into its base model; writes a whole model"),
    Command("convert", "commands.convert:convert", "write a model in the other layout, original or native"),
    Command("demo", "commands.demo:demo", "fine-tune a small random model on the bundled speech, in about a minute"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; None: those of the process.

    Returns:
        The process's exit code: 0 done, 2 a mistake that the user can fix (said on stderr), 75 stopped by a
        signal and saved, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 the command line talks to its user
        return EXIT_USER_ERROR
    except StoppedRun as stop:
        print(stop, file=sys.stderr)  # noqa: T201
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except SystemExit as end:  # --help was answered
        return int(end.code or 0)
    return 0


def program(body: Callable[[], int] = main) -> NoReturn:
    """Run a command and end the process with its code.

    One of several processes ends right after Python's exit hooks, without taking the interpreter apart: gloo's threads
    let go of tensors under Python's lock, and one that asks for it just then aborts the process (one run in 25,
    measured), whereupon the launcher ends the others, of which the first may still be writing.

    Args:
        body: gives the exit code.
    """
    ending = {"code": 1}  # of an error that nobody caught
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(_end, ending)  # hooks run in reverse, so this one is the last
    ending["code"] = body()
    sys.exit(ending["code"])


def _end(ending: dict[str, int]) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ending["code"])


def _run(words: list[str]) -> None:
    if not words:
        raise ArgumentError(f"no command given; commands: {_names()}; see {PROGRAM} --help")
    first, rest = words[0], words[1:]
    if first in ("-h", "--help"):
        print(_help())  # noqa: T201
    elif first == "--version":
        print(f"{PROGRAM} {__version__}")  # noqa: T201
    else:
        # On processors with AVX512-BF16, importing peft makes bitsandbytes recommend a kernel that is of no use here.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        _find(first).load()(rest)


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    raise ArgumentError(f"no command named {name!r}; commands: {_names()}; see {PROGRAM} --help")


def _names() -> str:
    return ", ".join(command.name for command in COMMANDS)


def _help() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [--flag value ...]",
            "",
            "Fine-tune VibeVoice text-to-speech models.",
            "",
            "commands:",
            *lines,
            "",
            f"{PROGRAM} COMMAND --help lists a command's flags; {PROGRAM} --version says the version.",
        ]
    )
