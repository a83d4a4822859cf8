"""The speech tokenizers' forward as matrix products: the same parameters and mathematics, several times faster here.

transformers' native classes run 1-d convolutions on (B, C, T); a processor is much faster with (B, T, C) and plain
matrix products. The outermost layers (a convolution of 7 samples beside one of stride 40, nothing in between) are
linear together, so their kernels are multiplied out first and nothing with channels ever exists at 24 kHz. That needs
the stem to hold no blocks (`depths[0] == 0`) and its bias to be zero, as `initialise` leaves it.

Shapes: B rows, N samples, T steps of some layer, C channels, F frames.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPEECH_RMS = 0.056  # of -25 dBFS, to which everything is normalised


def encode(encoder: Any, audio_BN: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Latents of waveforms whose length is a multiple of the hop, (B, F, C) float32."""
    first = encoder.conv_layers[0]
    hidden = _filter_bank(audio_BN, encoder.stem.conv.conv, first.conv.conv).to(dtype)
    hidden = _blocks(hidden, first.stage)
    for layer in encoder.conv_layers[1:]:
        hidden = _blocks(_down(hidden, layer.conv.conv), layer.stage)
    return _conv7(hidden, encoder.head.conv).float()


def decode(decoder: Any, latents_BFC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Waveforms of latents, (B, N) float32."""
    hidden = _blocks(_conv7(latents_BFC.to(dtype), decoder.stem.conv.conv), decoder.stem.stage)
    for layer in decoder.conv_layers[:-1]:
        hidden = _blocks(_up(hidden, layer.convtr.convtr), layer.stage)
    return _overlap_add(hidden, decoder.conv_layers[-1].convtr.convtr, decoder.head.conv)


def initialise(tokenizer: nn.Module, generator: torch.Generator) -> None:
    """Weights that start well: unit gain through every layer, speech lifted to about 1 and brought down again."""
    with torch.no_grad():
        for name, weight in tokenizer.named_parameters():
            if weight.ndim >= 2:
                fan = 2 * weight.shape[0] if "convtr" in name else weight[0].numel()
                weight.normal_(0, 1 / math.sqrt(fan), generator=generator)
            elif "gamma" in name:
                weight.fill_(0.3)
            elif name.endswith("bias"):
                weight.zero_()
        for name, weight in tokenizer.named_parameters():
            if name.endswith("stem.conv.conv.weight") and weight.shape[1] == 1:
                weight.mul_(1 / SPEECH_RMS)
            elif name.endswith("conv_layers.0.conv.conv.bias"):
                weight.normal_(0, 0.1, generator=generator)  # silence must not be exactly zero before a norm
            elif name.endswith("decoder.head.conv.weight"):
                weight.mul_(SPEECH_RMS)
            if name.endswith(("encoder.stem.conv.conv.bias", "decoder.conv_layers.2.convtr.convtr.bias")):
                weight.requires_grad_(False)
            if name == "stem.conv.conv.bias":
                weight.requires_grad_(False)


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    return F.rms_norm(hidden, (hidden.shape[-1],), norm.weight.to(hidden.dtype), norm.variance_epsilon)


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


def _blocks(hidden: Tensor, stage: nn.ModuleList) -> Tensor:
    for block in stage:
        hidden = hidden + _depthwise(_norm(hidden, block.norm), block.mixer.conv, block.gamma)
        inner = F.gelu(_linear(_norm(hidden, block.ffn_norm), block.ffn.linear1.weight, block.ffn.linear1.bias))
        scale = block.ffn_gamma
        hidden = hidden + _linear(inner, block.ffn.linear2.weight * scale[:, None], block.ffn.linear2.bias * scale)
    return hidden


def _depthwise(hidden: Tensor, conv: Any, gamma: Tensor) -> Tensor:
    """Causal depthwise convolution, its output scaled by gamma."""
    weight = (conv.weight[:, 0] * gamma[:, None]).to(hidden.dtype)
    size, steps = weight.shape[1], hidden.shape[1]
    padded = F.pad(hidden, (0, 0, size - 1, 0))
    out = (conv.bias * gamma).to(hidden.dtype).expand_as(hidden)
    for i in range(size):
        out = torch.addcmul(out, padded[:, i : i + steps], weight[:, i])
    return out


def _conv7(hidden: Tensor, conv: Any) -> Tensor:
    size = conv.kernel_size[0]
    rows, steps, channels = hidden.shape
    window = F.pad(hidden, (0, 0, size - 1, 0)).unfold(1, size, 1).reshape(rows, steps, channels * size)
    return _linear(window, conv.weight.reshape(conv.weight.shape[0], -1), conv.bias)


def _down(hidden: Tensor, conv: Any) -> Tensor:
    """Kernel of twice the stride: two products over blocks of one stride each."""
    stride = conv.stride[0]
    rows, steps, channels = hidden.shape
    block = F.pad(hidden, (0, 0, stride, 0)).reshape(rows, steps // stride + 1, stride * channels)
    weight = conv.weight.permute(0, 2, 1)
    size = weight.shape[0]
    left = _linear(block[:, :-1], weight[:, :stride].reshape(size, -1))
    return left + _linear(block[:, 1:], weight[:, stride:].reshape(size, -1), conv.bias)


def _up(hidden: Tensor, convtr: Any) -> Tensor:
    stride, (rows, steps, _) = convtr.stride[0], hidden.shape
    outputs = convtr.weight.shape[1]
    weight = convtr.weight.permute(2, 1, 0).reshape(2 * stride * outputs, -1)
    now, later = _linear(hidden, weight).split(stride * outputs, -1)
    out = now + F.pad(later, (0, 0, 1, 0))[:, :-1]
    return out.reshape(rows, steps * stride, outputs) + convtr.bias.to(hidden.dtype)


def _filter_bank(audio_BN: Tensor, stem: Any, conv: Any) -> Tensor:
    """Stem and first strided convolution in one: (B, N / stride, C)."""
    stride = conv.stride[0]
    kernel = F.conv_transpose1d(conv.weight.flip(-1), stem.weight.transpose(0, 1).flip(-1).transpose(0, 1))
    kernel = kernel[:, 0].flip(-1)  # (C, 2 * stride + 6)
    size = kernel.shape[1]
    window = F.pad(audio_BN, (size - stride, 0)).unfold(1, size, stride)
    return F.linear(window, kernel, conv.bias)


def _overlap_add(hidden: Tensor, convtr: Any, head: Any) -> Tensor:
    """Last transposed convolution and the head in one: (B, T * stride)."""
    stride, (rows, steps, _) = convtr.stride[0], hidden.shape
    kernel = F.conv1d(F.pad(convtr.weight, (6, 6)), head.weight)[:, 0]  # (C, 2 * stride + 6)
    kernel = F.pad(kernel, (0, 3 * stride - kernel.shape[1]))
    parts = F.linear(hidden.float(), kernel.t()).reshape(rows, steps, 3, stride)
    out = parts[:, :, 0]
    for late in (1, 2):
        out = out + F.pad(parts[:, :, late], (0, 0, late, 0))[:, :-late]
    return out.reshape(rows, steps * stride) + head.bias
