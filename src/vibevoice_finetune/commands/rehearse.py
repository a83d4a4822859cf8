"""The command `rehearse`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, Range, flag
from vibevoice_finetune.flags.loop import LARGEST_SEED

if TYPE_CHECKING:
    from vibevoice_finetune.rehearsal import RehearsalRequest

SUMMARY = "Let the base model say texts of its own languages; writes a data set to mix in against forgetting."


@dataclass(kw_only=True)
class RehearseFlags:
    """The flags of `rehearse`."""

    model_name_or_path: str = flag(
        help="Base model: a folder or a Hub id, in either layout.", group="model", is_path=True
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
    script: str = flag(help="File with the texts, one on each line.", group="what is said", is_path=True)
    voices: str = flag(
        help="Folder with a recording of each voice; the texts go to them in turn.", group="what is said", is_path=True
    )
    output: str = flag(
        help="Folder of the data set; run again, it goes on where it was.", group="what is said", is_path=True
    )
    cfg_scale: float = flag(1.3, help="Guidance, as in generate.", group="how it is said", range=NOT_NEGATIVE)
    num_diffusion_steps: int = flag(
        10, help="Solver steps per frame.", group="how it is said", range=Range(at_least=1, at_most=999)
    )
    seed: int = flag(
        42, help="Of all randomness.", group="how it is said", range=Range(at_least=0, at_most=LARGEST_SEED)
    )
    max_length_sec: float = flag(
        60.0,
        help="Where a text without an end is cut, in seconds; it is left out.",
        group="how it is said",
        range=POSITIVE,
    )
    batch_size: int = flag(8, help="Texts that are spoken at the same time.", group="how it is said", range=COUNT)
    recognizer: str | None = flag(
        None,
        help="Who hears whether the last words were said: moonshine (English) or a Whisper model (extra asr).",
        group="what is left out",
        shown_default="nobody: silence, length and cut ends are looked at",
    )
    language: str = flag("en", help="Of the texts, two letters, for the recogniser.", group="what is left out")


def rehearse(words: list[str]) -> None:
    """Run `rehearse` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, the texts, the voices or the model.
    """
    request = request_of(parse_flags(RehearseFlags, "rehearse", words, SUMMARY))
    from vibevoice_finetune import rehearsal
    from vibevoice_finetune.latents.progress import FillProgress

    with FillProgress(shown=True) as bar:
        started = False

        def told(done: int, total: int) -> None:
            nonlocal started
            if not started:
                bar.start("texts", total)
                started = True
            bar.update(done)

        found = rehearsal.rehearse(request, told)
    print(found.line())  # noqa: T201  # the result


def request_of(flags: RehearseFlags) -> "RehearsalRequest":
    """What the flags ask for."""
    import torch

    from vibevoice_finetune.generation.generate import ModelSource
    from vibevoice_finetune.rehearsal import RehearsalRequest

    dtypes = {"bf16": torch.bfloat16, "float32": torch.float32}
    return RehearsalRequest(
        model=ModelSource(
            flags.model_name_or_path,
            dtype=None if flags.dtype is None else dtypes[flags.dtype],
            device=flags.device,
            processor_name_or_path=flags.processor_name_or_path,
            cache_dir=None if flags.cache_dir is None else Path(flags.cache_dir),
        ),
        texts=Path(flags.script),
        voices=Path(flags.voices),
        output=Path(flags.output),
        recogniser=flags.recognizer,
        language=flags.language,
        cfg_scale=flags.cfg_scale,
        num_diffusion_steps=flags.num_diffusion_steps,
        seed=flags.seed,
        batch_size=flags.batch_size,
        max_length_sec=flags.max_length_sec,
    )
