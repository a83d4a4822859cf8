"""`--use_liger_kernel`: Liger's fused kernels for the language model's norms, feed-forward parts and rotary embedding.

Only these three: the losses are this project's own, and attention is chosen by `--attn_implementation`.
"""

from transformers import Qwen2Model

from vibevoice_finetune.errors import require


def use_liger(language_model: Qwen2Model) -> None:
    """Put the kernels into a language model, with or without LoRA attached; no tensor changes its name.

    The rotary embedding is replaced in transformers' module, so for every Qwen2 model of this process.

    Raises:
        UserError: liger-kernel is not installed.
    """
    kernels = require("liger", "liger_kernel.transformers")
    kernels.apply_liger_kernel_to_qwen2(
        rope=True,
        rms_norm=True,
        swiglu=True,
        cross_entropy=False,
        fused_linear_cross_entropy=False,
        model=language_model,
    )
