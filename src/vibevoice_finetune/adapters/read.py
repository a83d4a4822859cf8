"""What an adapter folder contains, whichever program wrote it.

Why: adapters of VibeVoice come in several shapes (this package's, the community trainer's with its full copies, PEFT
adapters of the head, flat or nested), and most complaints about them are that something in them was silently not
loaded. Here every tensor of a folder gets its place in the model, or the folder is refused with the tensor's name.

In: a folder. Out: `AdapterContents`, by the names of transformers' classes; `check` compares them with a model.

The shapes that are read, each flat or inside `lora/`:

- language model: `adapter_config.json` with `adapter_model.safetensors` or `.bin`, of any PEFT task type;
- diffusion head, full: `diffusion_head/model.safetensors`, `diffusion_head/diffusion_head_full.bin` or
  `diffusion_head_full.bin`, in the original's names, or as the state dict of a PEFT model;
- diffusion head, LoRA: `diffusion_head_lora/` (this package, under names that no other program takes for an adapter of
  its own) or `diffusion_head/` (others) with a configuration and tensors of PEFT;
- connectors: `model.safetensors` or `pytorch_model.bin` in `acoustic_connector/` and `semantic_connector/`.

Names of tensors may carry what wrappers add (`_orig_mod.` of torch.compile, `module.` of DDP, `base_model.model.` of
PEFT). A whole language model beside the parts, which older trainers leave there untrained, is not applied; `check`
compares it with the base model.

Of a part that is there in several forms, the first of the list is read, safetensors before `.bin`; a LoRA of the head
goes before a full head, which then is the same head merged.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vibevoice_finetune.adapters.files import Stored, is_file_inside, read_tensors
from vibevoice_finetune.adapters.info import INFO_FILE, AdapterInfo, FileRecord, read_info
from vibevoice_finetune.adapters.lora import LowRank
from vibevoice_finetune.adapters.lora_config import LoraRules, read_lora_rules
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.base_model.hub import Wanted
from vibevoice_finetune.errors import AdapterError, BaseModelError, shown
from vibevoice_finetune.files.atomic import settle


@dataclass(frozen=True)
class Block:
    """A part of the model that can be tuned: its name for people, its folder, and how its tensors' names begin."""

    title: str
    folder: str
    native: str
    original: str


LANGUAGE_MODEL = Block("language model", "", tensor_names.LANGUAGE_MODEL, tensor_names.LANGUAGE_MODEL)
HEAD = Block("diffusion head", "diffusion_head", tensor_names.DIFFUSION_HEAD, "model.prediction_head.")
ACOUSTIC_CONNECTOR = Block(
    "acoustic connector", "acoustic_connector", tensor_names.ACOUSTIC_CONNECTOR, "model.acoustic_connector."
)
SEMANTIC_CONNECTOR = Block(
    "semantic connector", "semantic_connector", tensor_names.SEMANTIC_CONNECTOR, "model.semantic_connector."
)
CONNECTORS = (ACOUSTIC_CONNECTOR, SEMANTIC_CONNECTOR)

ADAPTER_FILES = Wanted("adapter", ("*.json", "*.safetensors", "*.bin"), "hf download {}")
"""What is downloaded of an adapter on the Hub."""
NESTED = "lora"
CONFIG_FILE = "adapter_config.json"
LORA_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_LORA_FOLDER = "diffusion_head_lora"
HEAD_LORA_CONFIG = f"{HEAD_LORA_FOLDER}/lora_config.json"
HEAD_LORA_FILE = f"{HEAD_LORA_FOLDER}/lora.safetensors"
HEAD_FILES = (
    "diffusion_head/model.safetensors",
    "diffusion_head/diffusion_head_full.bin",
    "diffusion_head_full.bin",
)
CONNECTOR_FILES = ("model.safetensors", "pytorch_model.bin")

# A configuration and the files that its tensors may lie in.
_LANGUAGE_MODEL_LORA = (CONFIG_FILE, LORA_FILES)
_HEAD_LORAS = (
    (HEAD_LORA_CONFIG, (HEAD_LORA_FILE,)),
    *(
        (f"{folder}/{CONFIG_FILE}", tuple(f"{folder}/{file}" for file in LORA_FILES))
        for folder in (HEAD_LORA_FOLDER, HEAD.folder)
    ),
)
TENSOR_FILES = (
    *(file for _, files in (_LANGUAGE_MODEL_LORA, *_HEAD_LORAS) for file in files),
    *HEAD_FILES,
    *(f"{block.folder}/{file}" for block in CONNECTORS for file in CONNECTOR_FILES),
)
_FOLDERS = ("", HEAD_LORA_FOLDER, *(block.folder for block in (HEAD, *CONNECTORS)))
_TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
# What Trainer puts beside an adapter; not part of the model.
_TRAINER_STATE = re.compile(r"training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth")
# What `save_pretrained` of a language model without LoRA writes.
_LANGUAGE_MODEL_COPY = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

