"""Fine-tunes of the small model that are broken on purpose are called worse, with the figure that shows it."""

import json
from pathlib import Path

import pytest
import torch

from vibevoice_finetune.arguments import make_arguments
from vibevoice_finetune.base_model.hub import SMALL
from vibevoice_finetune.data.jsonl import BadRows, Columns, read_jsonl
from vibevoice_finetune.demo.demo import VOICE, training_flags
from vibevoice_finetune.evaluation.evaluate import EvaluationRequest, evaluate, with_voice_prompts
from vibevoice_finetune.evaluation.speak import Voice
from vibevoice_finetune.evaluation.verdict import overall, sentences
from vibevoice_finetune.generation.generate import ModelSource
from vibevoice_finetune.training.run import train

pytestmark = pytest.mark.slow


def shuffled(folder: Path) -> Path:
    """The bundled voice's rows, each with the text of the next but four."""
    rows = [json.loads(line) for line in (VOICE / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    for row, text in zip(rows, [*texts[5:], *texts[:5]], strict=True):
        row["text"], row["audio"] = text, str(VOICE / row["audio"])
    path = folder / "shuffled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("fault", ["learning rate", "transcripts"])
def test_a_broken_fine_tune_is_called_worse(fault: str, tmp_path: Path) -> None:
    flags = training_flags(tmp_path / "run", 60)
    if fault == "learning rate":
        flags["learning_rate"] *= 100
    else:
        flags["train_jsonl"] = [str(shuffled(tmp_path))]
    trained = train(make_arguments(flags | {"use_cpu": True}))
    rows = with_voice_prompts(list(read_jsonl(VOICE / "eval.jsonl", Columns(), BadRows("error"))))
    found = evaluate(
        EvaluationRequest(
            model=ModelSource(SMALL, dtype=torch.float32, device="cpu"),
            voices=(Voice("broken", str(trained.result)),),
            rows=tuple(rows),
            output=tmp_path / "report",
            seeds=1,
        )
    )
    assert overall(found) == "worse"
    worse = [key for key, figure in found.compared["broken"].items() if figure.verdict == "worse"]
    assert "word_error" in worse
    assert "word error" in " ".join(sentences(found))
    assert "stay with the base model" in " ".join(sentences(found))
