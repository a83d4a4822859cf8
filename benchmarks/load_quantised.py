"""What loading a model in 4 or 8 bits takes on the host, beside what it leaves there.

A random checkpoint of a real size (original layout, bf16, in files as on the Hub) is loaded by `load_for_training` in a
process of its own, whose memory is read from outside. The aim: never more than the result and one file. Resident memory
counts pages of the mapped files, too, which the kernel drops when it needs room; anonymous memory is the process's own.

    python -m benchmarks.load_quantised --size 1.5b
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.full_size_cpu import DISK_NEEDED
from benchmarks.watch import Watch
from vibevoice_finetune.base_model import random_model

CHILD = """
import json, sys
from pathlib import Path
import torch
from vibevoice_finetune.base_model.load import load_for_training, open_base_model
from vibevoice_finetune.base_model.quantize import keep_trainable, quantization_config
import bitsandbytes
bits = int(sys.argv[2])
checkpoint = open_base_model(sys.argv[1])
quantization = quantization_config(bits) if bits < 16 else None
warm = bitsandbytes.nn.Linear4bit(64, 64).to("cpu")
print("loading", flush=True)
sys.stdin.readline()
model = load_for_training(checkpoint, torch.bfloat16, "cpu", quantization)
if bits == 4:
    keep_trainable(model)
print("loaded", flush=True)
sys.stdin.readline()
sizes = {}
for module in model.modules():
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        sizes[tensor.data_ptr()] = tensor.nbytes
        state = getattr(tensor, "quant_state", None)
        extra = [getattr(tensor, "SCB", None)]
        if state is not None:
            extra += [state.absmax, state.code]
            if state.state2 is not None:
                extra += [state.state2.absmax, state.state2.code, state.offset]
        for other in extra:
            if isinstance(other, torch.Tensor):
                sizes[other.data_ptr()] = other.nbytes
print(json.dumps(sum(sizes.values())), flush=True)
"""


def main() -> None:
    """Write the checkpoint, load it, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=DISK_NEEDED, default="1.5b")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--files", type=int, help="into how many files; default as on the Hub: 3 at 1.5B, 10 at 7B")
    parser.add_argument("--checkpoint", help="a folder to load instead of a random checkpoint")
    parser.add_argument("--work_dir", help="where the temporary folder goes; default: the system's place")
    parser.add_argument("--out", default=str(record.RESULTS), help="folder for the result")
    parser.add_argument("--name", help="name of the result file")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vibevoice-load-", dir=flags.work_dir) as name:
        folder = Path(flags.checkpoint) if flags.checkpoint else write_checkpoint(Path(name), flags.size, flags.files)
        files = [path.stat().st_size for path in folder.glob("*.safetensors")]
        numbers: record.Json = {
            "benchmark": "load_quantised",
            "size": flags.size,
            "files": len(files),
            "checkpoint_gb": round(sum(files) / 1e9, 3),
            "largest_file_gb": round(max(files) / 1e9, 3),
            "loads": [load(folder, bits, max(files)) for bits in flags.bits],
        }
    record.write(flags.name or f"load-quantised-{flags.size}-cpu", numbers, Path(flags.out))


def write_checkpoint(folder: Path, size: str, files: int | None) -> Path:
    """A random checkpoint in as many files as the published one."""
    if shutil.disk_usage(folder).free < DISK_NEEDED[size]:
        sys.exit(f"{DISK_NEEDED[size] / 1e9:.0f} GB of disk are needed in {folder}; see --work_dir")
    random_model.MAX_SHARD_BYTES = 2 * 10**9  # files on the Hub are larger than those that we write
    count = files or {"tiny": 2, "1.5b": 3, "7b": 10}[size]
    return random_model.write_random_model(folder / "model", size, torch.bfloat16, shards=count)  # type: ignore[arg-type]  # one of the choices


def load(folder: Path, bits: int, largest_file: int) -> record.Json:
    """Load in a process of its own and say what it took, above what it had before."""
    command = [sys.executable, "-c", CHILD, str(folder), str(bits)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        watch = Watch(child.pid, every_sec=0.005)
        watch.enter("start")
        for phase in ("loading", "loaded"):
            assert child.stdout.readline().strip() == phase
            if phase == "loading":
                watch.enter("before")
                time.sleep(0.3)
                watch.enter("load")
            else:
                watch.enter("after")
                time.sleep(0.3)
            child.stdin.write("\n")
            child.stdin.flush()
        result = json.loads(child.stdout.readline())
        watch.stop()
    before, peak, after = (watch.peaks[phase] for phase in ("before", "load", "after"))
    anonymous = peak.anonymous - before.anonymous
    found: record.Json = {
        "bits": bits,
        "seconds": round(watch.began_sec["after"] - watch.began_sec["load"], 1),
        "result_gb": round(result / 1e9, 3),
        "result_and_file_gb": round((result + largest_file) / 1e9, 3),
        "peak_anonymous_gb": round(anonymous / 1e9, 3),
        "peak_resident_gb": round((peak.resident - before.resident) / 1e9, 3),
        "left_anonymous_gb": round((after.anonymous - before.anonymous) / 1e9, 3),
        "left_resident_gb": round((after.resident - before.resident) / 1e9, 3),
        "before_resident_gb": round(before.resident / 1e9, 3),
        "peak_resident_whole_gb": round(peak.resident / 1e9, 3),
    }
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