_WRAPPED = re.compile(r"^((module|_orig_mod)\.)+|(?<=base_model\.model\.)(module\.)+|_orig_mod\.")
_LORA_TENSOR = re.compile(
    r"(base_model\.model\.)*(?P<module>.+)\.lora_(?P<side>[AB]|magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_MAGNITUDE = "magnitude_vector"
# What may stand between `base_model.model.` and the block's own names: how much of the model PEFT was wrapped around.
_LANGUAGE_MODEL_WRAPPERS = ("model.language_model.", "language_model.", "model.", "")
_HEAD_WRAPPERS = ("base.", "")


@dataclass(frozen=True, eq=False)
class BlockContents:
    """What a folder holds for one block. Keys are native names of the base model's tensors."""

    block: Block
    low_rank: dict[str, LowRank] = field(default_factory=dict)
    rules: LoraRules | None = None
    wrapper: str = ""  # how the names of modules begin, to which `rules` apply
    full: dict[str, Stored] = field(default_factory=dict)
    spare: dict[str, Stored] = field(default_factory=dict)  # the same in another form: checked, not applied

    def tensors(self) -> Iterator[Stored]:
        """All that is applied."""
        for pair in self.low_rank.values():
            yield from pair.tensors()
        yield from self.full.values()


@dataclass(frozen=True, eq=False)
class AdapterContents:
    """What a folder holds."""

    folder: Path  # where the parts lie: the folder that was asked for, or `lora/` in it
    info: AdapterInfo | None  # of folders that this package wrote
    records: Mapping[str, FileRecord]  # of the same
    blocks: tuple[BlockContents, ...]
    language_model_copy: tuple[Path, ...]  # files with a whole language model, which is not applied
    placeholder: bool  # whether a pair of zeros stands where the language model's LoRA would be
    used: tuple[str, ...]  # files that were read
    unread: tuple[str, ...]  # files that hold a part which was read from another file
    warnings: tuple[str, ...]


def open_adapter(folder: Path) -> AdapterContents:
    """Read an adapter folder of any known shape.

    Tensors are mapped, not copied. `check.open_for` also checks their values and that they fit a model.

    Args:
        folder: the adapter, or a folder that holds it as `lora/` (a run's output, a `checkpoint-N`).

    Raises:
        AdapterError: there is none or more than one, a file is cut off, a tensor has no place or no partner.
    """
    root = _find_root(folder)
    files = frozenset(name for name in TENSOR_FILES if is_file_inside(root, name))
    copies = _find_strays(root)
    info, records = read_info(root / INFO_FILE) if is_file_inside(root, INFO_FILE) else (None, {})
    warnings: list[str] = []
    language_model, head = _read_language_model(root, files), _read_head(root, files)
    if head.spare and info is None:
        warnings.append(
            f"{root}: holds the diffusion head as LoRA and in full; the LoRA is applied, the full copy is not"
        )
    parts = (language_model, head, *(_read_connector(root, files, block) for block in CONNECTORS))
    placeholder = _is_placeholder(language_model)
    used = _used_files(root, parts)
    return AdapterContents(
        folder=root,
        info=info,
        records=records,
        blocks=tuple(
            part for part in parts if (part.low_rank or part.full) and not (placeholder and part is language_model)
        ),
        language_model_copy=copies,
        placeholder=placeholder,
        used=tuple(sorted(used)),
        unread=tuple(sorted(files - used)),
        warnings=tuple(warnings),
    )


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter rather than a model, as far as the names in it tell.

    Older trainers leave a `config.json`, which models have, in the folder of an adapter.
    """
    places = [folder / block.folder for block in (HEAD, *CONNECTORS)]
    return any(_holds_parts(root) for root in (folder, folder / NESTED)) or any(place.is_dir() for place in places)


def _find_root(folder: Path) -> Path:
    for place in (folder, folder / NESTED):
        settle(place)  # what a crash left half replaced is put back
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise AdapterError(f"{folder}: {found}; give the folder of an adapter, such as OUT/lora or OUT/checkpoint-100")
    roots = [root for root in (folder / NESTED, folder) if _holds_parts(root)]
    if len(roots) == 2:
        raise AdapterError(f"{folder}: there is an adapter in it and another in {roots[0]}; name the one that you mean")
    if not roots:
        nearby = sorted(str(path) for path in folder.glob(f"*/{NESTED}") if _holds_parts(path))
        hint = f"; did you mean {nearby[-1]}?" if nearby else ""
        raise AdapterError(
            f"{folder}: holds no adapter: expected {CONFIG_FILE} with {LORA_FILES[0]}, {HEAD_FILES[0]}, or a "
            f"connector, here or in {NESTED}/{hint}"
        )
    return roots[0]


def _holds_parts(root: Path) -> bool:
    return any((root / name).is_file() for name in (CONFIG_FILE, INFO_FILE, *TENSOR_FILES))


def _find_strays(root: Path) -> tuple[Path, ...]:
    """Every file that could hold tensors must be one that is read, or known not to be needed.

    Returns:
        The files of a whole language model.
    """
    copies: list[Path] = []
    for name in _FOLDERS:
        folder = root / name
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            inside = path.relative_to(root).as_posix()
            if path.suffix not in _TENSOR_SUFFIXES or inside in TENSOR_FILES or _TRAINER_STATE.fullmatch(path.name):
                continue
            if _LANGUAGE_MODEL_COPY.fullmatch(inside) and is_file_inside(root, inside):
                copies.append(path)
                continue
            raise AdapterError(
                f"{folder / shown(path.name)}: is not a known part of an adapter, so its tensors would have no "
                "effect; move it elsewhere if it does not belong here"
            )
    return tuple(copies)


def _read_language_model(root: Path, files: frozenset[str]) -> BlockContents:
    found = _read_peft(root, *_LANGUAGE_MODEL_LORA, files)
    if found is None:
        return BlockContents(LANGUAGE_MODEL)
    rules, tensors = found
    return _pair_up(LANGUAGE_MODEL, rules, tensors, _LANGUAGE_MODEL_WRAPPERS)


def _is_placeholder(part: BlockContents) -> bool:
    """Whether the part is the single pair of zeros that makes other programs list a folder."""
    pairs = list(part.low_rank.values())
    return len(pairs) == 1 and pairs[0].rank == 1 and not pairs[0].down.tensor.any() and not pairs[0].up.tensor.any()


def _read_head(root: Path, files: frozenset[str]) -> BlockContents:
    found = [peft for place in _HEAD_LORAS if (peft := _read_peft(root, *place, files)) is not None]
    if len(found) > 1:
        places = " and ".join(rules.where.relative_to(root).as_posix() for rules, _ in found)
        raise AdapterError(f"{root}: holds more than one LoRA of the diffusion head ({places}); keep one of them")
    file = next((name for name in HEAD_FILES if name in files), None)
    tensors = {} if file is None else read_tensors(root / file)
    if not found:
        return BlockContents(HEAD, full=_by_native_name(HEAD, tensors))
    rules, matrices = found[0]
    part = _pair_up(HEAD, rules, matrices, _HEAD_WRAPPERS)
    if not any(_LORA_TENSOR.fullmatch(_unwrapped(name)) for name in tensors):
        return BlockContents(HEAD, part.low_rank, rules, part.wrapper, spare=_by_native_name(HEAD, tensors))
    full = _without_lora(tensors, matrices, part.wrapper)
    return BlockContents(HEAD, part.low_rank, rules, part.wrapper, full=_by_native_name(HEAD, full))


def _read_connector(root: Path, files: frozenset[str], block: Block) -> BlockContents:
    file = next((name for name in (f"{block.folder}/{file}" for file in CONNECTOR_FILES) if name in files), None)
    return BlockContents(block, full={} if file is None else _by_native_name(block, read_tensors(root / file)))


def _read_peft(
    root: Path, config: str, weights: tuple[str, ...], files: frozenset[str]
) -> tuple[LoraRules, dict[str, Stored]] | None:
    """The two files of a PEFT adapter in one place, if they are there."""
    found = next((file for file in weights if file in files), None)
    has_config = is_file_inside(root, config)
    if found is None and not has_config:
        return None
    if found is None or not has_config:
        missing, there = (config, found) if found else (weights[0], config)
        raise AdapterError(f"{root / missing}: is missing beside {there}; a PEFT adapter has both; copy it again")
    return read_lora_rules(root / config), read_tensors(root / found)


def _pair_up(block: Block, rules: LoraRules, tensors: Mapping[str, Stored], wrappers: tuple[str, ...]) -> BlockContents:
    """Find the weight that each pair of LoRA matrices belongs to."""
    sides: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        match = _LORA_TENSOR.fullmatch(_unwrapped(name))
        if match is None:
            raise AdapterError(
                f"{stored.where} is not a tensor of LoRA (lora_A, lora_B, lora_magnitude_vector), so it would have no "
                "effect; save the adapter with PEFT's save_pretrained"
            )
        sides.setdefault(match["module"], {})
        if match["side"] in sides[match["module"]]:
            raise AdapterError(f"{stored.where} is there twice, under two names; keep one adapter in the file")
        sides[match["module"]][match["side"]] = stored
    wrapper = next(prefix for prefix in wrappers if all(module.startswith(prefix) for module in sides))
    low_rank = {
        _native_name(block, module.removeprefix(wrapper) + ".weight", next(iter(pair.values()))): _low_rank(
            module, pair, rules
        )
        for module, pair in sides.items()
    }
    return BlockContents(block, low_rank, rules, wrapper)


def _low_rank(module: str, pair: Mapping[str, Stored], rules: LoraRules) -> LowRank:
    wanted = ["A", "B", *([_MAGNITUDE] if rules.magnitudes else [])]
    for missing in (side for side in wanted if side not in pair):
        side, stored = next(iter(pair.items()))
        partner = shown(stored.name.replace(f"lora_{side}", f"lora_{missing}"))
        raise AdapterError(f"{stored.file}: tensor {partner} is missing, its other half is there; copy it again")
    if _MAGNITUDE in pair and not rules.magnitudes:
        raise AdapterError(
            f"{pair[_MAGNITUDE].where}: belongs to DoRA, and {rules.where} does not say use_dora, so PEFT would drop "
            "it; copy the file that belongs to it"
        )
    if not rules.wants(module):
        raise AdapterError(
            f"{pair['A'].where}: {rules.where} does not name its module, so PEFT would drop it; "
            "add it to target_modules or remove the tensor"
        )
    rank = rules.rank_of(module)
    for side, axis in (("A", 0), ("B", 1)):
        shape = tuple(pair[side].tensor.shape)
        if len(shape) != 2 or shape[axis] != rank:
            raise AdapterError(f"{pair[side].where} has shape {shape}; {rules.where} gives this module the rank {rank}")
    return LowRank(pair["A"], pair["B"], rules.scaling_of(module), pair.get(_MAGNITUDE))


def _without_lora(tensors: Mapping[str, Stored], matrices: Mapping[str, Stored], wrapper: str) -> dict[str, Stored]:
    """Take the head out of a PEFT model's state dict; its copies of the LoRA matrices must be the adapter's."""
    full: dict[str, Stored] = {}
    for name, stored in tensors.items():
        twin = matrices.get(name.replace(".default.", "."))
        if twin is not None:
            if not torch.equal(twin.tensor.float(), stored.tensor.float()):
                raise AdapterError(f"{stored.where} has other values than {twin.where}; one of them is stale")
        else:
            plain = _unwrapped(name).removeprefix(f"base_model.model.{wrapper}").replace(".base_layer.", ".")
            full[plain] = stored
    return full


def _by_native_name(block: Block, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    for name, stored in tensors.items():
        if "lora_" in name:
            raise AdapterError(
                f"{stored.where} is a matrix of LoRA without its {CONFIG_FILE}, so its scale is not known; copy it"
            )
        plain = _unwrapped(name)
        for prefix in ("base_model.model.", block.original, block.original.removeprefix("model.")):
            plain = plain.removeprefix(prefix)
        native = _native_name(block, plain, stored)
        if native in renamed:
            raise AdapterError(
                f"{stored.where} is there twice, the other time as {shown(renamed[native].name)}; remove one of them"
            )
        renamed[native] = stored
    return renamed


def _unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile and DDP put into it."""
    return _WRAPPED.sub("", name)


def _native_name(block: Block, name: str, stored: Stored) -> str:
    try:
        return tensor_names.to_native(block.original + name)
    except BaseModelError as error:
        raise AdapterError(
            f"{stored.where}: the {block.title} of VibeVoice has no such tensor; is this an adapter of another model?"
        ) from error


def _used_files(root: Path, blocks: tuple[BlockContents, ...]) -> frozenset[str]:
    paths = {stored.file for part in blocks for stored in (*part.tensors(), *part.spare.values())}
    paths |= {part.rules.where for part in blocks if part.rules is not None}
    return frozenset(path.relative_to(root).as_posix() for path in paths)
