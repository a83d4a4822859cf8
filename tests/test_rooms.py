"""Imports run in one direction: a room imports only rooms that stand above it, and no two modules import each other.

A room is a folder of the package, or a file beside them. A new room gets a line here, at the place where its reader
would look for it. Imports inside functions and under `TYPE_CHECKING` count too.
"""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "vibevoice_finetune"

ROOMS = (
    "__init__",
    "errors",
    "console",
    "files",
    "flags",
    "recipes",
    "arguments",
    "audio",
    "latents",
    "data",
    "validation",
    "base_model",
    "objective",
    "adapters",
    "export",
    "generation",
    "memory",
    "evaluation",
    "samples",
    "training",
    "rehearsal",
    "preparation",
    "demo",
    "tune",
    "web",
    "commands",
    "__main__",
)

WITHOUT_TORCH = (
    "__init__",
    "errors",
    "flags.config",
    "flags.data",
    "flags.declare",
    "flags.loop",
    "flags.model",
    "flags.names",
    "flags.samples",
    "flags.secrets",
    "flags.inherited",
    "flags.machine",
    "flags.values",
    "audio.decode",
    "audio.source",
    "data.rows",
    "data.jsonl",
    "data.prompt",
    "generation.scripts",
    "commands.convert",
    "commands.demo",
    "commands.encode",
    "commands.estimate",
    "commands.generate",
    "commands.inspect",
    "commands.merge",
    "commands.parser",
    "commands.recipes",
    "commands.rehearse",
    "recipes.shelf",
    "commands.table",
    "commands.train",
    "commands.tune",
    "commands.validate",
    "commands.web",
    "__main__",
)
"""Modules that must import in no time, or be readable without knowing tensors."""

HEAVY = ("torch", "transformers", "peft", "accelerate", "datasets")
MAX_FILES_IN_A_ROOM = 14
MAX_COMMANDS = 20
"""`commands/` holds a thin file for each command, all of one kind: it is a list, read by name."""


def modules() -> dict[str, Path]:
    """Dotted names under the package, without it: ``data.prompt``. Empty ``__init__`` files of rooms are left out."""
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


def modules_imported_by(path: Path) -> set[str]:
    """Modules of the package. Its face names what it hands out for type checkers, and imports nothing by itself."""
    if path == PACKAGE / "__init__.py":
        return set()
    prefix = "vibevoice_finetune"
    imported = {name.removeprefix(prefix).lstrip(".") for name in imports_of(path) if name.split(".")[0] == prefix}
    return {name for name in imported if name in MODULES}


MODULES = modules()


def test_the_list_names_every_room_once() -> None:
    assert len(set(ROOMS)) == len(ROOMS)
    assert {name.split(".")[0] for name in MODULES} == set(ROOMS), "give a new room its place in ROOMS"


def test_a_room_imports_only_rooms_above_it() -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, path in sorted(MODULES.items())
        for imported in sorted(modules_imported_by(path))
        if ROOMS.index(imported.split(".")[0]) > ROOMS.index(name.split(".")[0])
    ]
    assert wrong == []


def test_no_two_modules_import_each_other() -> None:
    TopologicalSorter({name: modules_imported_by(path) for name, path in MODULES.items()}).prepare()  # or CycleError


def test_a_room_is_seen_at_a_glance() -> None:
    folders = {path.parent for path in MODULES.values()}
    sizes = {folder.name: len(list(folder.glob("*.py"))) for folder in folders}
    limits = {name: MAX_COMMANDS if name == "commands" else MAX_FILES_IN_A_ROOM for name in sizes}
    assert {name: size for name, size in sizes.items() if size > limits[name]} == {}


def test_the_tour_passes_through_every_room() -> None:
    tour = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    missing = [room for room in ROOMS if room != "__init__" and not re.search(rf"`{room}(/|\.py)", tour)]
    assert missing == []


def test_light_modules_import_nothing_heavy() -> None:
    for name in WITHOUT_TORCH:
        at_import = {imported.split(".")[0] for imported in imports_of(MODULES[name], top_level_only=True)}
        assert at_import & set(HEAVY) == set(), name


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import vibevoice_finetune.errors\n"
        "def late():\n    from vibevoice_finetune.data import prompt\n"
        "if TYPE_CHECKING:\n    from vibevoice_finetune.audio.source import AudioSource\n"
    )
    assert {
        "vibevoice_finetune.errors",
        "vibevoice_finetune.data.prompt",
        "vibevoice_finetune.audio.source",
    } <= imports_of(path)
    assert imports_of(path, top_level_only=True) == {"vibevoice_finetune.errors"}
