"""How fast audio becomes latents, and how exact in each arithmetic.

Real-size encoders with random weights encode speech (the bundled clips, laid end to end): first alone, in float32, tf32
and bf16, with the error of the latents against float32; then the whole way from files to the latent store. Last, what a
training step costs with a filled store, and if it had to encode its own clips.

    python -m benchmarks.encode_store --seconds 600
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks import random_model, record
from benchmarks.ceiling import has_bf16
from benchmarks.random_model import RandomEncoders
from benchmarks.train_step import Case, attention, measured
from vibevoice_finetune.audio.decode import Floats
from vibevoice_finetune.audio.source import SAMPLING_RATE_HZ, load_audio, parse_audio, write_audio
from vibevoice_finetune.errors import DataError
from vibevoice_finetune.latents.arithmetic import Arithmetic, fastest
from vibevoice_finetune.latents.fill import BATCH_SEC, fill
from vibevoice_finetune.latents.shards import Part
from vibevoice_finetune.latents.store import LatentStore, Segment

SPEECH = Path(__file__).parents[1] / "src" / "vibevoice_finetune" / "demo" / "speech" / "speech.jsonl"


WAYS = {
    "float32": (torch.float32, Arithmetic.FLOAT32),
    "tf32": (torch.float32, Arithmetic.TF32),
    "bf16": (torch.bfloat16, Arithmetic.FLOAT32),
}
"""Ways to compute: the dtype of weights and activations, and whether matrix units may round float32 to tf32."""


def main() -> None:
    """Measure and write one result file."""
    flags = parse_flags()
    device = torch.device(flags.device)
    speech_N = read_speech(round(flags.seconds * SAMPLING_RATE_HZ))
    numbers: record.Json = {"benchmark": "encode_store", "size": flags.size, "clip_sec": flags.clip_sec}
    numbers |= encoders_alone(flags, device, speech_N)
    numbers |= whole_way(flags, device, speech_N)
    numbers |= {"small_model_step": step_costs(flags, device, numbers)}
    record.write(flags.name or f"encode-store-{flags.size}-{device.type}", numbers, Path(flags.out))
    print(json.dumps({key: value for key, value in numbers.items() if key != "benchmark"}))


def parse_flags() -> argparse.Namespace:
    """The benchmark's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["tiny", "1.5b", "7b"], default="1.5b", help="both real sizes are the same")
    parser.add_argument("--seconds", type=float, default=600.0, help="audio that is encoded")
    parser.add_argument("--clip_sec", type=float, default=10.0)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default=str(record.RESULTS), help="folder for the result")
    parser.add_argument("--name", help="name of the result file")
    return parser.parse_args()


