"""What every result file says besides its numbers: machine, versions, command and date.

In come a result's numbers, out goes one JSON file under `benchmarks/results/` (or a folder given by the caller).
Only the standard library and torch are needed, so that it works where little is installed.
"""

import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "bitsandbytes", "numpy", "triton")

# Dense bf16 rate of the matrix units by the vendors' data sheets, operations a second, by a part of the device's name.
DATASHEET_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}

Json = dict[str, object]


def machine() -> Json:
    """Processor, memory and, where there is one, the accelerator; nothing that names the computer or its owner.

    A load average above the benchmark's own threads says that others used the machine, and that times are too long.
    """
    found: Json = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        found["cuda"] = torch.version.cuda
    return found


def datasheet_bf16_flops() -> float | None:
    """The data sheet's rate of the GPU in use; None without a GPU, or for one that is not listed."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((rate for part, rate in DATASHEET_BF16.items() if part in name), None)


def versions() -> Json:
    """Versions of the packages that the numbers depend on; null where one is not installed."""
    return {name: _version(name) for name in PACKAGES}


def write(name: str, numbers: Mapping[str, object], folder: Path = RESULTS, command: str | None = None) -> Path:
    """Write one result file and say where it is.

    Args:
        name: the file's name without its ending.
        numbers: what was measured; its own keys come after machine, command, versions and date.
        folder: where to.
        command: what was run; None for this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command or own_command(),
        "machine": machine(),
        "versions": versions(),
        **numbers,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")
    return path


def own_command() -> str:
    """The command line that runs this benchmark again, from the repository's root; of absolute paths the last part."""
    module = Path(sys.argv[0]).stem
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return " ".join(["python", "-m", f"benchmarks.{module}", *words])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
