"""`--torch_compile`: the repeated blocks compiled, each kind once for all layers and all lengths.

Why: transformers would hand the whole objective to `torch.compile`. It holds every layer, is traced and compiled as one
program for minutes, and again as soon as a batch has another number of rows, frames or labels. Nearly all of the
arithmetic is in blocks that repeat; these are compiled with dynamic shapes, in place: no tensor changes its name.

In: a model with adapters attached. Out: the same model; compiling happens when a block is first called.
"""

from torch import nn

from vibevoice_finetune.base_model import parts


def compile_blocks(model: nn.Module, backend: str, mode: str | None) -> None:
    """Compile the blocks of the language model's layers, and the layers of the diffusion head.

    A layer of the language model is compiled in parts, because activation checkpointing goes around the layer and
    attention row by row breaks its program.

    Args:
        model: with adapters attached.
        backend: value of `--torch_compile_backend`.
        mode: value of `--torch_compile_mode`.
    """
    layers = parts.language_model(model).layers
    blocks = [
        part
        for layer in layers
        for part in (layer.input_layernorm, layer.self_attn, layer.post_attention_layernorm, layer.mlp)
    ]
    for block in (*blocks, *parts.diffusion_head(model).layers):
        block.compile(backend=backend, mode=mode, dynamic=True)
