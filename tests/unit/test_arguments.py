"""The flags: which there are, what they default to, and what is refused."""

import shlex
import time
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from vibevoice_finetune.arguments import DataArguments, FinetuneArguments, ModelArguments
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError

REAL_LINE = (
    "--model_name_or_path M --processor_name_or_path P --dataset_name D --text_column_name text "
    "--audio_column_name audio --voice_prompts_column_name voice_prompts --output_dir O "
    "--per_device_train_batch_size 8 --gradient_accumulation_steps 16 --learning_rate 2.5e-5 --num_train_epochs 5 "
    "--logging_steps 10 --save_steps 100 --eval_steps 100 --report_to wandb --remove_unused_columns False --bf16 True "
    "--do_train --gradient_clipping --gradient_checkpointing False --ddpm_batch_mul 4 --diffusion_loss_weight 1.4 "
    "--train_diffusion_head True --ce_loss_weight 0.04 --voice_prompt_drop_rate 0.2 "
    "--lora_target_modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj --lr_scheduler_type cosine "
    "--warmup_ratio 0.03 --max_grad_norm 0.8"
)
SHORT = "--model_name_or_path M --train_jsonl F --output_dir O --do_train"

MODEL_FLAGS = {
    "processor_name_or_path": None,
    "cache_dir": None,
    "freeze_acoustic_tokenizer": True,
    "freeze_semantic_tokenizer": True,
    "lora_r": 8,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "lora_wrap_diffusion_head": False,
    "train_diffusion_head": False,
    "train_connectors": False,
    "layers_to_freeze": None,
    "attn_implementation": "auto",
    "load_in_4bit": False,
    "load_in_8bit": False,
}
DATA_FLAGS = {
    "dataset_name": None,
    "dataset_config_name": None,
    "train_split_name": "train",
    "eval_split_name": "validation",
    "text_column_name": "text",
    "audio_column_name": "audio",
    "voice_prompts_column_name": "voice_prompts",
    "speaker_column_name": "speaker",
    "eval_split_size": 0.0,
    "ignore_verifications": False,
    "max_length": None,
    "train_jsonl": None,
    "validation_jsonl": None,
    "voice_prompt_drop_rate": 0.0,
    "latents_dir": None,
    "prompt_cuts_per_clip": 4,
    "normalize_targets": True,
    "max_tokens_per_batch": None,
    "on_bad_row": "error",
}
LOOP_FLAGS = {
    "ddpm_batch_mul": 1,
    "ce_loss_weight": 1.0,
    "diffusion_loss_weight": 1.0,
    "control_loss_weight": 1.0,
    "unconditional_rate": 0.0,
    "ema_decay": 0.0,
    "gradient_clipping": False,
    "warmup_ratio": 0.0,
    "max_bad_steps": 3,
    "allow_changed_run": False,
    "debug_save": False,
}


def declared(kind):
    return {f.name: f.default for f in fields(kind)}


def test_the_flags_and_their_defaults():
    model = declared(ModelArguments)
    del model["model_name_or_path"]  # the one that is required
    assert model == MODEL_FLAGS
    assert declared(DataArguments) == DATA_FLAGS
    own = {name: default for name, default in declared(FinetuneArguments).items() if name in LOOP_FLAGS}
    assert own == LOOP_FLAGS
    new = set(declared(FinetuneArguments)) - set(declared(TrainingArguments))
    assert new == set(LOOP_FLAGS)


def test_every_flag_of_transformers_is_there():
    assert set(declared(TrainingArguments)) <= set(declared(FinetuneArguments))


@pytest.mark.parametrize("line", [REAL_LINE, REAL_LINE.replace("--dataset_name D", "--train_jsonl F")])
def test_the_command_lines_that_people_have(line):
    arguments = parse(shlex.split(line))
    assert arguments.model.train_diffusion_head
    assert len(arguments.model.target_modules) == 7
    assert arguments.data.voice_prompt_drop_rate == 0.2
    loop = arguments.loop
    assert (loop.bf16, loop.do_train, loop.gradient_clipping, loop.activation_checkpointing) == (
        True,
        True,
        True,
        False,
    )
    assert (loop.max_grad_norm, loop.warmup_steps, loop.get_warmup_steps(1000)) == (0.8, 0.03, 30)
    assert (loop.ddpm_batch_mul, loop.diffusion_loss_weight, loop.ce_loss_weight) == (4, 1.4, 0.04)
    assert loop.report_to == ["wandb"]
    assert not loop.remove_unused_columns


def test_without_the_master_switch_nothing_is_clipped():
    assert parse(shlex.split(f"{SHORT} --max_grad_norm 0.8")).loop.max_grad_norm == 0.0


@pytest.mark.parametrize(("value", "names"), [("none", ()), ("", ()), ("q_proj, v_proj", ("q_proj", "v_proj"))])
def test_target_modules(value, names):
    assert parse([*SHORT.split(), "--lora_target_modules", value]).model.target_modules == names


