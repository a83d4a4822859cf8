"""What coarser arithmetic does to latents, computed on the processor.

tf32 is emulated: weights and inputs of every convolution and linear layer are rounded to 10 bits of mantissa (to
nearest, ties to even), products are summed in float32, as the matrix units of GPUs do. The same with bf16's 7 bits; and
bf16 throughout, as `--bf16` encoders would be. Relative error is the norm of the difference over the norm of the
float32 latents, over all frames, and in the worst frame.

    python -m benchmarks.encoder_precision
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import random_model, record
from benchmarks.encode_store import read_speech
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, normalize_rms
from vibevoice_finetune.base_model.load import SpeechEncoders, load_encoders, open_base_model
from vibevoice_finetune.latents.shards import Part

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
MANTISSA_BITS = {"tf32": 10, "bf16 inputs": 7}
FLOAT32_BITS = 23


def main() -> None:
    """Measure and write one result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["golden tied", "golden untied", "tiny", "1.5b"])
    parser.add_argument("--seconds", type=float, default=10.0, help="speech for the full-size encoders")
    parser.add_argument("--out", default=str(record.RESULTS), help="folder for the result")
    parser.add_argument("--name", default="encoder-precision-cpu", help="name of the result file")
    flags = parser.parse_args()
    results = []
    for model in flags.models:
        results += errors_of(model, flags.seconds)
    record.write(
        flags.name, {"benchmark": "encoder_precision", "seconds": flags.seconds, "errors": results}, Path(flags.out)
    )


def errors_of(model: str, seconds: float) -> list[record.Json]:
    """One line an arithmetic."""
    encoders = load(model, torch.float32)
    samples = round(seconds * SAMPLING_RATE_HZ) // encoders.hop_length * encoders.hop_length
    waveform_BN = torch.from_numpy(normalize_rms(read_speech(samples)))[None]
    reference = encode(encoders, waveform_BN)
    results: list[record.Json] = []
    for name, bits in MANTISSA_BITS.items():
        found = []
        for part in Part:
            with rounding(encoders.network(part), bits):
                found.append(encoders.encode(part, waveform_BN))
        results.append(compared(model, name, found, reference))
    assert all(torch.equal(*pair) for pair in zip(encode(encoders, waveform_BN), reference, strict=True))
    results.append(compared(model, "bf16", encode(load(model, torch.bfloat16), waveform_BN), reference))
    return results


def load(model: str, dtype: torch.dtype) -> SpeechEncoders:
    """A golden checkpoint's encoders, or random ones of a size."""
    device = torch.device("cpu")
    if model.startswith("golden"):
        return load_encoders(open_base_model(str(GOLDEN / model.removeprefix("golden ") / "checkpoint")), dtype, device)
    return random_model.encoders(random_model.config_of(model), dtype, device)  # type: ignore[arg-type]  # a size


def encode(encoders: SpeechEncoders, waveform_BN: Tensor) -> list[Tensor]:
    """Acoustic means and semantic features."""
    return [encoders.encode(part, waveform_BN) for part in Part]


def compared(model: str, arithmetic: str, found: list[Tensor], reference: list[Tensor]) -> record.Json:
    """Both encoders' errors."""
    result: record.Json = {"model": model, "arithmetic": arithmetic}
    for name, values, expected in zip(("acoustic", "semantic"), found, reference, strict=True):
        difference, size = (values - expected).double(), expected.double()
        worst = (difference.norm(dim=-1) / size.norm(dim=-1)).max()
        result |= {
            f"{name}_error": float(f"{difference.norm() / size.norm():.3g}"),
            f"{name}_worst_frame": float(f"{worst:.3g}"),
            f"{name}_std": float(f"{expected.std():.3g}"),
        }
    print(json.dumps(result), flush=True)
    return result


@contextmanager
def rounding(network: nn.Module, bits: int) -> Iterator[None]:
    """Within the context, products in an encoder have factors with so many bits of mantissa."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv1d | nn.Linear)]
    exact = [layer.weight.data for layer in layers]
    hooks = [layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], bits),)) for layer in layers]
    for layer in layers:
        layer.weight.data = rounded(layer.weight.data, bits)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, weight in zip(layers, exact, strict=True):
            layer.weight.data = weight


def rounded(values: Tensor, bits: int) -> Tensor:
    """Float32 with so many bits of mantissa, to nearest, ties to even.

    Adding half of what the last bit is worth, less one unless that bit is odd, carries into it where it must.
    """
    dropped = FLOAT32_BITS - bits
    whole = values.contiguous().view(torch.int32)
    last = (whole >> dropped) & 1
    return ((whole + (1 << (dropped - 1)) - 1 + last) >> dropped << dropped).view(torch.float32)


if __name__ == "__main__":
    main()
