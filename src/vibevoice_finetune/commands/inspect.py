"""The command `inspect`."""

from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import flag

SUMMARY = "Say what is inside an adapter or a model, and who can load it."


@dataclass(kw_only=True)
class InspectFlags:
    """The flags of `inspect`."""

    path: str = flag(help="An adapter or a model: a folder or a Hub id.", is_path=True, positional=True)
    model_name_or_path: str | None = flag(
        None, help="Base model to compare with: a folder or a Hub id, in either layout.", is_path=True
    )
    fix: str | None = flag(
        None, help="Rewrite an adapter of any known shape into the portable layout, in this folder.", is_path=True
    )
    expects_voice_prompt: bool = flag(
        True, help="With --fix: whether an adapter that does not say was trained with voice prompts."
    )
    cache_dir: str | None = flag(
        None, help="Folder for downloads from the Hub.", is_path=True, shown_default="the Hub's own"
    )


def inspect(words: list[str]) -> None:
    """Run `inspect` with the words that follow the command.

    Raises:
        UserError: a mistake in the flags, or what is to be looked into is not whole.
    """
    flags = parse_flags(InspectFlags, "inspect", words, SUMMARY)
    from rich.console import Console

    from vibevoice_finetune.adapters.inspect import inspect_adapter, inspect_base_model
    from vibevoice_finetune.adapters.read import ADAPTER_FILES, holds_adapter
    from vibevoice_finetune.adapters.rewrite import fix_adapter
    from vibevoice_finetune.base_model.hub import SETTINGS, locate
    from vibevoice_finetune.base_model.load import open_base_model

    cache_dir = None if flags.cache_dir is None else Path(flags.cache_dir)
    base = None if flags.model_name_or_path is None else open_base_model(flags.model_name_or_path, cache_dir)
    # The small files tell what it is, before the large ones of a repository are downloaded.
    small, _ = locate(flags.path, SETTINGS, cache_dir)
    if (small / "config.json").is_file() and not holds_adapter(small):
        if flags.fix is not None:
            raise ArgumentError(f"--fix rewrites an adapter; {flags.path} is a model: see convert")
        found = inspect_base_model(open_base_model(flags.path, cache_dir), base)
    else:
        folder, _ = locate(flags.path, ADAPTER_FILES, cache_dir)
        if flags.fix is not None and base is None:
            raise ArgumentError("--fix needs --model_name_or_path: the model that the adapter was trained on.")
        found = inspect_adapter(folder, base)
        if flags.fix is not None and base is not None:
            fix_adapter(folder, base, Path(flags.fix), expects_voice_prompt=flags.expects_voice_prompt)
    for line in found.lines():
        print(line)  # noqa: T201  # the result
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for warning in found.warnings:
        console.print(f"warning: {warning}", markup=False)
    if flags.fix is not None:
        print(f"the portable adapter is {flags.fix}")  # noqa: T201