def encoders_alone(flags: argparse.Namespace, device: torch.device, speech_N: Floats) -> record.Json:
    """Throughput and error of each arithmetic, over batches as `fill` makes them."""
    rows = max(1, int(BATCH_SEC / flags.clip_sec))
    clip = int(flags.clip_sec * SAMPLING_RATE_HZ) // 3200 * 3200
    whole = min(rows * clip, len(speech_N) // clip * clip)
    batch_BN = torch.from_numpy(speech_N[:whole].reshape(-1, clip))
    reference: list[Tensor] = []
    results: list[record.Json] = []
    for way in ("float32", *(("tf32",) if device.type == "cuda" else ()), *(("bf16",) if has_bf16(device) else ())):
        dtype, arithmetic = WAYS[way]
        encoders = random_model.encoders(random_model.config_of(flags.size), dtype, device, arithmetic)
        latents = encode(encoders, batch_BN)
        seconds = sum(timed(encoders, part, batch_BN, device, 1 if device.type == "cpu" else 5) for part in Part)
        reference = reference or latents
        results.append(
            {
                "arithmetic": way,
                "audio_sec_per_sec": round(batch_BN.numel() / SAMPLING_RATE_HZ / seconds, 2),
                "acoustic_error": relative_error(latents[0], reference[0]),
                "semantic_error": relative_error(latents[1], reference[1]),
                "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
            }
        )
        print(results[-1], flush=True)
        del encoders
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return {"batch_sec": batch_BN.numel() / SAMPLING_RATE_HZ, "encoders": results}


def encode(encoders: RandomEncoders, batch_BN: Tensor) -> list[Tensor]:
    """Acoustic means and semantic features, on the host."""
    return [encoders.encode(part, batch_BN).cpu() for part in Part]


def timed(encoders: RandomEncoders, part: Part, batch_BN: Tensor, device: torch.device, repeats: int) -> float:
    """Seconds of one batch; the first one loads the encoder and warms up."""
    encoders.encode(part, batch_BN)
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        encoders.encode(part, batch_BN).cpu()
    return (time.perf_counter() - began) / repeats


def relative_error(values: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm; not a number never passes for exact."""
    error = ((values.double() - reference.double()).norm() / reference.double().norm()).item()
    assert math.isfinite(error)
    return float(f"{error:.3g}")


def whole_way(flags: argparse.Namespace, device: torch.device, speech_N: Floats) -> record.Json:
    """Files to latent store, in the device's own arithmetic: hashing, decoding, encoding, writing; then all again."""
    arithmetic = fastest(device)
    encoders = random_model.encoders(random_model.config_of(flags.size), torch.float32, device, arithmetic)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        segments = [
            Segment(parse_audio(path, None, path.name), normalize=True, cut=None, semantic=True)
            for path in write_clips(folder / "clips", speech_N, flags.clip_sec)
        ]
        store = LatentStore(folder / "store", encoders.fingerprint, encoders.acoustic_dim, encoders.semantic_dim)
        report = fill(store, segments, encoders, refuse)
        again = fill(store, segments, encoders, refuse)
    assert report.encoded == len(segments)
    assert again.encoded == 0
    return {
        "fill": {
            "arithmetic": str(arithmetic),
            "clips": len(segments),
            "audio_sec": round(report.audio_sec, 1),
            "seconds": round(report.seconds, 2),
            "audio_sec_per_sec": round(report.rate, 2),
            "filled_store_sec": round(again.seconds, 3),
        }
    }


def step_costs(flags: argparse.Namespace, device: torch.device, numbers: record.Json) -> record.Json:
    """A training step of the small language model with a filled store, and with its clips encoded within the step."""
    dtype = torch.bfloat16 if has_bf16(device) else torch.float32
    case = Case("tiny", "full", rows=4, clip_sec=flags.clip_sec, draws=4, dtype=dtype, attention=attention(device))
    step_sec = cast(float, measured(case, device, num_steps=5, ceiling=1.0)["step_sec"])
    rate = cast(dict[str, float], numbers["fill"])["audio_sec_per_sec"]
    encoding_sec = case.rows * case.clip_sec / rate
    return {
        "with_filled_store_sec": step_sec,
        "encoding_sec": round(encoding_sec, 3),
        "times_faster": round((step_sec + encoding_sec) / step_sec, 1),
    }


def write_clips(folder: Path, speech_N: Floats, clip_sec: float) -> list[Path]:
    """Cut the speech into files; each has its own audio."""
    folder.mkdir()
    length = int(clip_sec * SAMPLING_RATE_HZ)
    paths = []
    for number, start in enumerate(range(0, len(speech_N) - length + 1, length)):
        path = folder / f"{number:05d}.flac"
        write_audio(path, speech_N[start : start + length], SAMPLING_RATE_HZ)
        paths.append(path)
    return paths


def read_speech(num_samples: int) -> Floats:
    """The bundled clips end to end, over again at another loudness until there are enough samples."""
    rows = [json.loads(line) for line in SPEECH.read_text(encoding="utf-8").splitlines()]
    clips = [load_audio(parse_audio(row["audio"], SPEECH.parent, row["audio"])) for row in rows]
    speech_N = np.concatenate(clips)
    repeats = -(-num_samples // len(speech_N))
    louder = [speech_N * (0.5 + 0.5 * (number + 1) / repeats) for number in range(repeats)]
    return np.concatenate(louder)[:num_samples].astype(np.float32)


def refuse(error: DataError, reason: str) -> None:
    """No clip of this benchmark is bad."""
    raise AssertionError(reason) from error


if __name__ == "__main__":
    main()
