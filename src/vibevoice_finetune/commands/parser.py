"""The one parser of all commands: dataclasses of flags in, the values that were given out.

A flag is a field of a dataclass (`flags/`), and this turns fields into argparse's arguments, YAML files into words
(`flags/config.py`), and every mistake into one line. Defaults stay in the dataclass: the parser returns only what
somebody typed, or wrote into a file, which is what a run records. There are up to three layers, each parsed on its own:
what is typed goes over the file of `--config`, and that over `--recipe`.

Nothing heavy is imported until it is needed: `--help` lists our own flags at once, and `--help_all` those of
transformers too.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.config import words_of
from vibevoice_finetune.flags.data import DataArguments
from vibevoice_finetune.flags.declare import check_values, shown
from vibevoice_finetune.flags.loop import LoopFlags
from vibevoice_finetune.flags.model import ModelArguments
from vibevoice_finetune.flags.names import unknown_flag
from vibevoice_finetune.flags.values import argument_of, text
from vibevoice_finetune.recipes.shelf import find

if TYPE_CHECKING:
    from vibevoice_finetune.arguments import Arguments

PROGRAM = "vibevoice-finetune"
GROUPS = (
    *("run", "model", "data", "what is trained", "losses", "steps", "memory and speed", "logs and checkpoints"),
    "samples and choosing",
)
"""The order of the help; a group without flags is not shown, and any other comes after these."""
INHERITED_GROUP = "flags of transformers' TrainingArguments"

Flags = TypeVar("Flags")


def parse_flags(
    kind: type[Flags], command: str, words: Sequence[str], summary: str, *, takes_config: bool = False
) -> Flags:
    """Parse the command line of a command that has one dataclass of flags.

    Args:
        kind: the dataclass.
        command: the command's name.
        words: those that follow it.
        summary: what the command does, for its help.
        takes_config: whether `--config FILE` may give flags.

    Raises:
        ArgumentError: an unknown flag, or a value of the wrong kind.
        SystemExit: `--help` was answered.
    """
    parser = Parser(command, summary, [kind], takes_config=takes_config)
    given = parser.parse(words)
    parser.require(given)
    check_values(given, [kind])
    return kind(**given)


def parse(words: Sequence[str], command: str = "train") -> "Arguments":
    """Parse a command line with the flags of `train`.

    Raises:
        ArgumentError: an unknown flag, a value of the wrong kind, a combination that cannot be carried out.
        SystemExit: `--help` was answered.
    """
    return parse_run(words, command, "Fine-tune a VibeVoice model on speech; the result is an adapter.")[0]


def parse_run(
    words: Sequence[str],
    command: str,
    summary: str,
    own: type | None = None,
    fill: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> tuple["Arguments", Any]:
    """Parse the command line of a command that takes the flags of `train`, and perhaps some of its own.

    Args:
        words: those that follow the command.
        command: its name.
        summary: what it does, for its help.
        own: a dataclass of its own flags.
        fill: from the values that were given, those that the command sets by itself where nothing was.

    Returns:
        The arguments, and an instance of `own`, or None without one.

    Raises:
        ArgumentError: an unknown flag, a value of the wrong kind, a combination that cannot be carried out.
        SystemExit: `--help` was answered.
    """
    kinds = [*([own] if own else []), ModelArguments, DataArguments, LoopFlags]
    parser = Parser(command, summary, kinds, more=_loop_with_transformers)
    given = parser.parse(words)
    parser.require(given)
    own_names = {f.name for f in fields(own)} if own else set()
    own_values = {name: value for name, value in given.items() if name in own_names}
    rest = {name: value for name, value in given.items() if name not in own_names}
    flags = None
    if own is not None:
        check_values(own_values, [own])
        flags = own(**own_values)
    from vibevoice_finetune.arguments import make_arguments

    return make_arguments(rest, fill(rest) if fill else None, parser.from_recipe), flags


def _loop_with_transformers() -> list[type]:
    from vibevoice_finetune.arguments import FinetuneArguments

    return [FinetuneArguments]


class Parser:
    """Parses the command line of one command.

    Args:
        command: its name.
        summary: what it does, for its help.
        kinds: the dataclasses that declare its flags; a later one overrides a flag of an earlier one.
        more: gives further dataclasses, whose import takes long; they are asked for when words are parsed.
        takes_config: whether `--config FILE` may give flags; it may where there is `more`.
    """

    def __init__(
        self,
        command: str,
        summary: str,
        kinds: Sequence[type],
        more: Callable[[], Sequence[type]] | None = None,
        *,
        takes_config: bool = False,
    ) -> None:
        self.command, self.summary = command, summary
        self.kinds = list(kinds)
        self.more = more
        self.takes_config = takes_config or more is not None
        self.from_recipe: dict[str, Any] = {}

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """The flags that were given, by name, with their values.

        Raises:
            ArgumentError: a flag that is not one, a value of the wrong kind.
            SystemExit: `--help` was answered.
        """
        normal = _normalise(words)
        asked_for_all = "--help_all" in normal
        if self.more is not None and (asked_for_all or not {"--help", "-h"} & set(normal)):
            self.kinds.extend(self.more())
        parser = self._argparse()
        if asked_for_all or {"--help", "-h"} & set(normal):
            print(parser.format_help(), end="")  # noqa: T201  # what was asked for
            raise SystemExit(0)
        typed, config = _take_config(normal) if self.takes_config else (normal, None)
        from_words = self._values(parser, typed)
        from_config = self._of_file(parser, config, "--config") if config is not None else {}
        # Only the commands with the flags of `train` take a recipe's; `tune` hands its name on.
        recipe = from_words.get("recipe", from_config.get("recipe")) if self.more is not None else None
        self.from_recipe = self._of_file(parser, find(recipe), "--recipe") if recipe is not None else {}
        return self.from_recipe | from_config | from_words

    def _values(self, parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
        try:
            namespace, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            raise ArgumentError(_said(error)) from error
        if unknown:
            raise ArgumentError(self._stray(unknown[0]))
        return vars(namespace)

    def _of_file(self, parser: argparse.ArgumentParser, path: Path, flag: str) -> dict[str, Any]:
        """The flags of a YAML file; what is wrong with one of them is told with the file's name."""
        lists = {f.name for f in self.fields().values() if f.metadata.get("is_list") and f.metadata.get("is_path")}
        words = self._placed(words_of(path, flag, lists))
        try:
            return self._values(parser, words)
        except ArgumentError as error:
            raise ArgumentError(f"{flag} {shown(path)}: {error}") from error

    def require(self, given: dict[str, Any]) -> None:
        """Refuse a command line without a flag that has no default.

        Raises:
            ArgumentError: names all that are missing.
        """
        required = [f for f in self.fields().values() if f.default is MISSING and f.default_factory is MISSING]
        missing = [
            f.name.upper() if f.metadata.get("positional") else f"--{f.name}" for f in required if f.name not in given
        ]
        if missing:
            raise ArgumentError(f"{', '.join(missing)}: missing; all flags: {PROGRAM} {self.command} --help")

    def fields(self) -> dict[str, Field[Any]]:
        """All flags by name."""
        return {f.name: f for kind in self.kinds for f in fields(kind) if f.init}

    def _placed(self, words: list[str]) -> list[str]:
        """A file of `--config` names also what a command line gives without a name."""
        placed = [f"--{f.name}=" for f in self.fields().values() if f.metadata.get("positional")]
        named = [word for word in words if word.startswith(tuple(placed))]
        return [word for word in words if word not in named] + [word.split("=", 1)[1] for word in named]

    def _stray(self, word: str) -> str:
        if word.startswith("-"):
            return unknown_flag(word, list(self.fields()))
        return f'"{shown(word)}" belongs to no flag; a value with spaces needs quotation marks.'

    def _argparse(self) -> argparse.ArgumentParser:
        parser = _Quiet(
            prog=f"{PROGRAM} {self.command}",
            usage=f"{PROGRAM} {self.command} {self._usage()}[--flag value ...]",
            description=self.summary,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
        )
        groups: dict[str, Any] = {heading: parser.add_argument_group(heading) for heading in GROUPS}
        kinds_of = {name: hint for kind in self.kinds for name, hint in get_type_hints(kind).items()}
        for f in self.fields().values():
            heading = f.metadata.get("group") or ("flags" if "shown_default" in f.metadata else INHERITED_GROUP)
            if heading not in groups:
                groups[heading] = parser.add_argument_group(heading)
            options = argument_of(f, kinds_of[f.name])
            name = f.name if f.metadata.get("positional") else f"--{f.name}"
            groups[heading].add_argument(name, **options)
        other = parser.add_argument_group("help")
        other.add_argument("--help", "-h", action="store_true", help="this list")
        if self.takes_config:
            other.add_argument("--config", metavar="FILE", help="YAML file with flags; the command line goes over it")
        if self.more is not None:
            other.add_argument("--help_all", action="store_true", help="the same with all flags of transformers")
        return parser

    def _usage(self) -> str:
        named = [f.name.upper() for f in self.fields().values() if f.metadata.get("positional")]
        return "".join(f"{name} " for name in named)


