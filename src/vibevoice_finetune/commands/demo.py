"""The command `demo`."""

from dataclasses import dataclass
from pathlib import Path

from vibevoice_finetune.commands.parser import parse_flags
from vibevoice_finetune.flags.declare import COUNT, flag

SUMMARY = "Fine-tune the small model that comes with the package to a bundled voice, in minutes."


@dataclass(kw_only=True)
class DemoFlags:
    """The flags of `demo`."""

    output_dir: str = flag("demo-output", help="A folder that is empty or not there yet.", is_path=True)
    max_steps: int = flag(150, help="Optimizer steps.", range=COUNT)


def demo(words: list[str]) -> None:
    """Run `demo` with the words that follow the command.

    Raises:
        UserError: the output folder is not empty, or matplotlib or diffusers is not installed.
    """
    flags = parse_flags(DemoFlags, "demo", words, SUMMARY)
    from vibevoice_finetune.demo.demo import run

    run(Path(flags.output_dir), flags.max_steps)
