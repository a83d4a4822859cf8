"""The command `tune`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, Range, flag
from vibevoice_finetune.flags.loop import LARGEST_SEED

SUMMARY = "From recordings to a voice that was listened to: prepare, validate, train, evaluate, choose. Asks nothing."


@dataclass(kw_only=True)
class TuneFlags:
    """The flags of `tune`."""

    recordings: str = flag(
        help="A folder of recordings, with or without text; also a table, a zip, or one file.",
        is_path=True,
        positional=True,
    )
    output_dir: str = flag(
        help="Folder for everything; started again with the same words, it does what is missing.",
        is_path=True,
        group="run",
    )
    plan: bool = flag(False, help="Say what would be done, and stop.", group="run")
    anyway: bool = flag(False, help="Go on with data that are too little or too bad.", group="run")
    evaluate: bool = flag(
        True, help="Judge base and checkpoints, and choose the best; False: take the last.", group="run"
    )
    model_name_or_path: str | None = flag(
        None,
        help="Base model: a folder, a Hub id, or small (bundled; to try everything on a processor).",
        is_path=True,
        group="training",
        shown_default="7B if it fits into the GPU, else 1.5B",
    )
    recipe: str = flag("voice", help="How it is trained, as in train --recipe.", is_path=True, group="training")
    max_steps: int | None = flag(
        None, help="Optimizer steps.", range=COUNT, group="training", shown_default="the recipe's"
    )
    seed: int = flag(42, help="Of every random draw.", range=Range(at_least=0, at_most=LARGEST_SEED), group="training")
    language: str = flag("en", help="Of the recordings, two letters.", group="words")
    recognizer: str | None = flag(
        None,
        help="Writes missing texts, checks the others, hears the result: moonshine (English) or a Whisper model.",
        group="words",
        shown_default="moonshine for English, else Whisper small",
    )

    def __post_init__(self) -> None:
        if Path(self.recordings).resolve() == Path(self.output_dir).resolve():
            raise ArgumentError("--output_dir: is the folder of the recordings; choose another one.")


def tune(words: list[str]) -> None:
    """Run `tune` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, data that are not good enough, or a stage that failed.
        StoppedRun: a signal asked to stop.
    """
    flags = parse_flags(TuneFlags, "tune", words, SUMMARY)
    from vibevoice_finetune.tune import tune as room
    from vibevoice_finetune.tune.plan import make_plan, this_machine
    from vibevoice_finetune.tune.recipe import values_of

    request = room.TuneRequest(
        recordings=Path(flags.recordings),
        output=Path(flags.output_dir),
        recogniser=flags.recognizer or ("moonshine" if flags.language == "en" else "small"),
        language=flags.language,
        anyway=flags.anyway,
        evaluates=flags.evaluate,
    )
    found = room.look(request.recordings)
    fixed: dict[str, Any] = {"seed": flags.seed}
    fixed |= {} if flags.max_steps is None else {"max_steps": flags.max_steps}
    machine = this_machine()
    plan = make_plan(machine, values_of(flags.recipe), flags.model_name_or_path, fixed)
    for line in room.plan_lines(request, found, plan, machine):
        say(line)
    if not flags.plan:
        room.check_installed(request)
        say("")
        room.tune(request, found, plan, say)


def say(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)  # noqa: T201  # what was asked for
