"""The command `estimate`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vibevoice_finetune.commands.parser import parse_run
from vibevoice_finetune.flags.declare import COUNT, POSITIVE, flag
from vibevoice_finetune.flags.shares import parse_shares

if TYPE_CHECKING:
    from vibevoice_finetune.memory.predict import Prediction

SUMMARY = "Memory and steps of a training, and which GPUs it fits; takes the flags of train."
UNKNOWN_ROWS = "unknown"
"""Name of a data set that is on no machine: rows are assumed."""


@dataclass(kw_only=True)
class EstimateFlags:
    """The flags of `estimate` beside those of `train`."""

    clip_sec: float = flag(
        10.0,
        help="Length of the clips where they are not known yet, in seconds.",
        group="estimate",
        range=POSITIVE,
    )
    processes: int = flag(
        1,
        help="Processes that would train together; the memory is that of one.",
        group="estimate",
        range=COUNT,
    )


def estimate(words: list[str]) -> None:
    """Run `estimate` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags; the model's configuration cannot be read; rows cannot be used.
    """
    arguments, flags = parse_run(words, "estimate", SUMMARY, EstimateFlags, fill=filled)
    arguments.loop.check_processes(flags.processes)
    from vibevoice_finetune.memory.predict import predict

    print_prediction(Console(highlight=False, soft_wrap=True), predict(arguments, flags.clip_sec, flags.processes))


def filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `train` requires and memory does not depend on."""
    sets = len(parse_shares(given["mix"])) if "mix" in given else 1
    rows = {} if given.keys() & {"train_jsonl", "dataset_name"} else {"dataset_name": [UNKNOWN_ROWS] * sets}
    return {"output_dir": "", "do_train": True, **rows}


def print_prediction(console: Console, prediction: "Prediction") -> None:
    """Print the steps, the account of memory, the GPUs and what would lower the peak."""
    from vibevoice_finetune.memory.estimate import CARDS_GIB, GIB, gigabytes

    memory = prediction.memory
    batch = memory.batch
    for note in prediction.notes:
        console.print(note)
    if prediction.rows:
        console.print(
            f"{prediction.rows:,} rows; {prediction.steps:,} optimizer steps, {prediction.steps_an_epoch:,} per epoch"
        )
    console.print(f"largest micro-batch: {batch.rows:,} rows, {batch.tokens:,} tokens, {batch.frames:,} frames\n")
    table = Table(title="memory at the peak of training", title_justify="left")
    table.add_column("part")
    table.add_column("GB", justify="right")
    for part in filter(lambda part: part.bytes, memory.parts):
        table.add_row(part.name, f"{part.bytes / 1e9:.2f}")
    table.add_section()
    table.add_row("together", f"{memory.training / 1e9:.2f}")
    console.print(table)
    if memory.speaking:
        console.print(f"between two steps, while samples are spoken: {gigabytes(memory.speaking)}")
    console.print(f"before that, while audio is encoded: {gigabytes(memory.encoding)}\n")
    cards = Table(title="GPUs", title_justify="left")
    cards.add_column("memory", justify="right")
    cards.add_column("")
    for card in CARDS_GIB:
        cards.add_row(f"{card} GB", _verdict(memory.to_fit(card * GIB)))
    console.print(cards)
    for line in memory.advice():
        console.print(line)


def _verdict(flags: list[str] | None) -> str:
    if flags is None:
        return "too small, whatever the flags"
    return "fits with " + " ".join(flags) if flags else "fits"
