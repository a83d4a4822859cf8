"""Losses of held-out rows: the training objective's own, row by row and band by band."""

from pathlib import Path

import pytest
import torch

from tests.unit.evaluation.test_report import rows
from vibevoice_finetune.data.collate import collate
from vibevoice_finetune.data.dataset import Draw
from vibevoice_finetune.evaluation.evaluate import with_voice_prompts
from vibevoice_finetune.evaluation.losses import BANDS, prepare_rows, row_losses
from vibevoice_finetune.generation.generate import ModelSource, load_speech_model
from vibevoice_finetune.objective.objective import Objective


def test_rows_and_bands_add_up_to_what_training_computes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = ModelSource(str(tiny_checkpoint), dtype=torch.float32, device="cpu")
    fixed = prepare_rows(source, with_voice_prompts(rows(2)), tmp_path / "latents")
    assert fixed.numbers == (0, 1)
    speaker = load_speech_model(source)
    found = row_losses(speaker, fixed)
    assert row_losses(speaker, fixed) == found, "the noise is fixed"

    batch = collate([fixed.dataset[Draw(0, place)] for place in range(2)])
    with torch.no_grad():
        sums = Objective(speaker.model, speaker.special).eval()(batch)
    counts = batch["counts"]
    bands = [band for losses in found.values() for band in losses.diffusion]
    assert len(bands) == 2 * BANDS
    assert sum(total for total, _ in bands) == pytest.approx(sums["diffusion"].item(), rel=1e-4)
    assert sum(count for _, count in bands) == counts.diffusion
    for name, count in (("text", counts.text), ("control", counts.control)):
        parts = [vars(losses)[name] for losses in found.values()]
        assert sum(total for total, _ in parts) == pytest.approx(sums[name].item(), rel=1e-4)
        assert sum(number for _, number in parts) == count
    assert sum(losses.go_on[1] for losses in found.values()) == sums["go_total"].item()
    assert sum(losses.stop[0] for losses in found.values()) == sums["stop_right"].item()
