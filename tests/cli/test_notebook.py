"""The notebook, run from top to bottom with the small model."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "fine-tune.ipynb"


def test_it_is_a_notebook_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert 'MODEL = "small"' in code[0].source


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if cell.cell_type == "code")
    settings.source += '\nMORE_FLAGS = "--max_steps 5"\n'
    client = NotebookClient(notebook, timeout=1200, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    text = "\n".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "error:" not in text
    assert (tmp_path / "my-voice" / "lora" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "my-voice" / "report" / "index.html").is_file()
    players = [o for cell in notebook.cells for o in cell.get("outputs", []) if "text/html" in o.get("data", {})]
    assert sum("<audio" in player.data["text/html"] for player in players) == 2
    assert (tmp_path / "my-voice-lora.zip").stat().st_size > 100_000
