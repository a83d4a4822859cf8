"""4-bit and 8-bit weights for the frozen language model, through bitsandbytes.

Only the linear layers of the language model are quantised. The rest (embeddings, output matrix, connectors, diffusion
head) stays in floating point: it is small, or trained, or what the losses read directly.
"""

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from vibevoice_finetune.errors import require

UNQUANTISED = [
    "model.audio_tower",
    "model.semantic_tokenizer_encoder",
    "model.multi_modal_projector",
    "model.semantic_connector",
    "model.diffusion_head",
    "lm_head",
]
"""Modules that keep floating point, by full prefix; transformers quantises every other linear layer."""


def quantization_config(bits: int) -> BitsAndBytesConfig:
    """How the language model's linear layers are quantised while they are loaded.

    Four bits: NF4 with double quantisation, computed in bf16 (Dettmers et al., QLoRA, 2023). Eight bits: LLM.int8().

    Args:
        bits: 4 or 8.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    require("4bit", "bitsandbytes")
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTISED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=UNQUANTISED,
    )


def keep_trainable(model: nn.Module) -> None:
    """Keep 4-bit layers in the form that has a backward pass.

    On CPUs with AVX512-BF16 a forward in eval mode repacks the weights for speed, after which training raises or
    silently gives no gradient through them.
    """
    bitsandbytes = require("4bit", "bitsandbytes")
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