def test_layers_to_freeze():
    line = [*SHORT.split(), "--train_diffusion_head", "--layers_to_freeze", "0, 3,1"]
    assert parse(line).model.frozen_head_layers == (0, 1, 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--freeze_acoustic_tokenizer False", "--freeze_acoustic_tokenizer False: .* cannot be trained"),
        ("--freeze_semantic_tokenizer False", "--freeze_semantic_tokenizer False: .* cannot be trained"),
        ("--train_diffusion_head --lora_wrap_diffusion_head", "exclude each other"),
        ("--layers_to_freeze 1", "needs --train_diffusion_head"),
        ("--train_diffusion_head --layers_to_freeze a", "write indices separated by commas"),
        ("--fp16", "--fp16: .* use --bf16 True"),
        ("--dataset_name D", "either --train_jsonl or --dataset_name .found both"),
        ("--voice_prompt_drop_rate 1.5", "--voice_prompt_drop_rate 1.5: must be from 0 to 1"),
        ("--unconditional_rate 1", "--unconditional_rate 1: must be at least 0 and below 1"),
        ("--ema_decay 1", "--ema_decay 1: must be at least 0 and below 1"),
        ("--ddpm_batch_mul 0", "--ddpm_batch_mul 0: must be at least 1"),
        ("--ce_loss_weight -1", "--ce_loss_weight -1: must be at least 0"),
        ("--warmup_ratio 0.1 --warmup_steps 5", "--warmup_ratio and --warmup_steps exclude each other"),
        ("--lora_rr 8", "--lora_rr is not a flag; did you mean --lora_r?"),
        ("--evaluation_strategy steps", "gone from transformers 5; use --eval_strategy"),
        ("--lora_r eight", "--lora_r eight: must be a whole number."),
        ("--on_bad_row ignore", "--on_bad_row ignore: must be one of error, skip"),
        ("--lora_r 8 stray", '"stray" belongs to no flag'),
    ],
)
def test_what_cannot_be_carried_out_is_refused(extra, message):
    with pytest.raises(ArgumentError, match=message):
        parse(shlex.split(f"{SHORT} {extra}"))


def test_missing_model_and_output():
    with pytest.raises(ArgumentError, match="--model_name_or_path: missing"):
        parse(["--train_jsonl", "F", "--output_dir", "O"])
    with pytest.raises(ArgumentError, match="--output_dir is missing"):
        parse(["--train_jsonl", "F", "--model_name_or_path", "M"])
    with pytest.raises(ArgumentError, match="found neither"):
        parse(["--output_dir", "O", "--model_name_or_path", "M"])


def test_config_file_and_the_command_line_wins(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "model_name_or_path: M\ntrain_jsonl: F\noutput_dir: O\nlora_r: 4\nlearning_rate: 1e-3\n"
        "lora_target_modules: [q_proj, v_proj]\nbf16: true\nmax_length: null\n"
    )
    arguments = parse(["--config", str(config), "--lora_r", "16"])
    assert arguments.model.lora_r == 16
    assert arguments.model.target_modules == ("q_proj", "v_proj")
    assert arguments.loop.learning_rate == 1e-3
    assert arguments.loop.bf16
    assert arguments.data.max_length is None
    assert parse([f"--config={config}"]).model.lora_r == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_rr: 3", "did you mean"),
        ("- a\n- b", "expected `name: value` lines"),
        ("a: [", "is not valid YAML"),
        ("lora_r: [1, 2]", "--lora_r 1,2: must be a whole number"),
        ("config: other.yaml", "a file cannot name another one"),
        ("lora_r: &a {b: *a}", "more than 10,000 values once its aliases are written out"),
        ("[" * 50_000, "is not valid YAML"),
        ("lora_r: 3\x00", "is not valid YAML"),
        ("#" * 100_001, "a YAML file of at most 100,000 bytes"),
    ],
)
def test_bad_config_files(tmp_path, text, message):
    config = tmp_path / "run.yaml"
    config.write_text(text)
    with pytest.raises(ArgumentError, match=message):
        parse([*SHORT.split(), "--config", str(config)])
    with pytest.raises(ArgumentError, match=r"nowhere.yaml: not there"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])


def test_a_config_file_that_unfolds_to_gigabytes_is_refused_at_once(tmp_path):
    """Nine lines, each naming the one before nine times: 9^9 strings."""
    config = tmp_path / "run.yaml"
    lines = ['a0: &a0 ["ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha", "ha"]']
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    config.write_text("\n".join(lines))
    began = time.perf_counter()
    with pytest.raises(ArgumentError, match="more than 10,000 values"):
        parse([*SHORT.split(), "--config", str(config)])
    assert time.perf_counter() - began < 1


def test_a_config_file_that_never_ends_is_refused():
    with pytest.raises(ArgumentError, match="/dev/zero: not a file"):
        parse([*SHORT.split(), "--config", "/dev/zero"])


def test_given_repeats_the_run_and_holds_no_secret(tmp_path):
    import yaml

    line = shlex.split(f"{SHORT} --bf16 True --lora_r 4 --hub_token secret --lr_scheduler_type cosine")
    given = parse(line).given
    assert "secret" not in str(given)
    config = tmp_path / "arguments.yaml"
    config.write_text(yaml.safe_dump(given))
    again = parse(["--config", str(config)])
    assert again.given == given
    assert again.loop.lr_scheduler_type == "cosine"
