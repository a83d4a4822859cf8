"""`estimate` on the command line: without a download, and the same lengths that encoding would find."""

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

import vibevoice_finetune
from vibevoice_finetune.commands import table
from vibevoice_finetune.commands.estimate import SUMMARY, EstimateFlags, filled
from vibevoice_finetune.commands.parser import parse, parse_run
from vibevoice_finetune.memory.predict import Prediction
from vibevoice_finetune.memory.predict import predict as predict_arguments
from vibevoice_finetune.training.load_data import load_data as load_all
from vibevoice_finetune.training.run import expected_memory

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"


def predict(words: list[str]) -> Prediction:
    arguments, flags = parse_run(words, "estimate", SUMMARY, EstimateFlags, filled)
    return predict_arguments(arguments, flags.clip_sec, flags.processes)


def test_a_released_model_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model_name_or_path", "microsoft/VibeVoice-1.5B", "--bf16", "True", "--train_diffusion_head", "True"]
    assert table.main(["estimate", *words]) == 0
    printed = capsys.readouterr().out
    assert "rows are not known: clips of 10 s assumed (--clip_sec)" in printed
    assert "largest micro-batch: 8 rows" in printed  # transformers' default
    assert "frozen weights" in printed
    assert "80 GB │ fits" in printed
    assert "--gradient_checkpointing True: about " in printed


def test_longer_clips_need_more() -> None:
    words = ["--model_name_or_path", "aoi-ot/VibeVoice-Large", "--bf16", "True", "--per_device_train_batch_size", "2"]
    short, long = (predict([*words, "--clip_sec", seconds]).memory for seconds in ("10", "60"))
    assert (short.batch.frames, long.batch.frames) == (2 * 75, 2 * 450)  # 7.5 frames a second
    assert long.peak > short.peak


def test_split_over_processes_each_needs_a_share() -> None:
    """At 7B 15 GB of bf16 weights: an eighth of them in each of eight processes, and two layers whole at a time."""
    words = ["--model_name_or_path", "aoi-ot/VibeVoice-Large", "--bf16", "True", "--train_diffusion_head", "True"]
    alone, beside, split = (
        {part.name: part.bytes for part in predict([*words, *extra]).memory.parts}
        for extra in ((), ("--processes", "8"), ("--processes", "8", "--fsdp", "full_shard"))
    )
    assert beside["frozen weights"] == alone["frozen weights"]
    assert beside["gathered weights"] == 0
    for name in ("frozen weights", "trained weights", "optimizer"):
        assert split[name] == pytest.approx(alone[name] / 8)
    # embedding and output matrix, 152,064 x 3,584 each, and two of 28 layers of 0.233 billion
    assert split["gathered weights"] == pytest.approx(2 * (2 * 152_064 * 3_584 + 2 * 0.233e9), rel=0.05)


def test_rows_are_planned_from_headers_as_training_plans_them(tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [
        *("--model_name_or_path", str(tiny_checkpoint), "--train_jsonl", str(SPEECH), "--output_dir", str(tmp_path)),
        *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--ddpm_batch_mul", "2"),
        *("--eval_strategy", "steps", "--eval_steps", "5", "--eval_split_size", "0.17", "--use_cpu", "True"),
    ]
    prediction = predict(words)
    arguments = parse([*words, "--do_train"])
    prepared = load_all(arguments)
    assert prepared.train_set is not None
    measured = expected_memory(arguments, prepared, Console())
    assert prediction.rows == len(prepared.train_set.rows)
    assert prediction.memory.batch == measured.batch
    assert prediction.memory.parts == measured.parts
    # 20 rows are left for training, 5 micro-batches, 3 steps an epoch, 3 epochs
    assert (prediction.steps, prediction.steps_an_epoch) == (9, 3)
    assert measured.available is not None
    assert "tokens)" in measured.line()


def test_a_recording_whose_length_is_not_known_is_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"no header")
    shutil.copy(SPEECH.parent / "alpha" / "00.flac", tmp_path / "good.flac")
    rows = [{"text": "Speaker 0: Hello.", "audio": name} for name in ("broken.wav", "good.flac")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prediction = predict(["--model_name_or_path", str(tiny_checkpoint), "--train_jsonl", str(tmp_path / "train.jsonl")])
    assert "1 recordings whose header says no length: taken as 10 s" in prediction.notes
    assert prediction.rows == 2
    assert prediction.memory.batch.frames == 75 + 23  # 10 s, and 3.06 s rounded up to whole frames


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name_or_path", "m", "--clip_sec", "0"], "--clip_sec 0: must be above 0."),
        (["--model_name_or_path", "m", "--processes", "0"], "--processes 0: must be at least 1."),
        (["--model_name_or_path", "m", "--fsdp"], "--fsdp splits weights over processes, but there is one"),
        (["--model_name_or_path", "m", "--lora_rank", "4"], "--lora_rank is not a flag; did you mean --lora_r?"),
        (["--model_name_or_path", "no/../model"], "no/../model: no such folder"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert table.main(["estimate", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
