"""What lies in an adapter folder, whoever wrote it.

Why: adapters of VibeVoice come in several shapes (this package's, the community trainer's with its full copies, PEFT
adapters of the head, flat or nested), and most complaints about them are that something in them was silently not
loaded. Here every tensor of a folder gets its place in the model, or the folder is refused with the tensor's name.

In: a folder. Out: `AdapterContents`, by the names of transformers' classes; `adapter_fit` holds them against a model.

The shapes that are read, each flat or inside `lora/`:

- language model: `adapter_config.json` with `adapter_model.safetensors` or `.bin`, of any PEFT task type;
- diffusion head, full: `diffusion_head/model.safetensors`, `diffusion_head/diffusion_head_full.bin` or
  `diffusion_head_full.bin`, in the original's names, or as the state dict of a PEFT model;
- diffusion head, LoRA: `diffusion_head_lora/` (this package) or `diffusion_head/` (others) with the two PEFT files;
- connectors: `model.safetensors` or `pytorch_model.bin` in `acoustic_connector/` and `semantic_connector/`.

Where one part is there in several forms, the first of the list that exists is read, safetensors before `.bin`; a LoRA
of the head goes before a full head, which then is the same head merged.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from vibevoice_finetune.adapters.files import (
    Stored,
    is_file_inside,
    read_tensors,
    sha256,
)
from vibevoice_finetune.adapters.info import INFO_FILE, AdapterInfo, FileRecord, read_info
from vibevoice_finetune.adapters.lora_config import LoraRules, read_lora_rules
from vibevoice_finetune.base_model import tensor_names
from vibevoice_finetune.errors import AdapterError, CheckpointError


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

NESTED = "lora"
CONFIG_FILE = "adapter_config.json"
LORA_FILES = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_LORA_FOLDER = "diffusion_head_lora"
HEAD_FILES = (
    "diffusion_head/model.safetensors",
    "diffusion_head/diffusion_head_full.bin",
    "diffusion_head_full.bin",
)
CONNECTOR_FILES = ("model.safetensors", "pytorch_model.bin")

_LORA_FOLDERS = ("", "diffusion_head_lora/", "diffusion_head/")
_TENSOR_FILES = (
    *(folder + file for folder in _LORA_FOLDERS for file in LORA_FILES),
    *HEAD_FILES,
    *(f"{block.folder}/{file}" for block in CONNECTORS for file in CONNECTOR_FILES),
)
_TENSOR_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")
# What Trainer puts beside an adapter; no part of the model.
_TRAINER_STATE = re.compile(r"training_args\.bin|optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth")

_LORA_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.(?:default\.)?weight")
# What may stand between `base_model.model.` and the block's own names: how much of the model PEFT was wrapped around.
_LANGUAGE_MODEL_WRAPPERS = ("model.language_model.", "language_model.", "model.", "")
_HEAD_WRAPPERS = ("base.", "")


@dataclass(frozen=True, eq=False)
class LowRank:
    """LoRA of one weight (out, in): what is added is `scaling * up @ down`."""

    down: Stored  # A, (r, in)
    up: Stored  # B, (out, r)
    scaling: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.down.tensor.shape[0]


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
            yield pair.down
            yield pair.up
        yield from self.full.values()


@dataclass(frozen=True, eq=False)
class AdapterContents:
    """What a folder holds."""

    folder: Path  # where the parts lie: the folder that was asked for, or `lora/` in it
    info: AdapterInfo | None  # of folders that this package wrote
    records: Mapping[str, FileRecord]  # of the same
    blocks: tuple[BlockContents, ...]
    used: tuple[str, ...]  # files that were read
    unread: tuple[str, ...]  # files that hold a part which was read from another file
    warnings: tuple[str, ...]


def open_adapter(folder: Path) -> AdapterContents:
    """Read an adapter folder of any known shape.

    Tensors are mapped, not copied. `adapter_fit.open_for` also checks their values and that they fit a model.

    Args:
        folder: the adapter, or a folder that holds it as `lora/` (a run's output, a `checkpoint-N`).

    Raises:
        AdapterError: there is none or more than one, a file is torn, a tensor has no place or no partner.
    """
    root = _find_root(folder)
    files = frozenset(name for name in _TENSOR_FILES if is_file_inside(root, name))
    _refuse_strays(root)
    info, records = read_info(root / INFO_FILE) if is_file_inside(root, INFO_FILE) else (None, {})
    warnings: list[str] = []
    head = _read_head(root, files)
    if head.spare and info is None:
        warnings.append(
            f"{root}: holds the diffusion head as LoRA and in full; the LoRA is applied, the full copy is not"
        )
    parts = (_read_language_model(root, files), head, *(_read_connector(root, files, block) for block in CONNECTORS))
    blocks = tuple(part for part in parts if part.low_rank or part.full)
    used = _used_files(root, blocks)
    return AdapterContents(
        root, info, records, blocks, tuple(sorted(used)), tuple(sorted(files - used)), tuple(warnings)
    )


def check_records(contents: AdapterContents) -> None:
    """Hold the files that were read against what was written: each is recorded, unchanged, and no block is gone.

    A folder that another program wrote has no records, and nothing is checked.

    Raises:
        AdapterError: a file or a block is not as it was written.
    """
    if contents.info is None:
        return
    root, records = contents.folder, contents.records
    for name in contents.used:
        if name not in records:
            raise AdapterError(f"{root / name}: is not recorded in {INFO_FILE}; it was added after the run; remove it")
        if sha256(root / name) != records[name].sha256:
            raise AdapterError(
                f"{root / name}: is not what was written (its SHA-256 differs from {INFO_FILE}); copy it again"
            )
    there = {_folder_of_block(part.block.folder) for part in contents.blocks}
    for name in records:
        if name in (*_TENSOR_FILES, CONFIG_FILE) and _folder_of_block(Path(name).parent.name) not in there:
            raise AdapterError(
                f"{root / name}: is missing, {INFO_FILE} says that it was written; copy the folder again"
            )


def _find_root(folder: Path) -> Path:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        previous = folder.with_name(f".{folder.name}.previous")
        hint = f"; {previous} holds what it held when its replacement was interrupted" if previous.is_dir() else ""
        raise AdapterError(
            f"{folder}: {found}; give the folder of an adapter, such as OUT/lora or OUT/checkpoint-100{hint}"
        )
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
    return any((root / name).is_file() for name in (CONFIG_FILE, INFO_FILE, *_TENSOR_FILES))


def _refuse_strays(root: Path) -> None:
    """Every file that could hold tensors must be one that is read, or known to be none of the model's."""
    for sub in ("", *_LORA_FOLDERS[1:], *(f"{block.folder}/" for block in CONNECTORS)):
        folder = root / sub
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            unknown = path.suffix in _TENSOR_SUFFIXES and sub + path.name not in _TENSOR_FILES
            if unknown and not _TRAINER_STATE.fullmatch(path.name):
                raise AdapterError(
                    f"{path}: is no part of an adapter that is known here, so its tensors would have no effect; "
                    "move it elsewhere if it does not belong here"
                )


def _read_language_model(root: Path, files: frozenset[str]) -> BlockContents:
    found = _read_peft(root, "", files)
    if found is None:
        return BlockContents(LANGUAGE_MODEL)
    rules, tensors = found
    return _pair_up(LANGUAGE_MODEL, rules, tensors, _LANGUAGE_MODEL_WRAPPERS)


def _read_head(root: Path, files: frozenset[str]) -> BlockContents:
    ours, theirs = (_read_peft(root, folder, files) for folder in _LORA_FOLDERS[1:])
    if ours is not None and theirs is not None:
        raise AdapterError(f"{root}: holds two LoRAs of the diffusion head, in {' and '.join(_LORA_FOLDERS[1:])}")
    peft = ours or theirs
    file = next((name for name in HEAD_FILES if name in files), None)
    tensors = {} if file is None else read_tensors(root / file)
    if peft is None:
        return BlockContents(HEAD, full=_by_native_name(HEAD, tensors))
    rules, matrices = peft
    part = _pair_up(HEAD, rules, matrices, _HEAD_WRAPPERS)
    if not any(_LORA_TENSOR.fullmatch(name) for name in tensors):
        return BlockContents(HEAD, part.low_rank, rules, part.wrapper, spare=_by_native_name(HEAD, tensors))
    full = _unwrap(tensors, matrices, part.wrapper)
    return BlockContents(HEAD, part.low_rank, rules, part.wrapper, full=_by_native_name(HEAD, full))


def _read_connector(root: Path, files: frozenset[str], block: Block) -> BlockContents:
    file = next((name for name in (f"{block.folder}/{file}" for file in CONNECTOR_FILES) if name in files), None)
    return BlockContents(block, full={} if file is None else _by_native_name(block, read_tensors(root / file)))


def _read_peft(root: Path, folder: str, files: frozenset[str]) -> tuple[LoraRules, dict[str, Stored]] | None:
    """The two files of a PEFT adapter in one folder, if it has them."""
    config = folder + CONFIG_FILE
    weights = next((folder + file for file in LORA_FILES if folder + file in files), None)
    has_config = is_file_inside(root, config)
    if weights is None and not has_config:
        return None
    if weights is None or not has_config:
        missing, there = (config, weights) if weights else (folder + LORA_FILES[0], config)
        raise AdapterError(f"{root / missing}: is missing beside {there}; a PEFT adapter has both; copy it again")
    return read_lora_rules(root / config), read_tensors(root / weights)


def _pair_up(block: Block, rules: LoraRules, tensors: Mapping[str, Stored], wrappers: tuple[str, ...]) -> BlockContents:
    """Find the weight that each pair of LoRA matrices belongs to."""
    sides: dict[str, dict[str, Stored]] = {}
    for name, stored in tensors.items():
        match = _LORA_TENSOR.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{stored.where} is no matrix of LoRA (lora_A or lora_B of a module); nothing applies it"
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
    if len(pair) == 1:
        (side, stored), *_ = pair.items()
        partner = stored.name.replace(f"lora_{side}", "lora_B" if side == "A" else "lora_A")
        raise AdapterError(f"{stored.file}: tensor {partner} is missing, {stored.name} is there; copy it again")
    if not rules.wants(module):
        raise AdapterError(f"{pair['A'].where}: {rules.where} does not name its module, so PEFT would drop it")
    rank = rules.rank_of(module)
    for side, axis in (("A", 0), ("B", 1)):
        shape = tuple(pair[side].tensor.shape)
        if len(shape) != 2 or shape[axis] != rank:
            raise AdapterError(f"{pair[side].where} has shape {shape}; {rules.where} gives this module the rank {rank}")
    return LowRank(pair["A"], pair["B"], rules.scaling_of(module))


def _unwrap(tensors: Mapping[str, Stored], matrices: Mapping[str, Stored], wrapper: str) -> dict[str, Stored]:
    """Take the head out of a PEFT model's state dict; its copies of the LoRA matrices must be the adapter's."""
    full: dict[str, Stored] = {}
    for name, stored in tensors.items():
        twin = matrices.get(name.replace(".default.", "."))
        if twin is not None:
            if not torch.equal(twin.tensor.float(), stored.tensor.float()):
                raise AdapterError(f"{stored.where} has other values than {twin.where}; one of them is stale")
        else:
            full[name.removeprefix(f"base_model.model.{wrapper}").replace(".base_layer.", ".")] = stored
    return full


def _by_native_name(block: Block, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    renamed: dict[str, Stored] = {}
    for name, stored in tensors.items():
        if "lora_" in name:
            raise AdapterError(f"{stored.where} is a matrix of LoRA without its {CONFIG_FILE}; its scale is not known")
        native = _native_name(block, name, stored)
        if native in renamed:
            raise AdapterError(f"{stored.where} is there twice, the other time as {renamed[native].name}")
        renamed[native] = stored
    return renamed


def _native_name(block: Block, name: str, stored: Stored) -> str:
    try:
        return tensor_names.to_native(block.original + name)
    except CheckpointError as error:
        raise AdapterError(f"{stored.where}: the {block.title} of VibeVoice has no such tensor") from error


def _used_files(root: Path, blocks: tuple[BlockContents, ...]) -> frozenset[str]:
    paths = {stored.file for part in blocks for stored in (*part.tensors(), *part.spare.values())}
    paths |= {part.rules.where for part in blocks if part.rules is not None}
    return frozenset(path.relative_to(root).as_posix() for path in paths)


def _folder_of_block(folder: str) -> str:
    return HEAD.folder if folder == HEAD_LORA_FOLDER else folder
