"""`train` with samples: what is refused before it costs time; and, on the small model, the whole way to `OUT/best`."""

import json
from pathlib import Path

import pytest

import vibevoice_finetune.demo
from tests.processes import train_words, write_rows
from vibevoice_finetune.commands.table import main

SPEECH = Path(vibevoice_finetune.demo.__file__).parent / "speech" / "speech.jsonl"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sample_steps", "2", "--sample_script", "gone.json"), "--sample_script gone.json: cannot be read"),
        (("--sample_steps", "2", "--sample_script", "voice.json"), "gone.wav"),
        (("--sample_steps", "2", "--sample_metrics", "True", "--language", "de"), "moonshine understands English only"),
        (("--select_best_by", "similarity"), "there is nothing to evaluate on"),
    ],
)
def test_what_cannot_be_heard_is_said_at_the_start(
    flags: tuple[str, ...],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jsonl = write_rows(tmp_path / "rows", 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "voice.json").write_text('{"script": "Hi.", "voices": ["gone.wav"]}')
    assert main(train_words(jsonl, tmp_path / "out", *flags)) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said
    assert not (tmp_path / "rows" / "latents").exists()  # before any audio was encoded


@pytest.mark.slow
def test_the_small_model_is_heard_while_it_trains_and_the_best_is_chosen(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (
        f"train --model_name_or_path small --train_jsonl {SPEECH} --output_dir {out} --do_train --use_cpu True "
        "--report_to none --max_steps 4 --save_steps 2 --eval_split_size 0.2 --per_device_train_batch_size 2 "
        "--sample_steps 2 --sample_metrics True --metric_for_best_model sample_similarity "
        "--load_best_model_at_end True --select_best_by similarity --seed 7"
    )
    assert main(words.split()) == 0
    logs = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    heard = {log["step"]: log for log in logs if "sample_similarity" in log}
    assert set(heard) == {0, 2, 4}
    assert all(0 < log["sample_similarity"] < 1 for log in heard.values())
    assert (out / "samples" / "index.html").is_file()
    reason = json.loads((out / "best" / "choice.json").read_text())
    assert reason["chosen"] in {"checkpoint-2", "checkpoint-4"}
    assert set(reason["figures"]) == {"base", "checkpoint-2", "checkpoint-4"}
    assert main(["inspect", str(out / "best")]) == 0
