"""Imports run in one direction: a module imports only modules that stand above it in this list.

A new module gets a line here, at the place where its reader would look for it. Imports inside functions and under
`TYPE_CHECKING` count too.
"""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "vibevoice_finetune"

ROOMS = (
    "__init__",
    "errors",
    "deepspeed_config",
    "arguments",
    "parsing",
    "data.decode",
    "data.audio",
    "data.rows",
    "data.tables",
    "data.manifest",
    "data.prompt",
    "data.scripts",
    "data.progress",
    "data.ranks",
    "data.shards",
    "data.digests",
    "data.latents",
    "data.readahead",
    "data.encode",
    "data.fill",
    "data.plan",
    "data.dataset",
    "data.sampler",
    "data.collate",
    "model.names",
    "model.original_config",
    "model.configs",
    "model.vibevoice",
    "model.attention",
    "model.sharding",
    "model.hub",
    "model.weights",
    "model.arithmetic",
    "model.checkpoint",
    "model.tokenizer",
    "model.processor",
    "model.random_checkpoint",
    "model.quantize",
    "model.adapter_files",
    "model.lora_config",
    "model.adapter_info",
    "model.adapter_folder",
    "model.adapter_fit",
    "model.adapters",
    "model.compilation",
    "model.adapter_load",
    "model.portable",
    "hub_upload",
    "model.noise",
    "model.losses",
    "model.objective",
    "model.speaking",
    "training.footprint",
    "training.ema",
    "training.guard",
    "training.callbacks",
    "training.checkpoints",
    "training.identity",
    "training.metrics",
    "training.zero2",
    "training.snapshot",
    "training.trainer",
    "training.preparation",
    "training.memory",
    "training.report",
    "training.run",
    "estimate",
    "generation",
    "generate_command",
    "export",
    "repair",
    "readers",
    "inspection",
    "export_command",
    "demo",
    "cli",
    "__main__",
)

WITHOUT_TORCH = (
    "__init__",
    "errors",
    "data.decode",
    "data.audio",
    "data.rows",
    "data.manifest",
    "data.prompt",
    "data.scripts",
    "cli",
    "__main__",
)
"""Rooms that must import in no time, or be readable without knowing tensors."""

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets")


def modules() -> dict[str, Path]:
    """Dotted names under the package, without it: ``data.prompt``. Empty ``__init__`` files of rooms are no modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] != "__init__" or len(parts) == 1 or imports_of(path):
            found[".".join(parts)] = path
    return found


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Every module that a file imports; ``from a import b`` counts as ``a`` and as ``a.b``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_imported_by(path: Path) -> set[str]:
    prefix = "vibevoice_finetune"
    imported = {name.removeprefix(prefix).lstrip(".") for name in imports_of(path) if name.split(".")[0] == prefix}
    return {name for name in imported if name in MODULES}


MODULES = modules()


def test_the_list_names_every_module_once() -> None:
    assert len(set(ROOMS)) == len(ROOMS)
    assert set(MODULES) - set(ROOMS) == set(), "give the new module its place in ROOMS"
    assert set(ROOMS) - set(MODULES) == set(), "ROOMS names a module that is gone"


def test_the_tour_passes_through_every_room() -> None:
    tour = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = [room for room in ROOMS if room != "__init__" and f"`{room.replace('.', '/')}.py`" not in tour]
    assert missing == []


@pytest.mark.parametrize("room", sorted(MODULES))
def test_a_module_imports_only_rooms_above_it(room: str) -> None:
    below = {name for name in rooms_imported_by(MODULES[room]) if ROOMS.index(name) >= ROOMS.index(room)}
    assert below == set(), f"{room} imports {below}, which stand below it"


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_light_rooms_import_nothing_heavy(room: str) -> None:
    at_import = {name.split(".")[0] for name in imports_of(MODULES[room], top_level_only=True)}
    assert at_import & set(HEAVY) == set()


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import vibevoice_finetune.errors\n"
        "def late():\n    from vibevoice_finetune.data import prompt\n"
        "if TYPE_CHECKING:\n    from vibevoice_finetune.data.audio import AudioSource\n"
    )
    assert {
        "vibevoice_finetune.errors",
        "vibevoice_finetune.data.prompt",
        "vibevoice_finetune.data.audio",
    } <= imports_of(path)
    assert imports_of(path, top_level_only=True) == {"vibevoice_finetune.errors"}
