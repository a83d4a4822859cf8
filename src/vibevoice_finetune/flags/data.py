"""The flags that say where rows come from and how they become latents."""

from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, SHARE, SHARE_BELOW_ONE, Range, flag
from vibevoice_finetune.flags.shares import check_count, parse_shares

VALIDATION_HELP = "The same for evaluation."


@dataclass
class OneDataSet:
    """A data set to look at."""

    train_jsonl: str | None = flag(
        None,
        help='JSONL file, a row per line: {"text", "audio", "voice_prompts", "speaker"}.',
        group="data",
        is_path=True,
    )
    validation_jsonl: str | None = flag(None, help=VALIDATION_HELP, group="data", is_path=True)
    dataset_name: str | None = flag(
        None, help="Hugging Face data set: a Hub id or a folder of save_to_disk.", group="data", is_path=True
    )


@dataclass
class DataSets:
    """The data sets of a training."""

    train_jsonl: list[str] | None = flag(
        None,
        help='The training rows: JSONL files, a row per line: {"text", "audio", "voice_prompts", "speaker"}. Several '
        "are one data set, unless there is --mix.",
        group="data",
        is_path=True,
        is_list=True,
    )
    validation_jsonl: str | None = flag(None, help=VALIDATION_HELP, group="data", is_path=True)
    dataset_name: list[str] | None = flag(
        None,
        help="Hugging Face data sets, instead of JSONL files or besides them: Hub ids or folders of save_to_disk.",
        group="data",
        is_path=True,
        is_list=True,
    )
    mix: str | None = flag(
        None,
        help="Share of each data set in the rows of a step, as in 0.8,0.2: JSONL files first, in their order. An "
        "epoch is then a pass over the first set; the others go on where the last epoch left them.",
        group="data",
        is_list=True,
        shown_default="all rows of all sets, once per epoch",
    )


@dataclass
class ColumnFlags:
    """What the parts and columns of the data are called."""

    dataset_config_name: str | None = flag(None, help="Configuration of the Hugging Face data set.", group="data")
    train_split_name: str = flag("train", help="Its split for training.", group="data")
    eval_split_name: str = flag("validation", help="Its split for evaluation, if it has one.", group="data")
    text_column_name: str = flag("text", help="Column (or JSONL key) of the script.", group="data")
    audio_column_name: str = flag("audio", help="Column of the target audio.", group="data")
    voice_prompts_column_name: str = flag("voice_prompts", help="Column of the voice prompts.", group="data")
    speaker_column_name: str = flag(
        "speaker", help="Column of the speaker; other clips of the same speaker serve as voice prompts.", group="data"
    )
    ignore_verifications: bool = flag(False, help="Skip the checks of a Hub data set's files.", group="data")


@dataclass
class RowFlags(ColumnFlags, OneDataSet):
    """Where the rows of one data set come from, and what its columns are called."""


@dataclass
class DataArguments(ColumnFlags, DataSets):
    """Where rows come from and how they become latents."""

    eval_split_size: float = flag(
        0.0,
        help="Share of the training rows held out for evaluation if there is no other set.",
        group="data",
        range=SHARE_BELOW_ONE,
    )
    max_length: int | None = flag(
        None,
        help="Longest row, in tokens and frames together.",
        group="data",
        range=COUNT,
        shown_default="as many as the model has positions",
    )
    voice_prompt_drop_rate: float = flag(
        0.0,
        help="Share of rows shown without their voice prompts, drawn anew each epoch.",
        group="data",
        range=SHARE,
    )
    prompt_cuts_per_clip: int = flag(
        4,
        help="Random cuts of a clip that are encoded as its voice prompts, if it has no other.",
        group="data",
        range=Range(at_least=1, at_most=1000),
    )
    normalize_targets: bool = flag(
        True, help="Bring target audio to -25 dBFS, as voice prompts always are.", group="data"
    )
    latents_dir: str | None = flag(
        None,
        help="The latent store; several runs may share one.",
        group="data",
        is_path=True,
        shown_default="OUTPUT_DIR/latents",
    )
    max_tokens_per_batch: int | None = flag(
        None,
        help="Fill micro-batches with rows up to this many tokens, instead of --per_device_train_batch_size rows.",
        group="memory and speed",
        range=COUNT,
    )
    on_bad_row: Literal["error", "skip"] = flag(
        "error", help="What to do with a row that cannot be used: stop, or count it and go on.", group="data"
    )

    def __post_init__(self) -> None:
        names = [*(self.train_jsonl or ()), *(self.dataset_name or ())]
        if not names:
            raise ArgumentError("there is nothing to train on; give --train_jsonl or --dataset_name.")
        if self.shares is not None:
            check_count(self.shares, names)
        if self.mix is not None and self.max_tokens_per_batch is not None:
            raise ArgumentError(
                "--mix and --max_tokens_per_batch: shares are of rows, and such batches are filled by tokens; use "
                "--per_device_train_batch_size."
            )

    @property
    def shares(self) -> tuple[float, ...] | None:
        """What `--mix` says; None without it."""
        return None if self.mix is None else parse_shares(self.mix)
