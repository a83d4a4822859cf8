"""What many tests stand on: the golden data, and one small random checkpoint for the whole run.

Nothing is ever downloaded: the Hub is switched off before anything imports its client.
"""

import os
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# The models of the tests are so small that threads cost more than they bring, most of all beside other test workers.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder with `tied/`, `untied/` and `tokenizer/`; see its README."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of size "tiny" in the original layout, float32, text tokenizer included. Read it only."""
    from vibevoice_finetune.base_model.random_model import write_random_model

    return write_random_model(tmp_path_factory.mktemp("models") / "tiny", "tiny", torch.float32)
