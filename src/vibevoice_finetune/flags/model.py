"""The flags that say which model is trained, and which of its parts."""

from dataclasses import dataclass
from typing import Literal

from vibevoice_finetune.errors import ArgumentError
from vibevoice_finetune.flags.declare import SHARE_BELOW_ONE, Range, flag, shown
from vibevoice_finetune.flags.machine import is_installed

LARGEST_RANK = 4096
FROM_WEIGHTS = ("pissa", "pissa_niter_16", "olora")
"""Values of `--init_lora_weights` that begin at the weights and take this part out of them."""
LANGUAGE_MODEL_TARGETS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
HeadTraining = Literal["full", "lora", "frozen"]
"""How the diffusion head is trained: all of its weights, LoRA on it, or not at all."""


@dataclass
class ModelArguments:
    """Which model is trained, and which of its parts."""

    model_name_or_path: str = flag(
        help="VibeVoice model: a folder, a Hub id, or small (comes with the package).",
        group="model",
        is_path=True,
    )
    processor_name_or_path: str | None = flag(
        None,
        help="Text tokenizer: a folder or a Hub id.",
        group="model",
        is_path=True,
        shown_default="the model's, else the one that it names",
    )
    cache_dir: str | None = flag(
        None, help="Folder for downloads from the Hub.", group="model", is_path=True, shown_default="the Hub's own"
    )
    freeze_acoustic_tokenizer: bool = flag(
        True, help="Must stay True: latents are computed once, with the released tokenizer.", group="model"
    )
    freeze_semantic_tokenizer: bool = flag(True, help="Must stay True, for the same reason.", group="model")
    train_language_model: bool = flag(
        False,
        help="Train all weights of the language model, in place of LoRA on it; the result is a whole model, OUT/model.",
        group="what is trained",
    )
    adapter_name_or_path: str | None = flag(
        None,
        help="Adapter to start from: a folder or a Hub id; its layers and ranks are taken over.",
        group="what is trained",
        is_path=True,
        shown_default="start from the base model alone",
    )
    lora_r: int = flag(
        8, help="Rank of the LoRA matrices.", group="what is trained", range=Range(at_least=1, at_most=LARGEST_RANK)
    )
    lora_alpha: int = flag(
        32, help="LoRA updates are multiplied by alpha / r.", group="what is trained", range=Range(at_least=1)
    )
    lora_dropout: float = flag(
        0.05, help="Dropout on the input of LoRA, a share.", group="what is trained", range=SHARE_BELOW_ONE
    )
    lora_target_modules: str = flag(
        LANGUAGE_MODEL_TARGETS,
        help="Linear layers of the language model that get LoRA, separated by commas; 'none': no LoRA there.",
        group="what is trained",
        is_list=True,
    )
    lora_rank_pattern: dict[str, int] | None = flag(
        None,
        help="Another rank for some layers of the language model, as in '{\"q_proj\": 16}'.",
        group="what is trained",
    )
    use_rslora: bool = flag(
        False, help="LoRA updates are multiplied by alpha / sqrt(r), for large ranks.", group="what is trained"
    )
    use_dora: bool = flag(
        False,
        help="DoRA: also train a length for each row of a weight; a step takes longer.",
        group="what is trained",
    )
    init_lora_weights: Literal["default", "gaussian", "pissa", "pissa_niter_16", "olora"] = flag(
        "default",
        help="How LoRA begins. pissa (niter: a faster approximation) and olora: at the strongest directions of the "
        "weights; saved as LoRA of twice the rank.",
        group="what is trained",
    )
    lora_wrap_diffusion_head: bool = flag(False, help="LoRA on the diffusion head.", group="what is trained")
    train_diffusion_head: bool = flag(False, help="Train all weights of the diffusion head.", group="what is trained")
    train_connectors: bool = flag(
        False, help="Train all weights of the acoustic and the semantic connector.", group="what is trained"
    )
    layers_to_freeze: str | None = flag(
        None,
        help="With --train_diffusion_head: indices of its tensors to keep fixed, separated by commas, in the "
        "original's order (0 noisy_images_proj, 1 cond_proj, 2-3 t_embedder.mlp.0/2, then of each layer gate, up, "
        "down, norm, adaLN, then the final linear and adaLN); the start-up report prints them.",
        group="what is trained",
        is_list=True,
    )
    attn_implementation: Literal["auto", "varlen", "sdpa", "eager", "flash_attention_2"] = flag(
        "auto",
        help="Attention of the language model. varlen: row by row, without a mask. auto: varlen on a CPU; on a GPU "
        "in bf16 flash_attention_2 if it is installed, else varlen; in float32 sdpa.",
        group="memory and speed",
    )
    load_in_4bit: bool = flag(
        False, help="Keep the language model's linear layers in 4 bits (extra: 4bit).", group="memory and speed"
    )
    load_in_8bit: bool = flag(
        False, help="Keep the language model's linear layers in 8 bits (extra: 4bit).", group="memory and speed"
    )

    def __post_init__(self) -> None:
        if not self.freeze_acoustic_tokenizer or not self.freeze_semantic_tokenizer:
            name = "semantic" if self.freeze_acoustic_tokenizer else "acoustic"
            raise ArgumentError(
                f"--freeze_{name}_tokenizer False: the speech tokenizers cannot be trained: latents are computed once, "
                "before training; leave the flag out."
            )
        if self.train_diffusion_head and self.lora_wrap_diffusion_head:
            raise ArgumentError(
                "--train_diffusion_head and --lora_wrap_diffusion_head exclude each other: train all weights of the "
                "diffusion head or LoRA on it; leave one of the two out."
            )
        self._check_lora()
        if self.quantised_bits and self.train_language_model:
            raise ArgumentError(
                f"--train_language_model and --load_in_{self.quantised_bits}bit: packed weights cannot be trained; "
                "leave one of the two out."
            )
        if self.load_in_4bit and self.load_in_8bit:
            raise ArgumentError("--load_in_4bit and --load_in_8bit exclude each other; leave one of the two out.")
        if self.layers_to_freeze and not self.train_diffusion_head:
            raise ArgumentError("--layers_to_freeze needs --train_diffusion_head: it names tensors of that head.")
        _ = self.frozen_head_layers

    def _check_lora(self) -> None:
        forms = {
            "lora_rank_pattern": self.lora_rank_pattern,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "init_lora_weights": self.init_lora_weights != "default",
        }
        for name, wanted in forms.items():
            if wanted and not (self.target_modules or (self.lora_wrap_diffusion_head and name != "lora_rank_pattern")):
                raise ArgumentError(f"--{name}: nothing has LoRA here; leave the flag out.")
        for name, rank in (self.lora_rank_pattern or {}).items():
            if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= LARGEST_RANK:
                raise ArgumentError(
                    f"--lora_rank_pattern {shown(name)}: {shown(rank)} is not a rank; it must be a whole number from 1 "
                    f"to {LARGEST_RANK:,}."
                )
        if self.init_lora_weights not in FROM_WEIGHTS:
            return
        flag_and_value = f"--init_lora_weights {self.init_lora_weights}"
        if self.use_dora:
            raise ArgumentError(f"{flag_and_value} and --use_dora exclude each other; leave one of the two out.")
        if self.quantised_bits:
            raise ArgumentError(
                f"{flag_and_value}: takes a part out of the weights, and packed weights of {self.quantised_bits} "
                "bits cannot hold the rest; leave one of the two out."
            )
        if self.adapter_name_or_path:
            raise ArgumentError(
                f"{flag_and_value} and --adapter_name_or_path exclude each other: LoRA begins where the adapter ended; "
                "leave one of the two out."
            )

    def attention(self, device_type: str, *, bf16: bool) -> str:
        """`--attn_implementation`, with auto decided for this kind of device; flash-attn computes in bf16 only."""
        if self.attn_implementation != "auto":
            return self.attn_implementation
        if device_type == "cpu":
            return "varlen"  # 3 times as fast for eight rows or more, see docs/benchmarks.md; not measured on a GPU
        has_flash = device_type == "cuda" and bf16 and is_installed("flash_attn")
        return "flash_attention_2" if has_flash else "varlen" if device_type == "cuda" and bf16 else "sdpa"

    @property
    def head_training(self) -> HeadTraining:
        """How the diffusion head is trained."""
        return "full" if self.train_diffusion_head else "lora" if self.lora_wrap_diffusion_head else "frozen"

    @property
    def quantised_bits(self) -> Literal[4, 8] | None:
        """4 or 8, or None for floating point."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def target_modules(self) -> tuple[str, ...]:
        """`--lora_target_modules` as names; empty: no LoRA on the language model."""
        if self.train_language_model or self.lora_target_modules.strip().lower() == "none":
            return ()
        return tuple(name.strip() for name in self.lora_target_modules.split(",") if name.strip())

    @property
    def frozen_head_layers(self) -> tuple[int, ...]:
        """`--layers_to_freeze` as indices."""
        words = (self.layers_to_freeze or "").replace(",", " ").split()
        if not all(word.isdecimal() and len(word) < 5 for word in words):
            raise ArgumentError(
                f'--layers_to_freeze "{shown(self.layers_to_freeze)}": write indices separated by commas, as in 0,1,5.'
            )
        return tuple(sorted({int(word) for word in words}))
