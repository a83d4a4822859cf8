"""Gate C: fine-tune the small model to a held-out voice with the project's own `train`, one recipe after another.

    python finetune.py --model small --folder RUN/speech --out RUN/finetune --recipe default --voices hugo nora

Evaluation rows are the voice's last clips; the sentences of `held_test.jsonl` are never trained on.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CLIPS = 40
COMMON = {
    "do_train": None,
    "per_device_train_batch_size": "8",
    "lr_scheduler_type": "cosine",
    "warmup_ratio": "0.1",
    "gradient_clipping": None,
    "ddpm_batch_mul": "4",
    "voice_prompt_drop_rate": "0.1",
    "logging_steps": "10",
    "eval_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "lora_r": "16",
    "lora_alpha": "32",
    "lora_dropout": "0.0",
    "ce_loss_weight": "0.05",
}
RECIPES: dict[str, dict[str, str | None]] = {
    "default": {"max_steps": "150", "learning_rate": "3e-4", "train_diffusion_head": "True"},
    "lora_only": {"max_steps": "150", "learning_rate": "1e-3"},
    "lora_head": {"max_steps": "150", "learning_rate": "1e-3", "lora_wrap_diffusion_head": "True"},
    "gentle": {"max_steps": "150", "learning_rate": "1e-4", "train_diffusion_head": "True"},
    "short": {"max_steps": "60", "learning_rate": "3e-4", "train_diffusion_head": "True"},
    "long": {"max_steps": "400", "learning_rate": "3e-4", "train_diffusion_head": "True"},
    "no_prompt": {
        "max_steps": "150",
        "learning_rate": "3e-4",
        "train_diffusion_head": "True",
        "voice_prompt_drop_rate": "1.0",
    },
    "mixed": {"max_steps": "150", "learning_rate": "3e-4", "train_diffusion_head": "True"},
}


def write_table(folder: Path, voice: str, path: Path, mixed: bool) -> None:
    """The rows to train on: 40 clips of the voice; mixed: and 10 of the base's own voices."""
    rows = [json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["speaker"] == voice][:CLIPS]
    if mixed:
        known = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        chosen += known[:: len(known) // 10][:10]
    with path.open("w") as file:
        for row in chosen:
            audio = str((folder / row["audio"]).resolve())
            file.write(
                json.dumps({"text": f"Speaker 0: {row['text']}", "audio": audio, "speaker": row["speaker"]}) + "\n"
            )


def main() -> None:
    """Train each voice with each recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", nargs="+", default=["default"], choices=sorted(RECIPES))
    parser.add_argument("--voices", nargs="+", default=["hugo", "nora", "ivan", "lena"])
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for recipe in arguments.recipe:
        for voice in arguments.voices:
            table = arguments.out / f"{recipe}_{voice}.jsonl"
            write_table(arguments.folder, voice, table, recipe == "mixed")
            flags = COMMON | RECIPES[recipe]
            words = [word for name, value in flags.items() for word in (f"--{name}", value) if word is not None]
            command = [sys.executable, "-m", "vibevoice_finetune", "train", "--model_name_or_path", arguments.model]
            command += ["--train_jsonl", str(table), "--output_dir", str(arguments.out / f"{recipe}_{voice}"), *words]
            began = time.monotonic()
            with (arguments.out / f"{recipe}_{voice}.log").open("w") as log:
                subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
            print(recipe, voice, f"{time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
