"""House rules that a program can check, and what the repository promises about itself."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "src/**/*",
        "tests/**/*.py",
        "benchmarks/**/*",
        "Makefile",
        ".ci/*",
        "*.toml",
    )
    for path in ROOT.glob(pattern)
    if path.suffix in {".md", ".py", ".toml", ".sh", ".json", ".jsonl", ""} and path.is_file()
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_LOOKUPS_PER_1000_LINES = 5  # getattr and hasattr: where they abound, types do not


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def catches_everything(node: ast.ExceptHandler) -> bool:
    """Without raising it again at the end."""
    caught = ast.unparse(node.type) if node.type else "BaseException"
    raises_again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
    return bool(re.search(r"\b(Base)?Exception\b", caught)) and not raises_again


def test_files_and_functions_are_short() -> None:
    assert [relative(path) for path in SOURCES if num_lines(path) >= MAX_FILE_LINES] == []
    found = [(path, node) for path in SOURCES for node in functions(path) if length(node) >= MAX_FUNCTION_LINES]
    assert [f"{relative(path)}:{node.lineno}: {node.name}" for path, node in found] == []


def test_every_module_says_why_it_exists() -> None:
    silent = [path for path in SOURCES if path.name != "__init__.py" and not ast.get_docstring(tree(path))]
    assert [relative(path) for path in silent] == []


def test_nothing_catches_everything() -> None:
    handlers = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES + TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and catches_everything(node)
    ]
    assert handlers == []


@pytest.mark.parametrize(
    ("handler", "is_bad"),
    [
        ("except: pass", True),
        ("except Exception: pass", True),
        ("except (OSError, BaseException): pass", True),
        ("except Exception:\n    clean_up()\n    raise", False),
        ("except ExceptionGroup: pass", False),
    ],
)
def test_the_check_of_handlers_sees_them(handler: str, is_bad: bool) -> None:
    (found,) = (n for n in ast.walk(ast.parse(f"try: pass\n{handler}")) if isinstance(n, ast.ExceptHandler))
    assert catches_everything(found) == is_bad


def test_next_to_no_lookups_by_name() -> None:
    calls = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "hasattr"}
    ]
    assert len(calls) < MAX_LOOKUPS_PER_1000_LINES * sum(map(num_lines, SOURCES)) / 1000, calls


def test_no_drawer_for_everything() -> None:
    assert [path for path in SOURCES if path.stem in {"utils", "util", "helpers", "misc", "common"}] == []


def test_texts_name_no_machine_and_leave_nothing_open() -> None:
    """Paths of one machine, notes to self and numbers of a tracker mean nothing to who reads the repository later."""
    forbidden = r"(?<![\w./~-])/(home|root|work|mnt|Users)/\w|\b(TODO|FIXME|XXX)\b|\bissue #?\d"
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in TEXTS
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(forbidden, line)
    ]
    assert found == []


def test_links_between_documents_lead_somewhere() -> None:
    for path in TEXTS:
        if path.suffix == ".md":
            for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", path.read_text(encoding="utf-8")):
                assert (path.parent / target).exists(), f"{relative(path)} links to {target}"


def test_lines_of_markdown_are_short() -> None:
    """A table's row cannot be broken; everything else can."""
    long = [
        f"{relative(path)}:{number}"
        for path in TEXTS
        if path.suffix == ".md"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) >= 120 and not line.startswith("|")
    ]
    assert long == []


def project() -> dict[str, object]:
    table: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return table


def canonical(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def requirements(*, extras: bool) -> set[str]:
    table = project()
    base, optional = table["dependencies"], table["optional-dependencies"]
    assert isinstance(base, list)
    assert isinstance(optional, dict)
    lists = [base, *(optional.values() if extras else [])]
    return {canonical(requirement) for requirements in lists for requirement in requirements}


def test_every_requirement_has_a_tested_version() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), "one exact version a line"
    assert len({canonical(pin) for pin in pins}) == len(pins)
    assert requirements(extras=True) - {"vibevoice-finetune"} <= {canonical(pin) for pin in pins}
    assert "torch==2.13.0" in pins


def test_what_is_imported_at_import_is_a_base_dependency() -> None:
    """An extra's module must be asked for with `errors.require`, inside the function that needs it."""
    distributions = metadata.packages_distributions()
    for path in SOURCES:
        for node in tree(path).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top != "vibevoice_finetune":
                    brought_by = {canonical(distribution) for distribution in distributions[top]}
                    assert brought_by & requirements(extras=False), f"{relative(path)} imports {top}"


def test_version_is_said_once_and_alike() -> None:
    from vibevoice_finetune import __version__

    assert metadata.version("vibevoice-finetune") == __version__  # pyproject.toml reads it from the package
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_bundled_speech_is_whole_and_small() -> None:
    folder = ROOT / "src/vibevoice_finetune/demo/speech"
    rows = [json.loads(line) for line in (folder / "speech.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["speaker"] for row in rows] == ["alpha"] * 12 + ["rms"] * 12
    assert all(row["text"].startswith("Speaker 0: ") for row in rows)
    assert {row["audio"] for row in rows} == {path.relative_to(folder).as_posix() for path in folder.rglob("*.flac")}
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 3_000_000
    assert "licence" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_wheel_holds_the_package_and_its_speech(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    expected = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert names == {path.relative_to(package).as_posix() for path in expected}
    assert "vibevoice_finetune/demo/speech/alpha/00.flac" in names
