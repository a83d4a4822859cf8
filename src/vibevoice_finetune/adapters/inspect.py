"""What is inside an adapter or a checkpoint, as lines to read.

Why: "my LoRA has no effect" is answered by looking: which parts are there, do they differ from the base, and does the
program that is to play them list the folder and read its files.

In: a folder, and a base checkpoint if it is to be compared. Out: an `Inspection`. No model is built; a comparison
holds one tensor of each side in memory.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vibevoice_finetune.adapters.check import base_tensors, check_records, compare_language_model, open_for
from vibevoice_finetune.adapters.compatibility import lines_for_adapter, lines_for_base_model
from vibevoice_finetune.adapters.files import check_finite, read_json
from vibevoice_finetune.adapters.lora import LowRank
from vibevoice_finetune.adapters.read import (
    CONFIG_FILE,
    LANGUAGE_MODEL,
    AdapterContents,
    BlockContents,
    open_adapter,
)
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.config import Layout
from vibevoice_finetune.base_model.load import (
    BaseModel,
    encoder_fingerprint,
    model_fingerprint,
    weight_index,
)
from vibevoice_finetune.base_model.parts import facts, tensor_shapes
from vibevoice_finetune.base_model.weights import read_tensors
from vibevoice_finetune.errors import AdapterError, BaseModelError
from vibevoice_finetune.files.headers import StoredTensor


@dataclass(frozen=True)
class Change:
    """How far tensors are from those of the base.

    Attributes:
        norm: Frobenius norm of the difference, over all tensors of a block.
        base_norm: of the base's tensors themselves; None without a base.
        untrained: whether every tensor equals the base's, up to the rounding to the coarser of the two dtypes.
    """

    norm: float
    base_norm: float | None
    untrained: bool

    def words(self) -> str:
        """The change for people."""
        if self.untrained:
            return "untrained: equal to the base"
        relative = f" ({self.norm / self.base_norm:.3%} of the base's {self.base_norm:.4g})" if self.base_norm else ""
        return f"change {self.norm:.4g}{relative}"


@dataclass(frozen=True)
class PartReport:
    """One block of what was inspected.

    Attributes:
        title: its name for people.
        form: what of it is there, as `LoRA of rank 8 on q_proj, v_proj`.
        num_tensors: tensors.
        num_parameters: numbers in them.
        num_bytes: that they take.
        dtypes: what they are stored in.
        files: where they lie, relative to the folder.
        change: against the base; None if that cannot be said without one.
    """

    title: str
    form: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: str
    files: tuple[str, ...]
    change: Change | None

    def line(self) -> str:
        """The part for people."""
        change = f"; {self.change.words()}" if self.change is not None else ""
        where = f", in {', '.join(self.files)}" if self.files else ""
        return (
            f"  {self.title}: {self.form}, {self.num_tensors} tensors, {self.num_parameters:,} parameters, "
            f"{self.dtypes}, {self.num_bytes / 1e6:,.2f} MB{where}{change}"
        )


@dataclass(frozen=True)
class Inspection:
    """What was found: facts about the whole, its parts, who can load it, and what to beware of."""

    heading: tuple[str, ...]
    parts: tuple[PartReport, ...]
    readers: tuple[str, ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """All of it for people, without the warnings."""
        return [*self.heading, *(part.line() for part in self.parts), "read by", *self.readers]


def inspect_adapter(folder: Path, base: BaseModel | None) -> Inspection:
    """Look into an adapter folder of any known shape.

    Args:
        folder: the adapter, or a folder that holds it as `lora/`.
        base: the model to hold it against; None: only what the folder itself tells is checked.

    Raises:
        AdapterError: the folder is not whole, or does not fit the base.
        BaseModelError: the base's weights cannot be used.
    """
    if base is None:
        contents = open_adapter(folder)
        for part in contents.blocks:
            for stored in part.tensors():
                check_finite(stored)
        check_records(contents)
    else:
        contents = open_for(tensor_shapes(base.config), folder)
    fingerprint = None if base is None else model_fingerprint(base)
    stored_base = {} if base is None else weight_index(base).tensors
    parts = tuple(_adapter_part(contents, part, stored_base) for part in contents.blocks)
    warnings = [*contents.warnings]
    copied = _copy_warning(contents, base, stored_base)
    warnings += [copied] if copied else []
    if contents.info is not None and fingerprint not in (None, contents.info.base_fingerprint):
        warnings.append(
            f"{contents.folder}: was made on another base model ({contents.info.base_model}); changes are counted "
            f"against {base.source if base else ''} all the same"
        )
    warnings += [
        f"{contents.folder}: the {part.title} is untrained: it equals the base"
        for part in parts
        if part.change is not None and part.change.untrained
    ]
    heading = tuple(_adapter_heading(contents, fingerprint))
    return Inspection(heading, parts, tuple(lines_for_adapter(contents, _task_type(contents))), tuple(warnings))


def inspect_base_model(checkpoint: BaseModel, base: BaseModel | None) -> Inspection:
    """Look into a checkpoint of either layout.

    Args:
        checkpoint: what to look into.
        base: the model to hold it against, in either layout.

    Raises:
        BaseModelError: weights are missing, damaged, or the two models have different shapes.
    """
    if base is not None and tensor_shapes(checkpoint.config) != tensor_shapes(base.config):
        raise BaseModelError(
            f"{checkpoint.source}: has other tensors than {base.source}, so they cannot be compared; give the base "
            "model of the same size as --model_name_or_path"
        )
    index = weight_index(checkpoint)
    stored_base = None if base is None else weight_index(base).tensors
    grouped: dict[str, dict[str, StoredTensor]] = {}
    for name, stored in index.tensors.items():
        title = next(title for prefix, title in tensor_names.BLOCK_TITLES.items() if name.startswith(prefix))
        grouped.setdefault(title, {})[name] = stored
    parts = tuple(
        PartReport(
            title=title,
            form="all weights",
            num_tensors=len(tensors),
            num_parameters=sum(math.prod(stored.shape) for stored in tensors.values()),
            num_bytes=sum(stored.num_bytes for stored in tensors.values()),
            dtypes=", ".join(sorted({stored.dtype for stored in tensors.values()})),
            files=(),
            change=None if stored_base is None else _checkpoint_change(tensors, stored_base),
        )
        for title, tensors in grouped.items()
    )
    num_files = len({stored.file for stored in index.tensors.values()})
    num_files = len({stored.file for stored in index.tensors.values()})
    heading = (
        f"model {checkpoint.source}: {checkpoint.layout.value} layout, weights in {num_files} file(s), "
        f"{sum(part.num_parameters for part in parts):,} parameters"
    )
    readers = tuple(lines_for_base_model(checkpoint.layout is Layout.NATIVE))
    return Inspection((heading, *_checkpoint_facts(checkpoint)), parts, readers, ())


def _copy_warning(contents: AdapterContents, base: BaseModel | None, tensors: Mapping[str, StoredTensor]) -> str | None:
    """What to say of a whole language model beside the parts; one that differs from the base is only reported."""
    if not contents.language_model_copy:
        return None
    if base is None:
        names = ", ".join(path.name for path in contents.language_model_copy[:3])
        return (
            f"{contents.folder}: {names} holds a whole language model, which is not applied; "
            "give --model_name_or_path to compare it with the base's"
        )
    try:
        return compare_language_model(contents, base_tensors(tensors))
    except AdapterError as error:
        return str(error)


def _checkpoint_facts(checkpoint: BaseModel) -> Iterator[str]:
    known = facts(checkpoint.config)
    output = "tied to the embedding" if known.tied else "of its own"
    yield (
        f"  hidden size {known.hidden_size:,}, {known.num_layers} layers, head of {known.num_head_layers}; vocabulary "
        f"{known.vocab_size:,}, output matrix {output}"
    )
    yield (
        f"  a frame is {known.hop_length:,} samples of {known.sampling_rate_hz:,} Hz "
        f"({known.sampling_rate_hz / known.hop_length:g} a second); latents of {known.acoustic_dim} acoustic and "
        f"{known.semantic_dim} semantic numbers"
    )
    yield f"  fingerprint {model_fingerprint(checkpoint)}, of the encoders {encoder_fingerprint(checkpoint)}"


def _adapter_heading(contents: AdapterContents, fingerprint: str | None) -> Iterator[str]:
    yield f"adapter {contents.folder}"
    if contents.unread:
        yield f"  the same parts in another form, not read here: {', '.join(contents.unread)}"
    info = contents.info
    if info is None:
        named = next((part.rules.base_model for part in contents.blocks if part.rules is not None), None)
        yield f"  written by another program; it names the base model {named or 'nowhere'}"
        yield "  does not say whether it was trained with voice prompts"
        return
    said = {None: "", True: ", which matches", False: ", which DIFFERS from the base given"}
    matches = None if fingerprint is None else info.base_fingerprint == fingerprint
    yield f"  written by vibevoice-finetune {info.versions.get('vibevoice-finetune', '')}".rstrip()
    yield f"  base model {info.base_model}, fingerprint {info.base_fingerprint}{said[matches]}"
    yield f"  trained {'with' if info.expects_voice_prompt else 'without'} voice prompts"


def _adapter_part(
    contents: AdapterContents, part: BlockContents, stored_base: Mapping[str, StoredTensor]
) -> PartReport:
    tensors = list(part.tensors())
    return PartReport(
        title=part.block.title,
        form=" and ".join(_forms(part)),
        num_tensors=len(tensors),
        num_parameters=sum(stored.tensor.numel() for stored in tensors),
        num_bytes=sum(stored.tensor.nbytes for stored in tensors),
        dtypes=", ".join(sorted({str(stored.tensor.dtype).removeprefix("torch.") for stored in tensors})),
        files=tuple(sorted({stored.file.relative_to(contents.folder).as_posix() for stored in tensors})),
        change=_adapter_change(part, stored_base),
    )


def _forms(part: BlockContents) -> Iterator[str]:
    if part.full:
        yield "all weights"
    if not part.low_rank:
        return
    leaves = Counter(name.removesuffix(".weight").rpartition(".")[2] for name in part.low_rank)
    ranks = sorted({pair.rank for pair in part.low_rank.values()})
    scales = sorted({pair.scaling for pair in part.low_rank.values()})
    on = ", ".join(f"{leaf} ×{count}" for leaf, count in sorted(leaves.items()))
    kind = "DoRA" if any(pair.magnitude for pair in part.low_rank.values()) else "LoRA"
    yield (f"{kind} of rank {', '.join(map(str, ranks))}, scale {', '.join(f'{scale:g}' for scale in scales)}, on {on}")


@torch.no_grad()
def _adapter_change(part: BlockContents, stored_base: Mapping[str, StoredTensor]) -> Change | None:
    """The change of a block; fully trained weights and DoRA need the base, LoRA alone does not."""
    changed = {*part.full, *part.low_rank}
    if not stored_base:
        if part.full:
            return None
        if any(pair.magnitude is not None for pair in part.low_rank.values()):
            return None
        return _sum_up((_low_rank_norm(pair), None, not _moves(pair)) for pair in part.low_rank.values())
    return _sum_up(
        _tensor_change(base, part.full[name].tensor if name in part.full else base, part.low_rank.get(name))
        for name, base in read_tensors({name: stored_base[name] for name in stored_base if name in changed})
    )


def _checkpoint_change(tensors: Mapping[str, StoredTensor], stored_base: Mapping[str, StoredTensor]) -> Change:
    return _sum_up(
        _tensor_change(next(read_tensors({name: stored_base[name]}))[1], trained, None)
        for name, trained in read_tensors(tensors)
    )


def _tensor_change(base: Tensor, trained: Tensor, pair: LowRank | None) -> tuple[float, float | None, bool]:
    """Norm of the difference, norm of the base, whether they are equal."""
    base_norm = float(torch.linalg.vector_norm(base.float()))
    if pair is not None and pair.magnitude is not None:
        difference = pair.folded_into(trained.float()) - base.float()
        norm = float(torch.linalg.vector_norm(difference))
        return norm, base_norm, norm <= 1e-6 * base_norm
    if trained is base:
        assert pair is not None
        return _low_rank_norm(pair), base_norm, not _moves(pair)
    difference = trained.float() - base.float()
    if pair is not None and _moves(pair):
        difference += pair.scaling * (pair.up.tensor.float() @ pair.down.tensor.float())
    same = torch.equal(trained.to(base.dtype), base) or torch.equal(base.to(trained.dtype), trained)
    return float(torch.linalg.vector_norm(difference)), base_norm, same and not (pair is not None and _moves(pair))


def _low_rank_norm(pair: LowRank) -> float:
    """Frobenius norm of `scaling * B A` from the two r × r Gram matrices, without the product itself."""
    down, up = pair.down.tensor.double(), pair.up.tensor.double()
    squared = float(((up.T @ up) * (down @ down.T)).sum())
    return abs(pair.scaling) * math.sqrt(max(squared, 0.0))


def _moves(pair: LowRank) -> bool:
    return bool(pair.down.tensor.any()) and bool(pair.up.tensor.any()) and pair.scaling != 0


def _sum_up(changes: Iterable[tuple[float, float | None, bool]]) -> Change:
    found = list(changes)
    bases = [base for _, base, _ in found if base is not None]
    return Change(
        norm=math.hypot(*(norm for norm, _, _ in found)),
        base_norm=math.hypot(*bases) if bases else None,
        untrained=all(same for _, _, same in found),
    )


def _task_type(contents: AdapterContents) -> str | None:
    """The language model's PEFT task type, which decides whether PEFT loads it."""
    rules = next((part.rules for part in contents.blocks if part.block is LANGUAGE_MODEL), None)
    if rules is None:
        return None
    assert rules.where.name == CONFIG_FILE
    found = read_json(rules.where).get("task_type")
    if found is not None and not isinstance(found, str):
        raise AdapterError(f"{rules.where}: task_type is {found!r:.200}; expected a word such as FEATURE_EXTRACTION")
    return found
