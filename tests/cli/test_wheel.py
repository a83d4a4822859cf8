"""The package as people install it: a wheel in an empty environment, far from the repository."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

from vibevoice_finetune.commands.table import COMMANDS

ROOT = Path(__file__).parents[2]
MOST_MEGABYTES = 40


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return folder


@pytest.mark.slow
def test_the_archives_are_well_made_and_small(archives: Path) -> None:
    files = sorted(archives.iterdir())
    assert {path.suffix for path in files} == {".gz", ".whl"}
    checked = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)], check=False)
    assert checked.returncode == 0
    assert max(path.stat().st_size for path in files) < MOST_MEGABYTES * 1e6


@pytest.mark.slow
def test_it_runs_in_an_empty_environment(archives: Path, tmp_path: Path) -> None:
    (wheel,) = archives.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    bin_folder = tmp_path / "env" / "bin"

    def run(*words: str, timeout_sec: int = 300) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=timeout_sec)
        assert done.returncode == 0, done.stderr
        return done.stdout

    pip = (str(bin_folder / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"))
    run(*pip, "torch", timeout_sec=900)
    run(*pip, f"{wheel}[all]", timeout_sec=900)
    program = str(bin_folder / "vibevoice-finetune")
    for command in COMMANDS:
        assert run(program, command.name, "--help").startswith(f"usage: vibevoice-finetune {command.name}")
    run(program, "demo", "--output_dir", "demo", timeout_sec=900)
    assert (tmp_path / "demo" / "run" / "lora" / "adapter_model.safetensors").stat().st_size > 0
