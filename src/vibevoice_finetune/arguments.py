"""The flags of `train` and `encode`, each declared once with its unit, default and meaning.

Three dataclasses: `ModelArguments` (which model, what is trained), `DataArguments` (rows and latents) and
`FinetuneArguments` (the loop: everything of transformers' `TrainingArguments`, and the losses). A combination that
cannot be carried out is refused here; `commands/parser.py` makes them from a command line.
"""

import importlib.util
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from vibevoice_finetune.errors import ArgumentError

FSDP_FLAGS = ("false", "true", "full_shard", "full_shard auto_wrap")
SPLIT_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")
LANGUAGE_MODEL_TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


@dataclass
class ModelArguments:
    """Which model is trained, and which of its parts."""

    model_name_or_path: str = field(
        metadata={"help": "VibeVoice checkpoint: a folder or a Hub id, original or transformers layout."}
    )
    processor_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Text tokenizer: a folder or a Hub id. Default: the model's, else the one that it names."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Where downloads from the Hub are kept."})
    freeze_acoustic_tokenizer: bool = field(
        default=True, metadata={"help": "Must stay True: latents are computed once, with the released tokenizer."}
    )
    freeze_semantic_tokenizer: bool = field(default=True, metadata={"help": "Must stay True, for the same reason."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the input of LoRA, a share."})
    lora_target_modules: str = field(
        default=LANGUAGE_MODEL_TARGETS,
        metadata={"help": "Linear layers of the language model that get LoRA, by comma; 'none' or empty: no LoRA."},
    )
    lora_wrap_diffusion_head: bool = field(default=False, metadata={"help": "LoRA on the diffusion head."})
    train_diffusion_head: bool = field(default=False, metadata={"help": "Train all weights of the diffusion head."})
    train_connectors: bool = field(
        default=False, metadata={"help": "Train all weights of the acoustic and the semantic connector."}
    )
    layers_to_freeze: str | None = field(
        default=None,
        metadata={
            "help": "With --train_diffusion_head: indices of its tensors to keep fixed, by comma, in the original's "
            "order (0 noisy_images_proj, 1 cond_proj, 2-3 t_embedder.mlp.0/2, then of each layer gate, up, down, norm, "
            "adaLN, then the final linear and adaLN); the start-up report prints them."
        },
    )
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"] = field(
        default="auto",
        metadata={
            "help": "Attention of the language model; varlen: row by row, without a mask. auto: varlen on a CPU, "
            "on a GPU flash_attention_2 if it is installed, or sdpa."
        },
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "Keep the language model's linear layers in 4 bit (extra: 4bit)."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Keep the language model's linear layers in 8 bit (extra: 4bit)."}
    )

    def __post_init__(self) -> None:
        for name in ("freeze_acoustic_tokenizer", "freeze_semantic_tokenizer"):
            if not getattr(self, name):
                raise ArgumentError(
                    f"--{name} False: the speech tokenizers cannot be trained: latents are computed once, before "
                    "training; leave the flag out."
                )
        if self.train_diffusion_head and self.lora_wrap_diffusion_head:
            raise ArgumentError(
                "--train_diffusion_head and --lora_wrap_diffusion_head exclude each other: train all weights of the "
                "diffusion head or LoRA on it; leave one of the two out."
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise ArgumentError("--load_in_4bit and --load_in_8bit exclude each other; leave one of the two out.")
        if self.layers_to_freeze and not self.train_diffusion_head:
            raise ArgumentError("--layers_to_freeze needs --train_diffusion_head: it names tensors of that head.")
        _check("--lora_r", self.lora_r, self.lora_r >= 1, "at least 1")
        _check("--lora_dropout", self.lora_dropout, 0 <= self.lora_dropout < 1, "at least 0 and below 1")
        _ = self.frozen_head_layers

    def attention(self, device_type: str) -> str:
        """`--attn_implementation`, with auto decided for this kind of device."""
        if self.attn_implementation != "auto":
            return self.attn_implementation
        if device_type == "cpu":
            return "varlen"  # 3 times as fast for eight rows or more, see benchmarks/README.md; not measured on a GPU
        has_flash = device_type == "cuda" and importlib.util.find_spec("flash_attn") is not None
        return "flash_attention_2" if has_flash else "sdpa"

    @property
    def quantised_bits(self) -> int | None:
        """4 or 8, or None for floating point."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def target_modules(self) -> tuple[str, ...]:
        """`--lora_target_modules` as names; empty: no LoRA on the language model."""
        if self.lora_target_modules.strip().lower() == "none":
            return ()
        return tuple(name.strip() for name in self.lora_target_modules.split(",") if name.strip())

    @property
    def frozen_head_layers(self) -> tuple[int, ...]:
        """`--layers_to_freeze` as indices."""
        words = (self.layers_to_freeze or "").replace(",", " ").split()
        if not all(word.isdigit() for word in words):
            raise ArgumentError(f'--layers_to_freeze "{self.layers_to_freeze}": write indices by comma, as in 0,1,5.')
        return tuple(sorted({int(word) for word in words}))


@dataclass
class DataArguments:
    """Where rows come from and how they become latents."""

    train_jsonl: str | None = field(
        default=None, metadata={"help": 'JSONL file: {"text", "audio", "voice_prompts", "speaker"} a line.'}
    )
    validation_jsonl: str | None = field(default=None, metadata={"help": "The same for evaluation."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Hugging Face data set: a Hub id or a folder of save_to_disk."}
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_split_name: str = field(default="train", metadata={"help": "Its split for training."})
    eval_split_name: str = field(default="validation", metadata={"help": "Its split for evaluation, if it has one."})
    text_column_name: str = field(default="text", metadata={"help": "Column (or JSONL key) of the script."})
    audio_column_name: str = field(default="audio", metadata={"help": "Column of the target audio."})
    voice_prompts_column_name: str = field(default="voice_prompts", metadata={"help": "Column of the voice prompts."})
    speaker_column_name: str = field(
        default="speaker", metadata={"help": "Column of the speaker; its other clips serve as voice prompts."}
    )
    eval_split_size: float = field(
        default=0.0, metadata={"help": "Share of the training rows held out for evaluation if there is no other set."}
    )
    ignore_verifications: bool = field(default=False, metadata={"help": "Skip the checks of a Hub data set's files."})
    max_length: int | None = field(
        default=None, metadata={"help": "Longest row, in tokens and frames together. Default: the model's positions."}
    )
    voice_prompt_drop_rate: float = field(
        default=0.0, metadata={"help": "Share of rows shown without their voice prompts, drawn anew each epoch."}
    )
    prompt_cuts_per_clip: int = field(
        default=4, metadata={"help": "Random cuts of a clip that are encoded as its voice prompts, if it has no other."}
    )
    normalize_targets: bool = field(
        default=True, metadata={"help": "Bring target audio to -25 dBFS, as voice prompts always are."}
    )
    latents_dir: str | None = field(
        default=None, metadata={"help": "The latent store. Default: OUTPUT_DIR/latents. Share it between runs."}
    )
    max_tokens_per_batch: int | None = field(
        default=None,
        metadata={
            "help": "Fill micro-batches with rows up to so many tokens, instead of --per_device_train_batch_size rows."
        },
    )
    on_bad_row: Literal["error", "skip"] = field(
        default="error", metadata={"help": "What to do with a row that cannot be used: stop, or count it and go on."}
    )

    def __post_init__(self) -> None:
        if (self.train_jsonl is None) == (self.dataset_name is None):
            found = "both" if self.train_jsonl else "neither"
            raise ArgumentError(f"give either --train_jsonl or --dataset_name (found {found}).")
        _check_share("--voice_prompt_drop_rate", self.voice_prompt_drop_rate, upper_allowed=True)
        _check_share("--eval_split_size", self.eval_split_size)
        _check("--prompt_cuts_per_clip", self.prompt_cuts_per_clip, self.prompt_cuts_per_clip >= 1, "at least 1")
        for name in ("max_length", "max_tokens_per_batch"):
            limit = getattr(self, name)
            _check(f"--{name}", limit, limit is None or limit >= 1, "at least 1")


@dataclass
class FinetuneArguments(TrainingArguments):
    """The loop and the losses, on top of transformers' `TrainingArguments`."""

    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: every trained tensor gets a gradient in every step."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Replace non-finite losses in the logs. Off: nothing is silent."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Accepted for old scripts; rows keep what training needs either way."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many optimizer steps (below 1: a share)."})
    report_to: str | None = field(
        default=None,
        metadata={"help": "Loggers: tensorboard, wandb, trackio … or none. Default: tensorboard, if it is installed."},
    )
    ddpm_batch_mul: int = field(default=1, metadata={"help": "Noise draws a frame and step in the diffusion loss."})
    diffusion_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the diffusion loss."})
    ce_loss_weight: float = field(default=1.0, metadata={"help": "Weight of text and control cross-entropy."})
    control_loss_weight: float = field(
        default=1.0,
        metadata={"help": "Factor on ce_loss_weight for the control loss (go on or stop); 0: the original objective."},
    )
    unconditional_rate: float = field(
        default=0.0, metadata={"help": "Share of rows shown as the unconditional branch of guidance sees them."}
    )
    ema_decay: float = field(
        default=0.0, metadata={"help": "Decay of a float32 average of the trained weights; 0: none."}
    )
    gradient_clipping: bool = field(default=False, metadata={"help": "Clip gradients to --max_grad_norm."})
    warmup_ratio: float = field(default=0.0, metadata={"help": "Share of all steps with a rising learning rate."})
    max_bad_steps: int = field(
        default=3, metadata={"help": "Steps in a row with a loss or gradient that is not finite before the run stops."}
    )
    allow_changed_run: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint even if data, base model or flags that change the numbers differ."},
    )
    debug_save: bool = field(
        default=False, metadata={"help": "Save the untrained parts to OUTPUT_DIR/debug_initial before training."}
    )

    def __post_init__(self) -> None:
        self._check_own()
        if not self.gradient_clipping:
            self.max_grad_norm = 0.0
        if self.warmup_ratio:
            self.warmup_steps = self.warmup_ratio
        if self.report_to is None:
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        if self.activation_checkpointing is None:
            self.activation_checkpointing = self.gradient_checkpointing  # the old name, without its warning
        if self.bf16 and not torch.cuda.is_available():
            self.use_cpu = True  # transformers refuses bf16 without a GPU unless the CPU is asked for
        self._splits_weights = self._takes_fsdp()
        super().__post_init__()  # type: ignore[no-untyped-call]

    def _check_own(self) -> None:
        if self.output_dir is None:
            raise ArgumentError("--output_dir is missing: the folder that the result goes to.")
        if self.fp16:
            raise ArgumentError("--fp16: VibeVoice overflows in float16; use --bf16 True, or neither for float32.")
        self._check_launcher()
        if self.warmup_ratio and self.warmup_steps not in (0, self.warmup_ratio):
            raise ArgumentError("--warmup_ratio and --warmup_steps exclude each other; leave one of the two out.")
        _check_share("--warmup_ratio", self.warmup_ratio)
        _check_share("--unconditional_rate", self.unconditional_rate)
        _check_share("--ema_decay", self.ema_decay)
        for name in ("ddpm_batch_mul", "gradient_accumulation_steps", "per_device_train_batch_size", "max_bad_steps"):
            number = getattr(self, name)
            _check(f"--{name}", number, number >= 1, "at least 1")
        for name in ("diffusion_loss_weight", "ce_loss_weight", "control_loss_weight"):
            weight = getattr(self, name)
            _check(f"--{name}", weight, weight >= 0, "at least 0")

    def _check_launcher(self) -> None:
        if self.deepspeed or _asks_for("DEEPSPEED"):
            raise ArgumentError("DeepSpeed is not supported; to split a model over several GPUs, use --fsdp.")
        if self.fsdp_config:
            raise ArgumentError("--fsdp_config: there is nothing to set; --fsdp splits layer by layer.")
        asked = str(self.fsdp or FSDP_FLAGS[0]).lower()
        if asked not in FSDP_FLAGS:
            raise ArgumentError(f"--fsdp {asked}: only full_shard is offered: weights, gradients and optimizer split.")
        offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        if _asks_for("FSDP") and offload:
            raise ArgumentError("accelerate's fsdp_offload_params: weights stay on the GPUs; set it to false.")
        if self.splits_by_request:
            self._check_optimizer("--fsdp")

    def _check_optimizer(self, flag: str) -> None:
        if self.optim not in SPLIT_OPTIMIZERS:
            raise ArgumentError(
                f"--optim {self.optim}: cannot work on split tensors; with {flag} use {' or '.join(SPLIT_OPTIMIZERS)}."
            )

    def _takes_fsdp(self) -> bool:
        """Whether weights are to be split; the request is taken away from transformers and accelerate.

        They would wrap the model once more, with checkpoints of their own, and on CPUs run plain DDP and say nothing.
        """
        wanted = self.splits_by_request
        self.fsdp = None
        if _asks_for("FSDP"):
            os.environ["ACCELERATE_USE_FSDP"] = "false"
        return wanted

    def check_processes(self, processes: int) -> None:
        """Refuse what needs several processes if there is one.

        Raises:
            ArgumentError: weights are to be split, but there is one process.
        """
        if self.splits_weights and processes == 1:
            raise ArgumentError("--fsdp splits weights over processes, but there is one; start several with torchrun.")

    @property
    def splits_by_request(self) -> bool:
        """Whether the flag or accelerate's configuration asks for FSDP; only until transformers has read them."""
        return str(self.fsdp or "false").lower() != "false" or _asks_for("FSDP")

    @property
    def splits_weights(self) -> bool:
        """Whether weights, gradients and the optimizer's state are split over processes (FSDP2)."""
        return self._splits_weights

    @property
    def place_model_on_device(self) -> bool | None:
        """For transformers: split weights lie where they belong, and moving them would fail."""
        return False if self._splits_weights else None

    @property
    def evaluates(self) -> bool:
        """Whether an evaluation set is needed."""
        return bool(self.do_eval) or self.eval_strategy != IntervalStrategy.NO

    @property
    def draw_seed(self) -> int:
        """Seed of the sampler's order and of every draw of a row."""
        return self.seed if self.data_seed is None else self.data_seed


@dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
        model: which model, what is trained.
        data: rows and latents.
        loop: the loop and the losses.
        given: the flags whose value differs from the default, as they were given; secrets left out.
    """

    model: ModelArguments
    data: DataArguments
    loop: FinetuneArguments
    given: dict[str, Any]


def _asks_for(what: str) -> bool:
    """Whether accelerate's launcher asks for this."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"


def _check(flag: str, value: Any, holds: bool, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"{flag} {value}: must be {expected}.")


def _check_share(flag: str, value: float, *, upper_allowed: bool = False) -> None:
    expected = "from 0 to 1" if upper_allowed else "at least 0 and below 1"
    _check(flag, value, 0 <= value < 1 or (upper_allowed and value == 1), expected)
