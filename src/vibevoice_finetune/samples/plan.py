"""From a command line to the samples of a run: read and checked before the training costs time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vibevoice_finetune.arguments import Arguments
from vibevoice_finetune.base_model.load import BaseModel
from vibevoice_finetune.data.prompt import Encode, SpecialTokens
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.data.splits import columns_of
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.latents.processes import Processes, started_together
from vibevoice_finetune.samples.figures import Judges
from vibevoice_finetune.samples.record import SAMPLES
from vibevoice_finetune.samples.samples import SamplePlan, Samples, check_packages
from vibevoice_finetune.samples.script import SampleText, read_sample_script, texts_of_rows
from vibevoice_finetune.samples.speak import Speaker


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known of the samples before the data is read.

    Attributes:
        texts: of `--sample_script`; None where rows of the data are to be said.
        judges: who measures; None: nobody, or the first of several processes does.
    """

    texts: tuple[SampleText, ...] | None
    judges: Judges | None


def prepare_samples(arguments: Arguments) -> Prepared | None:
    """Read the script and load the judges, also those of `--select_best_by`; None if no samples are asked for.

    Raises:
        UserError: a package is missing, the script cannot be read, or one of its voices cannot be used.
    """
    loop = arguments.loop
    if not ((loop.sample_steps or loop.select_best_by) and loop.do_train):
        return None
    if loop.select_best_by and arguments.model.train_language_model:
        raise ArgumentError(
            "--select_best_by and --train_language_model: adapters are compared, and this run writes whole models; "
            "leave one of the two out."
        )
    check_packages()
    if loop.select_best_by and loop.process_index == 0:
        Judges(loop.recognizer, loop.language)  # not kept: found to be there, hours before it is needed
    if not loop.sample_steps:
        return None
    texts, judges = None, None
    if loop.sample_script is not None:
        texts = read_sample_script(Path(loop.sample_script), columns_of(arguments))
    if loop.sample_metrics and loop.process_index == 0:
        judges = Judges(loop.recognizer, loop.language)
        if texts is not None:
            judges.learn_voices(texts, loop.steering)
    return Prepared(texts, judges)


def make_samples(
    arguments: Arguments,
    prepared: Prepared,
    rows: Sequence[Row],
    base: BaseModel,
    base_fingerprint: str,
    model: nn.Module,
    encode: Encode,
    special: SpecialTokens,
) -> Samples:
    """The samples of a run whose model is in memory.

    Args:
        arguments: the parsed command line.
        prepared: what `prepare_samples` found.
        rows: of the data, to be said where no script is given.
        base: the base model, whose speech tokenizers are read.
        base_fingerprint: of the base model.
        model: without speech tokenizers, adapters attached.
        encode: the text tokenizer.
        special: ids of the control tokens.

    Raises:
        DataError: the figure that is to decide cannot be computed from these texts.
    """
    loop = arguments.loop
    texts = prepared.texts
    if texts is None:
        texts = texts_of_rows(rows, with_voices=arguments.data.voice_prompt_drop_rate < 1)
        if prepared.judges is not None:
            prepared.judges.learn_voices(texts, loop.steering)
    judged_by = prepared.judges.names if prepared.judges is not None else ()
    speaker = Speaker(model, base, encode, special, bf16=loop.bf16, keep=loop.keep_tokenizers)
    together = started_together(loop.process_index, loop.world_size) if loop.world_size > 1 else Processes()
    folder = Path(str(loop.output_dir)) / SAMPLES
    return Samples(folder, SamplePlan(texts, prepared.judges, judged_by), speaker, base_fingerprint, together)