class _Quiet(argparse.ArgumentParser):
    """Raises where argparse would print a page of usage and leave."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (all flags: {self.prog} --help)")


def _said(error: argparse.ArgumentError) -> str:
    """One line of argparse's complaint, as in `--lora_r eight: must be a whole number`."""
    name, message = error.argument_name or "", error.message or ""
    cause = error.__context__
    if isinstance(cause, argparse.ArgumentTypeError):
        return f"{name} {message}."
    if "expected" in message:
        return f'{name} needs a value; one that begins with a dash is written {name}="-…".'
    return f"{name}: {message}."


def _normalise(words: Sequence[str]) -> list[str]:
    """Flags with underscores, and a negative number tied to its flag, which argparse would take for one itself."""
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            found.append("--" + name[2:].replace("-", "_") + equals + value)
        elif found and found[-1].startswith("--") and "=" not in found[-1] and _is_negative(word):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def _is_negative(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.startswith("-")


def _take_config(words: list[str]) -> tuple[list[str], Path | None]:
    """The words without `--config FILE`, and that file."""
    spread = [part for word in words for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in spread:
        return words, None
    at = spread.index("--config")
    if at + 1 == len(spread) or spread.count("--config") > 1:
        raise ArgumentError("--config needs the path of one YAML file.")
    return spread[:at] + spread[at + 2 :], Path(_path_of_config(spread[at + 1]))


def _path_of_config(word: str) -> str:
    try:
        return text(word)
    except argparse.ArgumentTypeError as error:
        raise ArgumentError(f"--config {error}.") from error
