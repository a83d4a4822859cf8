"""What becomes of the flags that transformers' `TrainingArguments` adds to ours.

Every one of them either works, or is passed on to a logger, a launcher or the Hub, or is refused here, with what to use
instead: none is accepted and then ignored. `tests/unit/flags/test_inherited.py` walks over all of them, so that a new
transformers cannot add one unseen.
"""

from typing import Any

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, Range, shown
from vibevoice_finetune.flags.loop import LARGEST_SEED

RANGES = {
    "adam_beta1": SHARE_BELOW_ONE,
    "adam_beta2": SHARE_BELOW_ONE,
    "adam_epsilon": POSITIVE,
    "data_seed": Range(at_least=0, at_most=LARGEST_SEED),
    "dataloader_num_workers": Range(at_least=0, at_most=256),
    "dataloader_prefetch_factor": Range(at_least=1, at_most=1024),
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "eval_delay": NOT_NEGATIVE,
    "local_rank": Range(at_least=-1),
    "per_device_eval_batch_size": COUNT,
    "torch_empty_cache_steps": COUNT,
}
"""Of the numbers that work; ours are declared with their flags."""

_OWN_EVALUATION = "evaluation has sums of its own and keeps no predictions; leave it out"
_OWN_LOADER = "batches are made and packed here, the same for any number of processes; leave it out"
_OWN_LOSSES = "the losses are VibeVoice's own; leave it out"
_BATCHES_OF_ROWS = "to fill batches by length, use --max_tokens_per_batch; otherwise leave it out"

REFUSED = {
    "accelerator_config": _OWN_LOADER,
    "auto_find_batch_size": "a smaller batch would be another run; `estimate` says what fits",
    "average_tokens_across_devices": "losses are always divided by the count over all processes; leave it out",
    "batch_eval_metrics": _OWN_EVALUATION,
    "bf16_full_eval": "evaluation computes as training does; use --bf16 True for both",
    "dataloader_in_order": _OWN_LOADER,
    "dataloader_multiprocessing_context": _OWN_LOADER,
    "debug": "a step that is not finite is skipped, and its rows and tensors are named; leave it out",
    "deepspeed": "DeepSpeed is not supported; to split a model over several GPUs, use --fsdp full_shard",
    "do_predict": "nothing is predicted in training; use the command generate",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint before the run ends; leave it out",
    "eval_accumulation_steps": _OWN_EVALUATION,
    "eval_do_concat_batches": _OWN_EVALUATION,
    "eval_use_gather_object": _OWN_EVALUATION,
    "fp16": "VibeVoice overflows in float16; use --bf16 True, or neither for float32",
    "fp16_full_eval": "VibeVoice overflows in float16; use --bf16 True, or neither for float32",
    "fsdp_config": "there is nothing to set; --fsdp full_shard splits layer by layer",
    "hub_always_push": "the result is uploaded once, at the end; leave it out",
    "hub_strategy": "the result is uploaded once, at the end; leave it out",
    "ignore_data_skip": "a resumed run goes on with the very next row; leave it out",
    "include_for_metrics": _OWN_EVALUATION,
    "include_num_input_tokens_seen": "metrics.jsonl has the frames per second; leave it out",
    "label_names": _OWN_LOSSES,
    "label_smoothing_factor": _OWN_LOSSES,
    "length_column_name": _BATCHES_OF_ROWS,
    "liger_kernel_config": "norm, MLP and rotary kernels are used together; leave it out",
    "logging_nan_inf_filter": "a step that is not finite is skipped and named, never hidden; leave it out",
    "neftune_noise_alpha": "noise on embeddings would train what generation never hears; use --lora_dropout",
    "optim_target_modules": "GaLore and APOLLO are not offered; LoRA's layers are --lora_target_modules",
    "parallelism_config": "tensor and context parallelism are not offered; use --fsdp full_shard",
    "prediction_loss_only": _OWN_EVALUATION,
    "remove_unused_columns": "rows keep what training needs; leave it out",
    "restore_callback_states_from_checkpoint": "a checkpoint restores all there is to restore; leave it out",
    "save_on_each_node": "the first process writes for all; put --output_dir on a disk that all nodes see",
    "skip_memory_metrics": "`estimate` says what memory a run needs; leave it out",
    "train_sampling_strategy": _BATCHES_OF_ROWS,
    "use_cache": "training has no use for a cache of keys and values; leave it out",
}
"""Flags of which only the default is accepted, and what to use instead."""


def check_refused(name: str, value: Any, default: Any) -> None:
    """Refuse a flag that would have no effect, or another one than here.

    Raises:
        ArgumentError: says why, and what to use instead.
    """
    if name in REFUSED and value != default:
        raise ArgumentError(f"--{name} {shown(value)}: {REFUSED[name]}.")
