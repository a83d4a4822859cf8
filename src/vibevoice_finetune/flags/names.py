"""What people type instead of a flag: the field's other words, and the flags of older scripts."""

import difflib
from collections.abc import Collection

from vibevoice_finetune.flags.declare import shown

OTHER_WORDS = {
    "lora_rank": "lora_r",
    "rank": "lora_r",
    "r": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "scheduler": "lr_scheduler_type",
    "warmup": "warmup_ratio",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "max_train_steps": "max_steps",
    "train_steps": "max_steps",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "bs": "per_device_train_batch_size",
    "eval_batch_size": "per_device_eval_batch_size",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "accumulation_steps": "gradient_accumulation_steps",
    "grad_clip": "gradient_clipping",
    "clip_grad_norm": "max_grad_norm",
    "grad_checkpointing": "gradient_checkpointing",
    "optimizer": "optim",
    "wd": "weight_decay",
    "ema": "ema_decay",
    "cfg_dropout": "unconditional_rate",
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "model_id": "model_name_or_path",
    "model_name": "model_name_or_path",
    "base_model": "model_name_or_path",
    "pretrained_model_name_or_path": "model_name_or_path",
    "tokenizer": "processor_name_or_path",
    "tokenizer_name_or_path": "processor_name_or_path",
    "processor": "processor_name_or_path",
    "cache": "cache_dir",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "train_file": "train_jsonl",
    "train_data": "train_jsonl",
    "data": "train_jsonl",
    "jsonl": "train_jsonl",
    "eval_jsonl": "validation_jsonl",
    "valid_jsonl": "validation_jsonl",
    "validation_file": "validation_jsonl",
    "validation_split_name": "eval_split_name",
    "text_column": "text_column_name",
    "audio_column": "audio_column_name",
    "speaker_column": "speaker_column_name",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "train": "do_train",
    "eval": "do_eval",
    "resume": "resume_from_checkpoint",
    "resume_from": "resume_from_checkpoint",
    "attn": "attn_implementation",
    "attention": "attn_implementation",
    "quantization": "load_in_4bit",
    "train_head": "train_diffusion_head",
    "output": "output_dir",
    "out": "output_dir",
    "out_dir": "output_dir",
    "o": "output_dir",
    "wandb_project": "project",
    "workers": "dataloader_num_workers",
    "num_workers": "dataloader_num_workers",
    "random_seed": "seed",
    "torch_dtype": "bf16",
    "dtype": "bf16",
    "mixed_precision": "bf16",
    "precision": "bf16",
    "push": "push_to_hub",
    "repo_id": "hub_model_id",
    "text_file": "script",
    "txt_path": "script",
    "txt": "script",
    "speaker_names": "voice",
    "voice_file": "voice",
    "voice_path": "voice",
    "voices": "voice",
    "voice_prompt": "voice",
    "reference_audio": "voice",
    "prompt": "text",
    "lora": "adapter",
    "lora_path": "adapter",
    "adapter_path": "adapter",
    "checkpoint_path": "adapter",
    "lora_scale": "adapter_scale",
    "lora_weight": "adapter_scale",
    "guidance_scale": "cfg_scale",
    "cfg": "cfg_scale",
    "ddpm_steps": "num_diffusion_steps",
    "ddpm_inference_steps": "num_diffusion_steps",
    "inference_steps": "num_diffusion_steps",
    "num_inference_steps": "num_diffusion_steps",
    "max_seconds": "max_length_sec",
    "max_new_tokens": "max_length_sec",
    "format": "layout",
    "duration": "clip_sec",
    "gpus": "processes",
    "num_processes": "processes",
}
"""What a flag is called elsewhere. Several flags of ours may have one other word; see `SAME_WORD`."""

SAME_WORD = {
    "output_dir": ("output",),
    "model_name_or_path": ("path",),
    "bf16": ("dtype",),
    "max_steps": ("num_diffusion_steps",),
    "per_device_train_batch_size": ("batch_size",),
    "adapter": ("path",),
    "processor_name_or_path": (),
}
"""Where a command lacks the flag, the one of the same meaning that it may have."""

_DEBUGGING = "has no counterpart: the losses of each step are in OUTPUT_DIR/metrics.jsonl; leave it out"
_TPU = "has no counterpart: training runs on CPUs and CUDA GPUs; leave it out"

