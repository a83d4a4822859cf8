"""What the best checkpoint is chosen from, and what is written."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.evaluation.choose import Choice
from vibevoice_finetune.evaluation.compare import BY_KEY, Compared
from vibevoice_finetune.evaluation.speak import Voice
from vibevoice_finetune.evaluation.statistics import Interval
from vibevoice_finetune.generation.generate import ModelSource
from vibevoice_finetune.samples.best import candidates, check_place, write_best

MODEL = ModelSource("m")


def test_the_result_is_a_candidate_unless_a_checkpoint_holds_it() -> None:
    out = Path("out")
    checkpoints = [out / "checkpoint-50", out / "checkpoint-100"]
    names = [voice.name for voice in candidates(checkpoints, out / "lora", last_step=100)]
    assert names == ["checkpoint-50", "checkpoint-100"]
    found = candidates(checkpoints, out / "lora", last_step=120)
    assert found[-1] == Voice("result", "out/lora")
    assert found[0] == Voice("checkpoint-50", "out/checkpoint-50/lora")


def test_the_chosen_adapter_is_copied_with_the_reason(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / name / "lora").mkdir(parents=True)
        (tmp_path / name / "lora" / "adapter_config.json").write_text(name)
    voices = tuple(Voice(name, str(tmp_path / name / "lora")) for name in ("checkpoint-1", "checkpoint-2"))
    figure = Compared(BY_KEY["similarity"], Interval(0.8, 0.7, 0.9, 4), None, None)
    found = SimpleNamespace(
        choice=Choice("checkpoint-1", "checkpoint-2", "no worse by more than the noise"),
        request=SimpleNamespace(
            voices=voices, choose_by="similarity", rows=(1, 2, 3, 4), seeds=1, model=ModelSource("m")
        ),
        compared={"checkpoint-1": {"similarity": figure}},
        recogniser_name="moonshine",
        encoder_name="an encoder",
    )
    write_best(found, tmp_path / "best")
    assert (tmp_path / "best" / "adapter_config.json").read_text() == "checkpoint-1"
    reason = json.loads((tmp_path / "best" / "choice.json").read_text())
    assert (reason["chosen"], reason["best_figure"], reason["rows"]) == ("checkpoint-1", "checkpoint-2", 4)
    assert reason["figures"]["checkpoint-1"]["similarity"] == {"value": 0.8, "low": 0.7, "high": 0.9, "count": 4}
    write_best(found, tmp_path / "best")  # a second time replaces it
    assert len(list((tmp_path / "best").iterdir())) == 2
    check_place(tmp_path / "best")


def test_a_run_checkpoint_gives_its_adapter(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1" / "lora").mkdir(parents=True)
    (tmp_path / "checkpoint-1" / "lora" / "adapter_config.json").write_text("adapter")
    (tmp_path / "checkpoint-1" / "optimizer.pt").write_text("")
    voice = Voice("checkpoint-1", str(tmp_path / "checkpoint-1"))
    found = SimpleNamespace(
        choice=Choice("checkpoint-1", "checkpoint-1", "the best"),
        request=SimpleNamespace(voices=(voice,), choose_by="similarity", rows=(1,), seeds=1, model=ModelSource("m")),
        compared={},
        recogniser_name="moonshine",
        encoder_name="an encoder",
    )
    write_best(found, tmp_path / "best")
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["adapter_config.json", "choice.json"]


def test_what_is_there_is_not_replaced_by_the_best(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--write_best .*: exists, and is not a folder that this flag wrote"):
        check_place(tmp_path)
    check_place(tmp_path / "new")
