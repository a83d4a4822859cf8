"""The command `validate`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError, DataError, shown
from vibevoice_finetune.flags.data import RowFlags
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, flag

if TYPE_CHECKING:
    from vibevoice_finetune.data.rows import Columns
    from vibevoice_finetune.validation.listen import Ears, Heard
    from vibevoice_finetune.validation.read import ReadRows

SUMMARY = "Find every problem of a data set in one go, and say how much there is. Exit code 1 if there are errors."
EXIT_ERRORS_FOUND = 1


@dataclass(kw_only=True)
class ValidateFlags(RowFlags):
    """The flags of `validate`: those of `train` that say where rows come from, and its own."""

    data: str | None = flag(None, help="The same as --train_jsonl.", is_path=True, positional=True)
    deep: bool = flag(False, help="Decode all audio and look into it.", group="validate")
    transcribe: bool = flag(
        False, help="With --deep: compare each text with what a recogniser hears (extra: asr).", group="validate"
    )
    recognizer: str = flag(
        "moonshine", help="moonshine (English, nothing is downloaded) or a Whisper model.", group="validate"
    )
    language: str | None = flag(
        None, help="Language of the recordings for Whisper, as in de.", group="validate", shown_default="heard by it"
    )
    compare_voices: bool = flag(
        False, help="With --deep: compare the voices of each speaker's rows and prompts.", group="validate"
    )
    fix: str | None = flag(
        None,
        help="Write the corrected list to this file, and what was changed beside it.",
        group="validate",
        is_path=True,
    )
    report: str | None = flag(
        None, help="Write one HTML page with plots and players to this file.", group="validate", is_path=True
    )
    max_shown: int = flag(20, help="Problems of a kind that are listed; 0: all.", group="validate", range=NOT_NEGATIVE)
    per_device_train_batch_size: int = flag(8, help="Of the training, to count steps.", group="validate", range=COUNT)
    gradient_accumulation_steps: int = flag(1, help="Of the training, to count steps.", group="validate", range=COUNT)

    def __post_init__(self) -> None:
        if self.data is not None and self.train_jsonl is not None:
            raise ArgumentError("give the list once: DATA and --train_jsonl are the same.")
        self.train_jsonl = self.train_jsonl or self.data
        if (self.train_jsonl is None) == (self.dataset_name is None):
            found = "both" if self.train_jsonl else "neither"
            raise ArgumentError(f"give a JSONL file or --dataset_name (found {found}).")
        for name, wanted in (("transcribe", self.transcribe), ("compare_voices", self.compare_voices)):
            if wanted and not self.deep:
                raise ArgumentError(f"--{name} listens to the audio; add --deep.")
        if self.fix is not None and self.train_jsonl is None:
            raise ArgumentError("--fix writes a JSONL file; it needs one to start from, not --dataset_name.")


def validate(words: list[str]) -> None:
    """Run `validate` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, or the data cannot be read at all.
        SystemExit: with code 1, there are errors.
    """
    flags = parse_flags(ValidateFlags, "validate", words, SUMMARY)
    from vibevoice_finetune.data.rows import Columns
    from vibevoice_finetune.files.atomic import check_writable
    from vibevoice_finetune.validation.findings import Severity, counted
    from vibevoice_finetune.validation.fix import check_targets, write_fixed
    from vibevoice_finetune.validation.lines import report_lines
    from vibevoice_finetune.validation.report import write_page
    from vibevoice_finetune.validation.validate import Options
    from vibevoice_finetune.validation.validate import validate as look

    if flags.fix is not None:
        check_targets(Path(flags.fix))
    if flags.report is not None:
        if Path(flags.report).suffix.lower() not in (".html", ".htm"):
            raise ArgumentError(f"--report {shown(flags.report)}: is a web page; name a file that ends in .html.")
        check_writable(Path(flags.report).parent, "--report", Path(flags.report))
    columns = Columns(
        flags.text_column_name, flags.audio_column_name, flags.voice_prompts_column_name, flags.speaker_column_name
    )
    rows_a_step = flags.per_device_train_batch_size * flags.gradient_accumulation_steps
    options = Options(deep=flags.deep, ears=_ears(flags), rows_a_step=rows_a_step)
    train, held_out = _read(flags, columns)
    found = look(train, held_out, options, _progress)
    for line in report_lines(found, flags.max_shown, deep=flags.deep):
        print(line)  # noqa: T201  # what was asked for
    if flags.report is not None:
        write_page(Path(flags.report), found, flags.train_jsonl or str(flags.dataset_name))
        print(f"report: {flags.report}")  # noqa: T201
    if flags.fix is not None and flags.train_jsonl is not None:
        fixed = write_fixed(Path(flags.train_jsonl), Path(flags.fix), columns, found.findings)
        print(  # noqa: T201
            f"fixed: {flags.fix}: {counted(fixed.kept, 'row')} as before, {fixed.corrected:,} corrected, "
            f"{fixed.left_out:,} left out; line by line in {fixed.changes}"
        )
    if found.count(Severity.ERROR):
        raise SystemExit(EXIT_ERRORS_FOUND)


def _read(flags: ValidateFlags, columns: "Columns") -> tuple["ReadRows", "ReadRows | None"]:
    from vibevoice_finetune.validation.read import read_file, read_hub

    def of_hub(split: str) -> "ReadRows":
        return read_hub(
            str(flags.dataset_name),
            flags.dataset_config_name,
            split,
            columns,
            None,
            ignore_verifications=flags.ignore_verifications,
        )

    train = read_file(Path(flags.train_jsonl), columns) if flags.train_jsonl else of_hub(flags.train_split_name)
    if flags.validation_jsonl:
        return train, read_file(Path(flags.validation_jsonl), columns)
    if flags.dataset_name is None:
        return train, None
    try:
        return train, of_hub(flags.eval_split_name)
    except DataError:
        if flags.eval_split_name != RowFlags.eval_split_name:
            raise
        return train, None  # the training split could be read, so there is only no other


def _ears(flags: ValidateFlags) -> "Ears":
    from vibevoice_finetune.validation.listen import Ears

    recogniser, encoder = None, None
    if flags.transcribe:
        from vibevoice_finetune.evaluation.recogniser import load_recogniser

        recogniser = load_recogniser(flags.recognizer, flags.language)
    if flags.compare_voices:
        from vibevoice_finetune.evaluation.speaker_similarity import SpeakerEncoder

        encoder = SpeakerEncoder()
    return Ears(recogniser, encoder)


def _progress(heard: Iterable["Heard"], total: int) -> Iterable["Heard"]:
    """A bar on the terminal while recordings are listened to."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(heard, "listening", total=total, console=console, transient=True, disable=not console.is_terminal)
