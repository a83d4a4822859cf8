"""Which programs can load a folder, and what of it they would ignore.

Why: each of the programs looks for its own file names and is silent about the rest. What they read is written down
here, from their code, once.

In: what an adapter folder holds, or a checkpoint's layout. Out: lines to read.
"""

from collections.abc import Iterator

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


def lines_for_adapter(contents: AdapterContents, task_type: str | None) -> Iterator[str]:
    """Who reads which parts of an adapter folder.

    Args:
        contents: of the folder.
        task_type: that its `adapter_config.json` names.
    """
    yield "  vibevoice-finetune: every part"
    for program, head_files, connector_files in (
        ("the community's inference script", HEAD_FILES[1:2], CONNECTOR_FILES[1:]),
        ("the ComfyUI nodes", HEAD_FILES[:2], CONNECTOR_FILES),
    ):
        read: list[str] = []
        ignored: list[str] = []
        for part in contents.blocks:
            fault = _fault(contents, part, task_type, head_files, connector_files)
            (ignored if fault else read).append(part.block.title + (f" ({fault})" if fault else ""))
        words = ", ".join(read) or "nothing"
        yield f"  {program}: {words}" + (f"; would ignore: {', '.join(ignored)}" if ignored else "")
    yield "  " + _peft_line(contents, task_type)


def lines_for_checkpoint(native: bool) -> Iterator[str]:
    """Who reads a checkpoint of this layout."""
    yield "  vibevoice-finetune"
    if native:
        yield "  transformers (VibeVoiceForConditionalGeneration); not the community's scripts and the ComfyUI nodes"
    else:
        yield "  the community's scripts and the ComfyUI nodes"
        yield "  not transformers: it raises nothing and builds a model of other sizes; run `convert --layout native`"


def _fault(
    contents: AdapterContents,
    part: BlockContents,
    task_type: str | None,
    head_files: tuple[str, ...],
    connector_files: tuple[str, ...],
) -> str | None:
    """Why a program that reads these files does not get the part; None if it does."""
    if part.block is LANGUAGE_MODEL:
        return _language_model_fault(part, task_type)
    if part.block is HEAD:
        wanted = head_files
    else:
        assert part.block in CONNECTORS
        wanted = tuple(f"{part.block.folder}/{file}" for file in connector_files)
    if any(is_file_inside(contents.folder, name) for name in wanted):
        if part.block is HEAD and part.low_rank and part.full:
            return "its names are PEFT's"
        return None
    return f"it looks for {' or '.join(wanted)}"


def _language_model_fault(part: BlockContents, task_type: str | None) -> str | None:
    """PEFT wraps the Qwen2 model itself, so names that begin with more of the whole model find no module."""
    if part.wrapper:
        return f"its tensors' names begin with base_model.model.{part.wrapper}"
    if task_type == "CAUSAL_LM":
        return "current versions of PEFT refuse task_type CAUSAL_LM here"
    return None


def _peft_line(contents: AdapterContents, task_type: str | None) -> str:
    part = next((part for part in contents.blocks if part.block is LANGUAGE_MODEL), None)
    name = "PEFT, on the Qwen2 model inside"
    if part is None:
        return f"{name}: nothing; there is no {CONFIG_FILE} with {LORA_FILES[0]}"
    fault = _language_model_fault(part, task_type)
    if fault is not None:
        return f"{name}: nothing ({fault})"
    others = [other.block.title for other in contents.blocks if other is not part]
    return f"{name}: language model" + (f"; would ignore: {', '.join(others)}" if others else "")