GONE_FLAGS = {
    # of transformers 4
    "evaluation_strategy": "is gone from transformers 5; use --eval_strategy",
    "logging_dir": "is gone from transformers 5; set the variable TENSORBOARD_LOGGING_DIR (default: OUTPUT_DIR/runs)",
    "overwrite_output_dir": "is gone from transformers 5; name another --output_dir, or go on from the old one with "
    "--resume_from_checkpoint True",
    "save_safetensors": "is gone from transformers 5; weights are always written as safetensors, leave it out",
    "group_by_length": "is gone from transformers 5; rows are packed without padding, leave it out",
    "no_cuda": "is gone from transformers 5; use --use_cpu",
    "use_mps_device": _TPU,
    "tpu_num_cores": _TPU,
    "tpu_metrics_debug": _TPU,
    "use_ipex": _TPU,
    "jit_mode_eval": "is gone from transformers 5; leave it out",
    "torchdynamo": "is gone from transformers 5; use --torch_compile",
    "fp16_opt_level": "is gone from transformers 5; use --bf16 True",
    "fp16_backend": "is gone from transformers 5; use --bf16 True",
    "half_precision_backend": "is gone from transformers 5; use --bf16 True",
    "adafactor": "is gone from transformers 5; use --optim adafactor",
    "per_gpu_train_batch_size": "is gone from transformers 5; use --per_device_train_batch_size",
    "per_gpu_eval_batch_size": "is gone from transformers 5; use --per_device_eval_batch_size",
    "push_to_hub_model_id": "is gone from transformers 5; use --hub_model_id",
    "push_to_hub_organization": "is gone from transformers 5; use --hub_model_id OWNER/NAME",
    "push_to_hub_token": "is gone from transformers 5; use --hub_token, or: hf auth login",
    "include_inputs_for_metrics": "is gone from transformers 5; leave it out",
    "include_tokens_per_second": "is gone from transformers 5; metrics.jsonl has frames per second, leave it out",
    "past_index": "is gone from transformers 5; leave it out",
    "ray_scope": "is gone from transformers 5; leave it out",
    "mp_parameters": "is gone from transformers 5; leave it out",
    "dispatch_batches": "is gone from transformers 5; leave it out",
    "split_batches": "is gone from transformers 5; leave it out",
    "fsdp_min_num_params": "is gone from transformers 5; use --fsdp full_shard",
    "fsdp_transformer_layer_cls_to_wrap": "is gone from transformers 5; use --fsdp full_shard",
    "sharded_ddp": "is gone from transformers 5; use --fsdp full_shard",
    # of the community's finetune_vibevoice_lora.py
    "debug_ce_details": _DEBUGGING,
    "debug_ce_topk": _DEBUGGING,
    "debug_ce_max_examples": _DEBUGGING,
    "debug_ce_every_n_steps": _DEBUGGING,
    "debug_overfit": "has no counterpart: to fit a few rows, name a --train_jsonl that holds only these",
    "fp32": "has no counterpart: float32 is what you get without --bf16; leave it out",
    "merge_lora": "belongs to the command merge",
    "device_map": "has no counterpart: one GPU per process; use --fsdp full_shard to split a model",
    "gpu": "has no counterpart: choose a GPU with the variable CUDA_VISIBLE_DEVICES",
}
"""Flags of older scripts that are not here, and what to do instead."""


def unknown_flag(word: str, names: Collection[str]) -> str:
    """What to say of a word that is not a flag of this command.

    >>> unknown_flag("--lora_rank", ["lora_r", "lora_alpha"])
    '--lora_rank is not a flag; did you mean --lora_r?'
    """
    name = word.lstrip("-").split("=")[0].replace("-", "_")
    shown_name = shown(word.split("=")[0])
    if name in GONE_FLAGS:
        return f"--{name} {GONE_FLAGS[name]}."
    if name.startswith("no_") and name[3:] in names:
        return f"--{name} is not a flag; write --{name[3:]} False."
    meant = OTHER_WORDS.get(name.lower())
    candidates = [meant, *SAME_WORD.get(meant, ())] if meant else []
    candidates += difflib.get_close_matches(name.lower(), names, n=1)
    found = next((candidate for candidate in candidates if candidate in names), None)
    hint = f"; did you mean --{found}?" if found else " (all flags: --help)."
    return f"{shown_name} is not a flag{hint}"
