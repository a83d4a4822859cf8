"""Which programs can load a folder, and what of it they would ignore.

Why: each of the programs looks for its own file names and is silent about the rest. What they list and what they read
is written down here, from their code, once.

In: what an adapter folder holds, or a checkpoint's layout. Out: lines to read.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from vibevoice_finetune.adapters.files import is_file_inside
from vibevoice_finetune.adapters.read import (
    CONFIG_FILE,
    CONNECTOR_FILES,
    CONNECTORS,
    HEAD,
    HEAD_FILES,
    LANGUAGE_MODEL,
    LORA_FILES,
    AdapterContents,
    BlockContents,
)
from vibevoice_finetune.base_model.tensor_names import to_original
from vibevoice_finetune.errors import shown

_CAUSAL_LM = "with transformers 4.51.3; 4.57.6 refuses task_type CAUSAL_LM"  # measured, with PEFT 0.15.2 to 0.21.2
_PEFT_NAME = "base_model.model."


@dataclass(frozen=True)
class _Program:
    """What a program looks for.

    Attributes:
        name: for people.
        lists: whether it offers a list of folders, of those with PEFT's two files.
        head_files: where it reads the diffusion head.
        connector_files: where it reads a connector, within the connector's folder.
    """

    name: str
    lists: bool
    head_files: tuple[str, ...]
    connector_files: tuple[str, ...]


_PROGRAMS = (
    _Program("the community's inference script", False, HEAD_FILES[1:2], CONNECTOR_FILES[1:]),
    _Program("the ComfyUI nodes", True, HEAD_FILES[:2], CONNECTOR_FILES),
)


def lines_for_adapter(contents: AdapterContents, task_type: str | None) -> Iterator[str]:
    """Who lists a folder and reads which parts of it.

    Args:
        contents: of the folder.
        task_type: that its `adapter_config.json` names.
    """
    yield "  vibevoice-finetune: every part"
    for program in _PROGRAMS:
        if program.lists and not _is_listed(contents):
            yield (
                f"  {program.name}: not in their lists, which ask for {CONFIG_FILE} and {LORA_FILES[0]}; "
                "run inspect --fix, or merge"
            )
            continue
        read: list[str] = []
        ignored: list[str] = []
        for part in contents.blocks:
            fault = _fault(contents, part, program)
            if fault:
                ignored.append(f"{part.block.title} ({fault})")
            else:
                read.append(part.block.title + _condition(part, task_type))
        words = ", ".join(read) or "nothing"
        yield f"  {program.name}: {words}" + (f"; would ignore: {', '.join(ignored)}" if ignored else "")
    if any(pair.magnitude is not None for part in contents.blocks for pair in part.low_rank.values()):
        yield "  DoRA: whoever loads with PEFT, as all of these do, gets it; a program with LoRA of its own does not"
    yield f"  PEFT, on the Qwen2 model inside: {_peft(contents, task_type)}"


def lines_for_base_model(native: bool) -> Iterator[str]:
    """Who reads a checkpoint of this layout."""
    yield "  vibevoice-finetune"
    if native:
        yield "  transformers (VibeVoiceForConditionalGeneration); not the community's scripts and the ComfyUI nodes"
    else:
        yield "  the community's scripts and the ComfyUI nodes"
        yield "  not transformers: it raises nothing and builds a model of other sizes; run `convert --layout native`"


def _is_listed(contents: AdapterContents) -> bool:
    """One node lists folders with either file of PEFT, another only those with both."""
    return is_file_inside(contents.folder, CONFIG_FILE) and any(
        is_file_inside(contents.folder, file) for file in LORA_FILES
    )


def _fault(contents: AdapterContents, part: BlockContents, program: _Program) -> str | None:
    """Why a program does not get a part; None if it does."""
    if part.block is LANGUAGE_MODEL:
        return _language_model_fault(part)
    if part.block is HEAD:
        wanted = program.head_files
    else:
        assert part.block in CONNECTORS
        wanted = tuple(f"{part.block.folder}/{file}" for file in program.connector_files)
    if not any(is_file_inside(contents.folder, name) for name in wanted):
        return f"it looks for {' or '.join(wanted)}"
    if part.block is HEAD and part.low_rank and part.full:
        return "its names are PEFT's"
    for native, stored in (part.full or part.spare).items():
        expected = to_original(native).removeprefix(part.block.original)
        if stored.name != expected:
            return f"its tensors' names are not the original's: {shown(stored.name)} should be {expected}"
    return None


def _language_model_fault(part: BlockContents) -> str | None:
    """PEFT wraps the Qwen2 model itself, so names that begin with more of the whole model find no module."""
    name = next(iter(part.low_rank.values())).down.name
    begins = name.partition("layers.")[0]
    return None if begins == _PEFT_NAME else f"its tensors' names begin with {shown(begins)}"


def _condition(part: BlockContents, task_type: str | None) -> str:
    return f" ({_CAUSAL_LM})" if part.block is LANGUAGE_MODEL and task_type == "CAUSAL_LM" else ""


def _peft(contents: AdapterContents, task_type: str | None) -> str:
    part = next((part for part in contents.blocks if part.block is LANGUAGE_MODEL), None)
    if contents.placeholder:
        return "nothing; the pair of zeros there only makes ComfyUI list the folder"
    if part is None:
        return f"nothing; there is no {CONFIG_FILE} with {LORA_FILES[0]}"
    fault = _language_model_fault(part)
    if fault is not None:
        return f"nothing ({fault})"
    others = [other.block.title for other in contents.blocks if other is not part]
    ignored = f"; would ignore: {', '.join(others)}" if others else ""
    return f"language model{_condition(part, task_type)}{ignored}"
