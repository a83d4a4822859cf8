"""The results of one machine in one file, and the table that a person looks at first.

python -m benchmarks.combine PARTS OUT
"""

import json
import re
import sys
from pathlib import Path

from benchmarks import record

COLUMNS = ("tokens_per_sec", "audio_sec_per_sec", "mfu_of_matmul", "mfu_of_datasheet", "peak_gb", "estimate_gb")


def main() -> None:
    """Read every JSON file of a folder, write `gpu-NAME.json` into another, print a summary."""
    parts, out = Path(sys.argv[1]), Path(sys.argv[2])
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(parts.glob("*.json"))}
    stages = (parts / "stages.txt").read_text(encoding="utf-8").splitlines()
    machine = record.machine()
    name = re.sub(r"[^a-z0-9]+", "-", str(machine.get("gpu", "dry-run")).lower()).strip("-")
    common = {"date", "machine", "versions"}
    results = {stem: {key: value for key, value in part.items() if key not in common} for stem, part in found.items()}
    record.write(f"gpu-{name}", {"stages": stages, "parts": results}, out, command="benchmarks/gpu.sh")
    print("\n".join(stages))
    for part in results.values():
        for line in summary(part):
            print(line)


def summary(part: record.Json) -> list[str]:
    """A line for each thing that was measured."""
    if part["benchmark"] == "train_step":
        results = part["results"]
        assert isinstance(results, list)
        return [train_line(result) for result in results]
    if part["benchmark"] == "check_cuda":
        checks = part["checks"]
        assert isinstance(checks, list)
        return [f"checks: {part['failed']} of {len(checks)} failed"]
    return [
        f"{part['benchmark']}: {json.dumps({key: part[key] for key in part if key not in ('benchmark', 'command')})}"
    ]


def train_line(result: record.Json) -> str:
    """One recipe of a training step."""
    name = f"{result['size']:5} {result['recipe']:24}"
    if "not_run" in result:
        return f"{name} not run: {result['not_run']}; estimate {result['estimate_gb']} GB"
    values = "  ".join(f"{column} {result[column]}" for column in COLUMNS)
    error = measured_error(result)
    return f"{name} {values}  estimate off by {error:+.0%}"


def measured_error(result: record.Json) -> float:
    """How far the estimate is from the peak, as a share of it."""
    peak, estimate = result["peak_gb"], result["estimate_gb"]
    assert isinstance(peak, float)
    assert isinstance(estimate, float)
    return estimate / peak - 1 if peak else 0.0


if __name__ == "__main__":
    main()
