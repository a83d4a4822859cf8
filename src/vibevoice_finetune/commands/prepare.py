"""The command `prepare`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError, shown
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, SHARE_BELOW_ONE, Range, flag
from vibevoice_finetune.flags.loop import LARGEST_SEED

if TYPE_CHECKING:
    from vibevoice_finetune.preparation.run import PrepareRequest

SUMMARY = "Make a data set for train from recordings, with or without text."
Format = Literal[
    "auto", "recordings", "clips", "subtitles", "ljspeech", "vctk", "commonvoice", "table", "gptsovits", "f5", "dataset"
]


@dataclass(kw_only=True)
class PrepareFlags:
    """The flags of `prepare`."""

    source: str = flag(
        help="A folder, a table (csv, tsv, list), a zip, an audio or video file, or a Hugging Face data set.",
        is_path=True,
        positional=True,
    )
    output: str = flag(help="Folder to write into; run again, it does only what is missing.", is_path=True, group="run")
    processes: int | None = flag(
        None, help="Recordings that are done at the same time.", range=COUNT, group="run", shown_default="all cores"
    )
    shard: str | None = flag(
        None, help="I/N: do every Nth recording, from the Ith (0 to N - 1); the last job writes the rows.", group="run"
    )
    ray: bool = flag(False, help="Spread the recordings over Ray's workers (extra ray).", group="run")
    seed: int = flag(
        42,
        help="Of the choice of validation rows and voice prompts.",
        range=Range(at_least=0, at_most=LARGEST_SEED),
        group="run",
    )

    format: Format = flag("auto", help="Of the source; auto looks and says what it found.", group="source")
    dataset_config_name: str | None = flag(
        None, help="Configuration of a Hugging Face data set.", group="source", shown_default="its only one"
    )
    train_split_name: str = flag("train", help="Split of a Hugging Face data set that is taken.", group="source")
    audio_column_name: str | None = flag(
        None, help="Column with the audio files.", group="source", shown_default="by its usual names"
    )
    text_column_name: str | None = flag(
        None, help="Column with the texts.", group="source", shown_default="by its usual names"
    )
    speaker_column_name: str | None = flag(
        None, help="Column with the speakers.", group="source", shown_default="by its usual names"
    )
    speaker: str = flag("speaker", help="Who speaks, where the source does not say.", group="source")
    num_speakers: int = flag(
        1,
        help="People in each recording whose source names none; 0: find out how many.",
        range=NOT_NEGATIVE,
        group="source",
    )
    text_offset_sec: float = flag(0.0, help="Added to the times of subtitles and labels, in seconds.", group="source")

    min_sec: float = flag(2.0, help="Shortest clip, in seconds.", range=POSITIVE, group="cutting")
    max_sec: float = flag(20.0, help="Longest clip, in seconds.", range=POSITIVE, group="cutting")
    min_pause_sec: float = flag(
        0.3, help="Shortest silence to cut at, in seconds.", range=Range(at_least=0.12), group="cutting"
    )
    lead_in_sec: float = flag(
        0.1,
        help="Silence of the recording kept before a clip's speech, in seconds.",
        range=NOT_NEGATIVE,
        group="cutting",
    )
    run_out_sec: float = flag(0.3, help="Silence kept after it, in seconds.", range=NOT_NEGATIVE, group="cutting")

    recognizer: str = flag(
        "none",
        help="Writes missing texts and checks those that are there: moonshine (English, no download), or a Whisper "
        "model: a size such as small, a Hub id or a folder (extra asr).",
        group="text",
    )
    language: str | None = flag(
        None, help="Of the recordings, two letters.", group="text", shown_default="heard by the recogniser"
    )
    max_text_error: float = flag(
        0.3, help="Share of letters that may differ between a text and what is heard.", range=SHARE, group="text"
    )

    reject: str | None = flag(
        None,
        help="Warnings of validate that leave a clip out, such as noise,music,clipped; other clips keep them.",
        is_list=True,
        group="rows",
        shown_default="none",
    )
    validation_share: float = flag(
        0.05, help="Share of the audio held out for validation.", range=SHARE_BELOW_ONE, group="rows"
    )
    dialogue: bool = flag(False, help="Also join neighbouring turns into rows of 2 to 4 speakers.", group="rows")
    max_dialogue_sec: float = flag(60.0, help="Longest of these, in seconds.", range=POSITIVE, group="rows")

    def __post_init__(self) -> None:
        if self.max_sec < self.min_sec + self.lead_in_sec + self.run_out_sec:
            raise ArgumentError(f"--max_sec {self.max_sec:g}: must be longer than --min_sec and the edges together.")
        if self.shard is not None and self.ray:
            raise ArgumentError("--shard and --ray are two ways of spreading the work; leave one of the two out.")


def prepare(words: list[str]) -> None:
    """Run `prepare` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags or the source, nothing that can be used, or the output cannot be written.
    """
    flags = parse_flags(PrepareFlags, "prepare", words, SUMMARY, takes_config=True)
    request = request_of(flags)
    from vibevoice_finetune.latents.progress import FillProgress
    from vibevoice_finetune.preparation import run

    with FillProgress(shown=True) as bar:
        started = False

        def told(done: int, total: int, audio_sec: float) -> None:
            nonlocal started
            if not started:
                bar.start("recordings", total)
                started = True
            bar.update(done, audio_sec)

        found = run.prepare(request, told)
    run.write_settings(request.output, asdict(flags))
    for line in found.lines():
        print(line)  # noqa: T201  # the result
    if found.split is not None:
        print(f"the rows are {request.output / run.TRAIN_FILE} and {run.VALIDATION_FILE} beside it")  # noqa: T201


def request_of(flags: PrepareFlags) -> "PrepareRequest":
    """What the flags ask for.

    Raises:
        ArgumentError: `--shard` is not I/N.
    """
    from vibevoice_finetune.preparation.cut import CutSettings
    from vibevoice_finetune.preparation.job import JobSettings
    from vibevoice_finetune.preparation.run import PrepareRequest

    columns = {
        "audio": flags.audio_column_name,
        "text": flags.text_column_name,
        "speaker": flags.speaker_column_name,
    }
    return PrepareRequest(
        source=Path(flags.source),
        output=Path(flags.output),
        form=flags.format,
        dataset_config=flags.dataset_config_name,
        split=flags.train_split_name,
        columns={kind: name for kind, name in columns.items() if name is not None},
        speaker=flags.speaker,
        job=JobSettings(
            cutting=CutSettings(
                flags.min_sec, flags.max_sec, flags.min_pause_sec, flags.lead_in_sec, flags.run_out_sec
            ),
            recogniser=flags.recognizer,
            language=flags.language,
            num_speakers=flags.num_speakers,
            dialogue=flags.dialogue,
            max_dialogue_sec=flags.max_dialogue_sec,
            max_text_error=flags.max_text_error,
            offset_sec=flags.text_offset_sec,
        ),
        reject=_kinds(flags.reject),
        validation_share=flags.validation_share,
        seed=flags.seed,
        processes=flags.processes,
        shard=_shard(flags.shard),
        use_ray=flags.ray,
    )


def _kinds(text: str | None) -> tuple[str, ...]:
    from vibevoice_finetune.preparation.quality import REJECTABLE

    kinds = tuple(kind.strip() for kind in (text or "").split(",") if kind.strip())
    for kind in kinds:
        if kind not in REJECTABLE:
            raise ArgumentError(f"--reject {shown(kind)}: is not a warning; there are {', '.join(REJECTABLE)}.")
    return kinds


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ArgumentError(f"--shard {text}: expected I/N with I from 0 to N - 1, such as 0/4.")
    return int(number), int(count)
