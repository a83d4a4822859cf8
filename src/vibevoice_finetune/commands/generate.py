"""The command `generate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, Range, flag
from vibevoice_finetune.flags.loop import LARGEST_SEED

if TYPE_CHECKING:
    from vibevoice_finetune.generation.order import Order

SUMMARY = "Speak a text with a VibeVoice model, with or without an adapter."


@dataclass(kw_only=True)
class GenerateFlags:
    """The flags of `generate`."""

    model_name_or_path: str = flag(
        help="VibeVoice model: a folder, a Hub id, or small (comes with the package).", group="model", is_path=True
    )
    adapter: str | None = flag(
        None, help="Result of a fine-tune: OUT/lora, OUT/checkpoint-N or a Hub id.", group="model", is_path=True
    )
    adapter_scale: float = flag(1.0, help="How much of the adapter: 0 the base model, 1 as trained.", group="model")
    text: list[str] = flag(
        [],
        help='What is said, plain or with "Speaker N: " before each line; \\n is a new line; may be repeated.',
        group="what is said",
    )
    script: list[str] = flag(
        [], help="Files with what is said, .txt or .json.", group="what is said", is_path=True, is_list=True
    )
    voice: list[str] = flag(
        [],
        help="A recording of each speaker, in ascending order of their numbers; for scripts that name none themselves.",
        group="what is said",
        is_path=True,
        is_list=True,
    )
    output: str = flag(
        help="File to write, .wav, .flac or .ogg; numbered if there are several scripts.",
        group="what is said",
        is_path=True,
    )
    overwrite: bool = flag(False, help="Replace files that exist, but never a voice.", group="what is said")
    cfg_scale: float = flag(
        1.3, help="Guidance by text and voice; 1 is none.", group="how it is said", range=NOT_NEGATIVE
    )
    num_diffusion_steps: int = flag(
        10, help="Solver steps per frame.", group="how it is said", range=Range(at_least=1, at_most=999)
    )
    seed: int = flag(
        42,
        help="The same seed makes the same audio.",
        group="how it is said",
        range=Range(at_least=0, at_most=LARGEST_SEED),
    )
    max_length_sec: float = flag(
        300.0, help="Where a script without an end is cut, in seconds.", group="how it is said", range=POSITIVE
    )
    batch_size: int = flag(8, help="Scripts that are spoken at the same time.", group="how it is said", range=COUNT)
    dtype: Literal["bf16", "bfloat16", "float32"] | None = flag(
        None, help="Of the weights.", group="model", shown_default="bf16 on an NVIDIA GPU, else float32"
    )
    device: str | None = flag(
        None, help="As torch names it.", group="model", shown_default="an NVIDIA GPU if there is one, else cpu"
    )
    processor_name_or_path: str | None = flag(
        None,
        help="Text tokenizer: a folder or a Hub id.",
        group="model",
        is_path=True,
        shown_default="the model's",
    )
    cache_dir: str | None = flag(
        None, help="Folder for downloads from the Hub.", group="model", is_path=True, shown_default="the Hub's own"
    )

    def __post_init__(self) -> None:
        if not (self.text or self.script):
            raise ArgumentError('nothing to say: give --text "Hello." or --script FILE.')
        if self.adapter is None and self.adapter_scale != 1.0:
            raise ArgumentError("--adapter_scale needs --adapter: there is nothing to scale.")


def generate(words: list[str]) -> None:
    """Run `generate` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, the scripts, the voices, the model or the adapter; or nothing was said.
    """
    flags = parse_flags(GenerateFlags, "generate", words, SUMMARY)
    from vibevoice_finetune.generation.order import carry_out

    carry_out(order_of(flags))


def parse(words: list[str]) -> "Order":
    """Check a command line and read its scripts; no model yet.

    Raises:
        ArgumentError: a wrong flag, combination of flags, or output.
        DataError: a script that cannot be said, a voice that is not there.
    """
    return order_of(parse_flags(GenerateFlags, "generate", words, SUMMARY))


def order_of(flags: GenerateFlags) -> "Order":
    """Read the scripts and check what can be checked without the model.

    Raises:
        ArgumentError: an output or a voice that cannot be used.
        DataError: a script that cannot be said, a voice that is not there.
    """
    from vibevoice_finetune.audio.source import parse_audio
    from vibevoice_finetune.data.script import shorten
    from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource
    from vibevoice_finetune.generation.order import DTYPES, Order, check_outputs, check_voices, output_paths
    from vibevoice_finetune.generation.scripts import read_scripts, script_from_text

    voices = [parse_audio(path, None, "--voice") for path in flags.voice]
    scripts = [script_from_text(text, voices, f'--text "{shorten(" ".join(text.split()), 40)}"') for text in flags.text]
    for path in flags.script:
        scripts += read_scripts(Path(path), voices)
    outputs = output_paths(Path(flags.output), len(scripts))
    check_outputs(outputs, scripts, overwrite=flags.overwrite)
    check_voices(scripts, voices)
    source = ModelSource(
        name_or_path=flags.model_name_or_path,
        adapter=flags.adapter,
        adapter_scale=flags.adapter_scale,
        dtype=None if flags.dtype is None else DTYPES[flags.dtype],
        device=flags.device,
        processor_name_or_path=flags.processor_name_or_path,
        cache_dir=None if flags.cache_dir is None else Path(flags.cache_dir),
    )
    request = GenerationRequest(
        model=source,
        scripts=tuple(scripts),
        cfg_scale=flags.cfg_scale,
        num_diffusion_steps=flags.num_diffusion_steps,
        seed=flags.seed,
        max_length_sec=flags.max_length_sec,
        batch_size=flags.batch_size,
    )
    return Order(request, source, outputs)
