"""The flags: which there are, what they default to, and what is refused."""

import shlex
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import yaml
from transformers import TrainingArguments

from vibevoice_finetune.arguments import PATH_FLAGS, DataArguments, FinetuneArguments, ModelArguments, make_arguments
from vibevoice_finetune.commands.parser import parse
from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.loop import LoopFlags

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
    "train_language_model": False,
    "adapter_name_or_path": None,
    "lora_rank_pattern": None,
    "use_rslora": False,
    "use_dora": False,
    "init_lora_weights": "default",
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
    "mix": None,
    "validation_jsonl": None,
    "voice_prompt_drop_rate": 0.0,
    "latents_dir": None,
    "prompt_cuts_per_clip": 4,
    "normalize_targets": True,
    "max_tokens_per_batch": None,
    "on_bad_row": "error",
}
LOOP_FLAGS = {
    "recipe": None,
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
    "sample_steps": 0,
    "sample_script": None,
    "sample_metrics": False,
    "keep_tokenizers": False,
    "early_stopping_patience": None,
    "select_best_by": None,
    "recognizer": "moonshine",
    "language": "en",
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
def test_the_command_lines_that_people_have(line, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
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
        ("--fp16", "--fp16 True: .* use --bf16 True"),
        ("--mix 0.5,0.5", r"--mix 0.5,0.5: 2 shares for 1 data set \(F\); give one for each"),
        ("--train_jsonl G --mix 1", r"--mix 1: 1 share for 2 data sets \(F, G\)"),
        ("--dataset_name D --mix .5,.3", r"--mix .5,.3: the shares add up to 0.8; expected 1, as in 0.625,0.375"),
        ("--dataset_name D --mix 1,0", "--mix 1,0: expected a number above 0 for each data set"),
        ("--dataset_name D --mix 1,nan", "--mix 1,nan: expected a number above 0 for each data set"),
        ("--dataset_name D --mix half", "--mix half: expected a number above 0 for each data set"),
        ("--mix 1 --max_tokens_per_batch 9", "--mix and --max_tokens_per_batch: shares are of rows"),
        ("--voice_prompt_drop_rate 1.5", "--voice_prompt_drop_rate 1.5: must be from 0 to 1"),
        ("--unconditional_rate 1", "--unconditional_rate 1: must be at least 0 and below 1"),
        ("--ema_decay 1", "--ema_decay 1: must be at least 0 and below 1"),
        ("--ddpm_batch_mul 0", "--ddpm_batch_mul 0: must be from 1 to 1,000"),
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
    with pytest.raises(ArgumentError, match="there is nothing to train on; give --train_jsonl or --dataset_name"):
        parse(["--output_dir", "O", "--model_name_or_path", "M"])


def test_the_old_names_of_activation_checkpointing():
    words = ["--gradient_checkpointing", "--gradient_checkpointing_kwargs", '{"every_n_layers": 2}']
    loop = parse([*SHORT.split(), *words]).loop
    assert loop.activation_checkpointing
    assert loop.activation_checkpointing_kwargs == {"every_n_layers": 2}


def test_what_is_given_is_what_somebody_wrote(tmp_path):
    """Also where it equals the default, and from a file; nothing that nobody wrote, and no secret."""
    config = tmp_path / "run.yaml"
    config.write_text("lora_r: 8\nseed: 42\nhub_token: hf_secret\n")
    line = f"{SHORT} --bf16 False --learning_rate 5e-5 --hub_token hf_secret --config {config}"
    assert parse(shlex.split(line)).given == {
        "model_name_or_path": "M",
        "train_jsonl": ["F"],
        "output_dir": "O",
        "do_train": True,
        "bf16": False,
        "learning_rate": 5e-5,
        "lora_r": 8,
        "seed": 42,
    }


def test_what_a_command_fills_in_is_not_recorded():
    arguments = make_arguments({"model_name_or_path": "M", "train_jsonl": "F"}, {"output_dir": "", "do_train": True})
    assert arguments.given == {"model_name_or_path": "M", "train_jsonl": "F"}
    assert arguments.loop.do_train


def test_given_repeats_the_run(tmp_path):
    line = shlex.split(
        f"{SHORT} --bf16 True --lora_r 4 --lr_scheduler_type cosine_with_min_lr "
        """--lr_scheduler_kwargs '{"min_lr": 1e-6}' --report_to tensorboard trackio """
        "--lora_target_modules q_proj v_proj"
    )
    first = parse(line)
    config = tmp_path / "arguments.yaml"
    config.write_text(yaml.safe_dump(first.given))
    again = parse(["--config", str(config)])
    assert again.given == first.given
    assert again.loop.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert again.loop.report_to == ["tensorboard", "trackio"]
    assert again.model.target_modules == ("q_proj", "v_proj")


def test_the_flags_whose_values_are_paths():
    assert {
        *("model_name_or_path", "processor_name_or_path", "cache_dir", "train_jsonl", "validation_jsonl"),
        *("dataset_name", "latents_dir", "output_dir", "resume_from_checkpoint", "sample_script"),
        "adapter_name_or_path",
    } == PATH_FLAGS


@pytest.mark.parametrize(
    ("words", "kind"),
    [((), "frozen"), (("--train_diffusion_head",), "full"), (("--lora_wrap_diffusion_head",), "lora")],
)
def test_how_the_head_is_trained(words, kind):
    assert parse([*SHORT.split(), *words]).model.head_training == kind


def test_every_number_of_ours_has_a_range():
    """Or nan, inf and negative sizes get as far as the training."""
    for kind in (ModelArguments, DataArguments, LoopFlags):
        for name, hint in get_type_hints(kind).items():
            (field,) = (field for field in fields(kind) if field.name == name)
            numbers = {int, float} & {hint, *get_args(hint)}
            assert bool(numbers) == (field.metadata["range"] is not None), name
