"""The flags of the training loop: our own, and those of transformers' `TrainingArguments` that most runs set.

The latter are declared again, with transformers' defaults unless the README says otherwise, so that `--help` can list
them without importing it. `FinetuneArguments` in `arguments.py` joins this class with the rest of them.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from vibevoice_finetune.flags.declare import COUNT, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_ONE, Range, flag
from vibevoice_finetune.flags.samples import SampleFlags

LARGEST_SEED = 2**32 - 1
"""numpy's seeds have 32 bits."""

STEPS = Range(above=0)
"""Of logging, evaluation and saving: a number of steps, or below 1 a share of the run."""


Schedule = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
]
"""Those of transformers that depend on the step alone. Of the other two, reduce_lr_on_plateau and greedy, a checkpoint
does not hold the state, so a resumed run would differ."""

Optimizer = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adafactor",
    "sgd",
    "adagrad",
    "rmsprop",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
]
"""Those of torch and transformers, and those of bitsandbytes (extra: 4bit) whose state can be saved and read."""


@dataclass
class LoopFlags(SampleFlags):
    """The loop and the losses."""

    output_dir: str | None = flag(
        None, help="Folder for the result, checkpoints and logs.", group="run", is_path=True, shown_default="required"
    )
    recipe: str | None = flag(  # not `is_path`: most are names, and the model card is to have them
        None,
        help="Settings for a purpose, under those of --config and of the command line: voice, voice-small-gpu, "
        "language, dialogue, style, full, or a YAML file of your own; `recipes NAME` prints one.",
        group="run",
    )
    do_train: bool = flag(False, help="Train.", group="run")
    do_eval: bool = flag(False, help="Evaluate at the end; also set by --eval_strategy.", group="run")
    resume_from_checkpoint: str | None = flag(
        None,
        help="True: go on from the newest checkpoint; or the path of one.",
        group="run",
        is_path=True,
        bare="True",
    )
    allow_changed_run: bool = flag(
        False,
        help="Go on from a checkpoint even if data, base model or flags that change the numbers differ.",
        group="run",
    )
    seed: int = flag(42, help="Of every random draw.", group="run", range=Range(at_least=0, at_most=LARGEST_SEED))
    debug_save: bool = flag(
        False, help="Save the untrained parts to OUTPUT_DIR/debug_initial before training.", group="run"
    )
    max_bad_steps: int = flag(
        3,
        help="Steps in a row with a loss or gradient that is not finite before the run stops.",
        group="run",
        range=COUNT,
    )
    ddpm_batch_mul: int = flag(
        1,
        help="Noise draws per frame and step in the diffusion loss.",
        group="losses",
        range=Range(at_least=1, at_most=1000),
    )
    diffusion_loss_weight: float = flag(1.0, help="Weight of the diffusion loss.", group="losses", range=NOT_NEGATIVE)
    ce_loss_weight: float = flag(1.0, help="Weight of the text and control losses.", group="losses", range=NOT_NEGATIVE)
    control_loss_weight: float = flag(
        1.0,
        help="Factor on --ce_loss_weight for the control loss (go on or stop); 0: the original objective.",
        group="losses",
        range=NOT_NEGATIVE,
    )
    unconditional_rate: float = flag(
        0.0,
        help="Share of rows shown as the unconditional branch of guidance sees them.",
        group="losses",
        range=SHARE_BELOW_ONE,
    )
    num_train_epochs: float = flag(
        3.0, help="Passes over the training rows.", group="steps", range=Range(above=0, at_most=1e6)
    )
    max_steps: int = flag(
        -1, help="Optimizer steps; above 0 it replaces --num_train_epochs.", group="steps", range=Range(at_least=-1)
    )
    per_device_train_batch_size: int = flag(8, help="Rows per process and micro-batch.", group="steps", range=COUNT)
    gradient_accumulation_steps: int = flag(1, help="Micro-batches per optimizer step.", group="steps", range=COUNT)
    learning_rate: float = flag(5e-5, help="The largest learning rate.", group="steps", range=NOT_NEGATIVE)
    lr_scheduler_type: Schedule = flag("linear", help=f"Its schedule: {', '.join(get_args(Schedule))}.", group="steps")
    warmup_ratio: float = flag(
        0.0, help="Share of all steps with a rising learning rate.", group="steps", range=SHARE_BELOW_ONE
    )
    warmup_steps: float = flag(
        0, help="The same as a number of steps (below 1: a share).", group="steps", range=NOT_NEGATIVE
    )
    weight_decay: float = flag(0.0, help="Of AdamW.", group="steps", range=NOT_NEGATIVE)
    gradient_clipping: bool = flag(False, help="Clip gradients to --max_grad_norm.", group="steps")
    max_grad_norm: float = flag(
        1.0, help="With --gradient_clipping: the largest gradient norm.", group="steps", range=POSITIVE
    )
    ema_decay: float = flag(
        0.0,
        help="Decay of a float32 average of the trained weights; 0: no average.",
        group="steps",
        range=SHARE_BELOW_ONE,
    )
    bf16: bool = flag(False, help="Frozen weights and arithmetic in bf16.", group="memory and speed")
    gradient_checkpointing: bool | None = flag(
        None,
        help="Compute activations again in the backward pass instead of keeping them.",
        group="memory and speed",
        shown_default="False",
    )
    optim: Optimizer = flag(
        "adamw_torch_fused",
        help=f"Optimizer, of which the last eight need the extra 4bit: {', '.join(get_args(Optimizer))}.",
        group="memory and speed",
    )
    fsdp: str | None = flag(
        None,
        help="full_shard: split weights, gradients and optimizer over processes.",
        group="memory and speed",
        bare="full_shard",
    )
    logging_steps: float = flag(
        10, help="Log every this many steps (below 1: a share).", group="logs and checkpoints", range=STEPS
    )
    report_to: str | list[str] | None = flag(
        None,
        help="Loggers, separated by commas: tensorboard, wandb, trackio and others, or none.",
        group="logs and checkpoints",
        shown_default="tensorboard, if it is installed",
    )
    eval_strategy: Literal["no", "steps", "epoch"] = flag("no", help="When to evaluate.", group="logs and checkpoints")
    eval_steps: float | None = flag(
        None,
        help="Evaluate every this many steps.",
        group="logs and checkpoints",
        range=STEPS,
        shown_default="--logging_steps",
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = flag(
        "steps", help="When to save a checkpoint.", group="logs and checkpoints"
    )
    save_steps: float = flag(
        500, help="Save every this many steps (below 1: a share).", group="logs and checkpoints", range=STEPS
    )
    save_total_limit: int | None = flag(
        None,
        help="Keep no more than the newest N checkpoints.",
        group="logs and checkpoints",
        range=COUNT,
        shown_default="all",
    )
    push_to_hub: bool = flag(False, help="Upload the result to the Hub at the end.", group="logs and checkpoints")
    hub_model_id: str | None = flag(None, help="Its repository there, as in me/my-voice.", group="logs and checkpoints")
    remove_unused_columns: bool = flag(
        False, help="Accepted for old scripts; rows keep what training needs.", group="logs and checkpoints"
    )
    logging_nan_inf_filter: bool = flag(
        False, help="Stays False: a loss that is not finite is shown as it is.", group="logs and checkpoints"
    )
    ddp_find_unused_parameters: bool | None = flag(
        False, help="Not needed: every trained tensor gets a gradient in every step.", group="memory and speed"
    )
