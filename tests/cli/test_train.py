"""`vibevoice-finetune train` as people call it: command lines, what is written, what it learns, what it refuses."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

import vibevoice_finetune
from vibevoice_finetune.adapters.attach import trainable_parameters
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.commands.table import main
from vibevoice_finetune.files.headers import read_header
from vibevoice_finetune.latents.arithmetic import Arithmetic
from vibevoice_finetune.training import load_data, run
from vibevoice_finetune.training.load_data import load_data as load_all

SPEECH = Path(vibevoice_finetune.__file__).parent / "demo" / "speech" / "speech.jsonl"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three bundled clips of one speaker, and a latent store that the tests of this file share."""
    folder = tmp_path_factory.mktemp("few")
    rows = [json.loads(line) for line in SPEECH.read_text().splitlines()][:3]
    for entry in rows:
        entry["audio"] = str(SPEECH.parent / entry["audio"])
    (folder / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return folder


@pytest.fixture
def line(few, tiny_checkpoint, tmp_path):
    """A short training command line."""

    def make(extra="", output="out", rows=few / "train.jsonl"):
        return shlex.split(
            f"--model_name_or_path {tiny_checkpoint} --train_jsonl {rows} "
            f"--latents_dir {few / 'latents'} --output_dir {tmp_path / output} --do_train --max_steps 2 "
            f"--per_device_train_batch_size 2 --logging_steps 1 --report_to none --save_strategy no {extra}"
        )

    return make


def logs(output):
    return [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]


REAL = (
    "--model_name_or_path {model} --processor_name_or_path {model} {data} --text_column_name text "
    "--audio_column_name audio --voice_prompts_column_name voice_prompts --output_dir {out} "
    "--per_device_train_batch_size 8 --gradient_accumulation_steps 16 --learning_rate 2.5e-5 --num_train_epochs 5 "
    "--logging_steps 10 --save_steps 100 --eval_steps 100 --report_to wandb --remove_unused_columns False --bf16 True "
    "--do_train --gradient_clipping --gradient_checkpointing False --ddpm_batch_mul 4 --diffusion_loss_weight 1.4 "
    "--train_diffusion_head True --ce_loss_weight 0.04 --voice_prompt_drop_rate 0.2 "
    "--lora_target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --lr_scheduler_type cosine "
    "--warmup_ratio 0.03 --max_grad_norm 0.8"
)


def test_compiled_blocks_learn_the_same_and_save_the_same_names(line, tmp_path):
    flags = "--lora_dropout 0 --train_diffusion_head True --save_strategy steps --save_steps 2"
    main(["train", *line(flags, "plain")])
    main(["train", *line(f"{flags} --torch_compile True --torch_compile_backend aot_eager", "compiled")])
    plain, compiled = (logs(tmp_path / name) for name in ("plain", "compiled"))
    losses = [entry["loss"] for entry in plain if "loss" in entry]
    assert losses == pytest.approx([entry["loss"] for entry in compiled if "loss" in entry], rel=1e-5)
    assert len(losses) == 2
    files = [path.relative_to(tmp_path / "plain") for path in (tmp_path / "plain").rglob("*.safetensors")]
    assert len(files) > 4, "the result and a checkpoint"
    for file in files:
        expected, found = load_file(tmp_path / "plain" / file), load_file(tmp_path / "compiled" / file)
        assert found.keys() == expected.keys(), file
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{file}: {name}")


@pytest.mark.parametrize("kind", ["jsonl", "dataset"])
def test_the_command_lines_that_people_have_train(kind, few, tiny_checkpoint, tmp_path, monkeypatch):
    data = f"--train_jsonl {few / 'train.jsonl'}"
    if kind == "dataset":
        import datasets

        rows = [json.loads(text) for text in (few / "train.jsonl").read_text().splitlines()]
        table = {
            "text": [entry["text"] for entry in rows],
            "audio": [{"bytes": Path(entry["audio"]).read_bytes(), "path": None} for entry in rows],
            "voice_prompts": [[entry["audio"]] for entry in rows],
        }
        datasets.DatasetDict({"train": datasets.Dataset.from_dict(table)}).save_to_disk(str(tmp_path / "data"))
        data = f"--dataset_name {tmp_path / 'data'}"
    words = shlex.split(REAL.format(model=tiny_checkpoint, data=data, out=tmp_path / "out"))
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-m", "vibevoice_finetune", "train", *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "steps 5 (1 an epoch), effective batch 128 rows" in done.stderr
    assert "the result is" in done.stderr
    assert "Failed to load" not in done.stderr, "a library talks to our user about its own parts"
    result = tmp_path / "out" / "lora"
    assert {path.name for path in result.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "diffusion_head",
        "vibevoice_finetune.json",
        "README.md",
    }
    stored = load_file(result / "adapter_model.safetensors")
    assert "base_model.model.layers.0.self_attn.q_proj.lora_A.weight" in stored
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if "lora_B" in name)
    written = yaml.safe_load((tmp_path / "out" / "arguments.yaml").read_text())
    assert written["max_grad_norm"] == 0.8
    assert json.loads((tmp_path / "out" / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    assert list(tmp_path.glob("wandb/offline-run-*")), "nothing reached W&B"


def test_without_do_train_it_says_so_and_does_nothing(line, tmp_path, capsys):
    words = [word for word in line() if word != "--do_train"]
    assert main(["train", *words]) == 0
    assert "nothing to do: add --do_train" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_float32_where_it_is_promised_and_bf16_elsewhere(line):
    words = line("--bf16 True --train_diffusion_head --train_connectors --ema_decay 0.9")
    arguments = parse(words)
    prepared = load_all(arguments)
    objective, _ = run.build(arguments, prepared.checkpoint, prepared.special)
    trainer = run.FinetuneTrainer(objective, arguments.loop, prepared.train_set, None, lambda folder: None, {})
    trainer.train()
    trained = trainable_parameters(objective.model)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert {value.dtype for value in trainer.ema.average.values()} == {torch.float32}
    moments = [value for state in trainer.optimizer.state.values() for value in state.values() if value.dim()]
    assert {value.dtype for value in moments} == {torch.float32}
    frozen = {
        parameter.dtype
        for name, parameter in objective.model.named_parameters()
        if name not in trained and "language_model" in name
    }
    assert frozen == {torch.bfloat16}
    assert objective.alpha.dtype == torch.float32
    modules = [name for name, _ in objective.model.named_modules()]
    assert not any("audio_tower" in name or "semantic_tokenizer" in name for name in modules)


def test_it_learns_the_bundled_clips(line, tmp_path):
    extra = (
        f"--max_steps 200 --learning_rate 5e-3 --lr_scheduler_type cosine "
        "--lora_dropout 0 --train_diffusion_head --ddpm_batch_mul 4 "
        f"--validation_jsonl {line()[3]} "
        "--eval_strategy steps --eval_steps 200 --eval_on_start --per_device_train_batch_size 3 --logging_steps 50"
    )
    assert main(["train", *line(extra)]) == 0
    before, after = [log for log in logs(tmp_path / "out") if "eval_loss" in log]
    assert (before["step"], after["step"]) == (0, 200)
    assert after["eval_diffusion_loss"] < before["eval_diffusion_loss"] / 2
    assert after["eval_control_go_accuracy"] == 1.0
    assert after["eval_control_stop_accuracy"] == 1.0


def test_evaluation_alone(line, tmp_path, capsys):
    words = [word for word in line(f"--do_eval --validation_jsonl {line()[3]}") if word != "--do_train"]
    assert main(["train", *words]) == 0
    assert logs(tmp_path / "out")[-1]["eval_loss"] > 0
    assert not (tmp_path / "out" / "lora").exists()


def test_resume_continues_and_a_taken_folder_is_refused(line, tmp_path, capsys):
    short = line("--save_strategy steps --save_steps 1")
    assert main(["train", *short]) == 0
    assert main(["train", *short]) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main(["train", *short, "--max_steps", "4", "--resume_from_checkpoint", "True", "--allow_changed_run"]) == 0
    assert "going on from" in capsys.readouterr().err.replace("\n", " ")
    assert [log["step"] for log in logs(tmp_path / "out") if "loss" in log] == [1, 2, 3, 4]


def test_what_a_changed_run_can_take_over(line, tmp_path, capsys):
    """More LoRA has no place in the checkpoint's tensors; an average begins where the run goes on."""
    short = line("--save_strategy steps --save_steps 1")
    assert main(["train", *short]) == 0
    longer = ("--max_steps", "4", "--allow_changed_run", "--resume_from_checkpoint", "True")
    capsys.readouterr()
    assert main(["train", *short, *longer, "--lora_r", "16"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "going on with a changed run: --lora_r 8 → 16; --max_steps 2 → 4" in said
    assert "error: " in said
    assert "go on with the flags that the run began with" in said
    assert main(["train", *short, *longer, "--ema_decay", "0.5"]) == 0
    average = load_file(tmp_path / "out" / "checkpoint-3" / "ema.safetensors")
    before, after = (load_file(tmp_path / "out" / f"checkpoint-{n}" / "trainable.safetensors") for n in (2, 3))
    assert average["ema.num_updates"] == 1
    for name, value in after.items():  # the first update has the decay 1 / 10
        torch.testing.assert_close(average[name], before[name] + 0.9 * (value - before[name]))


def test_a_checkpoint_without_the_optimizer_is_not_gone_on_from(line, tmp_path, capsys):
    short = line("--save_strategy steps --save_steps 1 --save_only_model")
    assert main(["train", *short]) == 0
    longer = ("--max_steps", "4", "--allow_changed_run", "--resume_from_checkpoint")
    for wanted in ("True", str(tmp_path / "out" / "checkpoint-2")):
        capsys.readouterr()
        assert main(["train", *short, *longer, wanted]) == 2
        assert "checkpoint-2: was saved with --save_only_model" in capsys.readouterr().err


def test_debug_save_writes_the_untrained_parts_first(line, tmp_path):
    assert main(["train", *line("--debug_save --train_diffusion_head")]) == 0
    initial = load_file(tmp_path / "out" / "debug_initial" / "adapter_model.safetensors")
    assert all(tensor.abs().max() == 0 for name, tensor in initial.items() if "lora_B" in name)
    assert (tmp_path / "out" / "debug_initial" / "diffusion_head" / "model.safetensors").is_file()


def test_encode_fills_the_store_that_train_reads(few, tiny_checkpoint, tmp_path, capsys):
    words = shlex.split(
        f"--model_name_or_path {tiny_checkpoint} --train_jsonl {few / 'train.jsonl'} --latents_dir {tmp_path / 'store'}"
    )
    assert main(["encode", *words]) == 0
    assert "segments encoded" in capsys.readouterr().err
    extra = shlex.split(f"--output_dir {tmp_path / 'out'} --do_train --max_steps 1 --report_to none --save_strategy no")
    assert main(["train", *words, *extra]) == 0
    assert "0 segments encoded" in capsys.readouterr().err
    assert not (tmp_path / "out" / "latents").exists()


def test_encode_jobs_over_pieces_of_a_file_leave_nothing_for_the_whole(few, tiny_checkpoint, tmp_path, capsys):
    # No speaker: each row's voice prompts are cuts of its own clip.
    rows = [json.loads(text) for text in (few / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps({"text": entry["text"], "audio": entry["audio"]}) + "\n" for entry in rows]
    pieces = {"first": lines[:1], "second": lines[1:], "whole": lines}
    found = []
    for name, content in pieces.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(content))
        words = f"--model_name_or_path {tiny_checkpoint} --train_jsonl {tmp_path / name}.jsonl --latents_dir {tmp_path}"
        assert main(["encode", *shlex.split(words)]) == 0
        said = capsys.readouterr().err
        found.append([number for number in (5, 10, 15, 0) if f"latents: {number} segments encoded" in said])
    assert found == [[5], [10], [0]]  # a clip and four cuts a row


def broken_row(kind, folder):
    good = folder / "good.wav"
    soundfile.write(good, 0.1 * np.random.default_rng(0).standard_normal(24_000).astype(np.float32), 24_000)
    entry = {"text": "Speaker 0: Hello.", "audio": "good.wav"}
    match kind:
        case "no JSON":
            return '{"text": '
        case "no audio key":
            del entry["audio"]
        case "missing file":
            entry["audio"] = "nowhere.wav"
        case "empty file":
            (folder / "bad.wav").write_bytes(b"")
            entry["audio"] = "bad.wav"
        case "no audio file":
            (folder / "bad.wav").write_text("this is text")
            entry["audio"] = "bad.wav"
        case "silent":
            soundfile.write(folder / "bad.wav", np.zeros(24_000, dtype=np.float32), 24_000)
            entry["audio"] = "bad.wav"
        case "no tag":
            entry["text"] = "Hello."
        case "too many prompts":
            entry["voice_prompts"] = ["good.wav", "good.wav"]
        case "too long":
            soundfile.write(folder / "bad.wav", 0.1 * np.random.default_rng(0).standard_normal(24_000 * 70), 24_000)
            entry["audio"] = "bad.wav"
    return json.dumps(entry)


BROKEN = {
    "no JSON": "JSON",
    "no audio key": "audio",
    "missing file": "nowhere.wav",
    "empty file": "bad.wav",
    "no audio file": "bad.wav",
    "silent": "silent",
    "no tag": 'write "Speaker 0: Hello."',
    "too many prompts": "2 voice prompts for 1 speaker",
    "too long": "at most 600 fit",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_row_is_one_clear_line(kind, few, line, tmp_path, capsys):
    good = (few / "train.jsonl").read_text()
    data = tmp_path / "broken.jsonl"
    data.write_text(good + broken_row(kind, tmp_path) + "\n")
    words = line("--max_length 600", rows=data)
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "broken.jsonl:4" in message
    assert BROKEN[kind] in message
    assert not (tmp_path / "out" / "lora").exists()

    assert main(["train", *words, "--on_bad_row", "skip"]) == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "left out" in shown
    assert "train 3 rows" in shown


def test_mostly_bad_rows_are_refused_even_when_skipped(few, line, tmp_path, capsys):
    data = tmp_path / "broken.jsonl"
    data.write_text((few / "train.jsonl").read_text() + "{\n" * 4)
    assert main(["train", *line("--on_bad_row skip", rows=data)]) == 2
    assert "4 of 7 rows are bad" in capsys.readouterr().err


def wrong_model(kind, folder):
    model = folder / "model"
    model.mkdir()
    if kind == "another model":
        (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "hidden_size": 8}))
    return {"no such folder": folder / "nowhere", "empty folder": model, "another model": model}[kind]


@pytest.mark.parametrize("kind", ["no such folder", "empty folder", "another model"])
def test_a_wrong_model_is_one_clear_line(kind, line, tmp_path, capsys):
    model = wrong_model(kind, tmp_path)
    assert main(["train", *line(), "--model_name_or_path", str(model)]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert message[0].startswith("error: ")
    assert str(model) in message[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_text_tokenizer_names_the_repository(golden_dir, line, tmp_path, capsys):
    model = golden_dir / "tied" / "checkpoint"
    assert main(["train", *line(), "--model_name_or_path", str(model)]) == 2
    assert "Qwen/Qwen2.5-1.5B" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--lora_target_modules q_prj", "q_proj"),
        ("--lora_target_modules none", "nothing"),
        ("--train_diffusion_head --layers_to_freeze 99", "99"),
        ("--eval_strategy epoch", "--validation_jsonl"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(extra, message, line, capsys, tmp_path):
    assert main(["train", *line(extra)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "lora").exists()


def test_out_of_memory_leaves_a_resumable_checkpoint_and_says_which_flags_help(line, tmp_path, capsys, monkeypatch):
    plain = run.FinetuneTrainer.compute_loss

    def full(self, model, inputs, *args, **kwargs):
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(run.FinetuneTrainer, "compute_loss", full)
    words = line("--max_steps 3")
    assert main(["train", *words]) == 2
    message = capsys.readouterr().err
    assert "memory does not suffice: step 2 was saved" in message
    assert "--per_device_train_batch_size 1" in message
    monkeypatch.undo()
    assert main(["train", *words, "--resume_from_checkpoint", "True"]) == 0
    assert [log["step"] for log in logs(tmp_path / "out") if "loss" in log] == [1, 2, 3]


def test_a_changed_run_is_refused_and_changes_nothing(line, tmp_path, capsys):
    words = line("--save_strategy steps --save_steps 1")
    assert main(["train", *words]) == 0
    before = (tmp_path / "out" / "arguments.yaml").read_text()
    changed = [*words, "--resume_from_checkpoint", "True", "--learning_rate", "1e-3"]
    assert main(["train", *changed]) == 2
    assert "--learning_rate 5e-05 → 0.001" in capsys.readouterr().err
    assert (tmp_path / "out" / "arguments.yaml").read_text() == before


def arithmetic_of(folder):
    """What the shards of a store say they were computed in."""
    return {read_header(path).metadata["arithmetic"] for path in folder.glob("*/*.safetensors")}


def test_latents_of_another_device_are_used(few, tiny_checkpoint, tmp_path, capsys, caplog, monkeypatch):
    """A store filled on a GPU serves a CPU and the other way round; what each computed in is recorded."""

    def encode(fastest, rows):
        monkeypatch.setattr(load_data, "fastest", lambda _: fastest)
        words = f"--model_name_or_path {tiny_checkpoint} --train_jsonl {rows} --latents_dir"
        caplog.clear()
        assert main(["encode", *shlex.split(words), str(tmp_path / "store")]) == 0
        return capsys.readouterr().err + caplog.text

    gpu, cpu = Arithmetic.TF32, Arithmetic.FLOAT32
    first = few / "first.jsonl"
    first.write_text((few / "train.jsonl").read_text().splitlines()[0] + "\n")
    assert " 0 segments encoded" not in encode(gpu, first)
    assert arithmetic_of(tmp_path / "store") == {"tf32"}
    assert "latents: 0 segments encoded" in encode(cpu, first)
    assert arithmetic_of(tmp_path / "store") == {"tf32"}
    encode(cpu, few / "train.jsonl")
    assert arithmetic_of(tmp_path / "store") == {"tf32", "float32"}
    assert "latents: 0 segments encoded" in encode(gpu, few / "train.jsonl")


def test_bf16_without_instructions_for_it_is_warned_of_in_one_line(line, capsys, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert main(["train", *line("--bf16 True --use_cpu True")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("this processor has no instructions for bf16") == 1
    assert "leave --bf16 True out" in said
    assert main(["train", *line(output="float32")]) == 0
    assert "instructions for bf16" not in capsys.readouterr().err


def test_the_memory_of_encoding_is_said_before_it_and_only_then(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", str(tiny_checkpoint), "--train_jsonl", str(SPEECH), "--use_cpu"]
    words += ["--latents_dir", str(tmp_path / "latents")]
    assert main(["encode", *words]) == 0
    said = capsys.readouterr().err.splitlines()
    encoding = next(number for number, line in enumerate(said) if re.match(r"encoding audio: about \d\.\d GB", line))
    assert encoding < next(number for number, line in enumerate(said) if "segments encoded" in line)
    assert main(["encode", *words]) == 0
    assert "encoding audio" not in capsys.readouterr().err, "nothing is encoded"
