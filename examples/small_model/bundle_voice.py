"""The held-out voice that comes with the package, for the demo: 40 clips to train on, 12 to judge by.

python bundle_voice.py --folder RUN/speech --voice lena --out ../../src/vibevoice_finetune/demo/voice
"""

import argparse
import json
import shutil
from pathlib import Path

NUM_TRAIN, NUM_EVAL = 40, 12


def main() -> None:
    """Copy the clips and write both tables, as `train` and `evaluate` take them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--voice", default="lena")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    (arguments.out / arguments.voice).mkdir(parents=True, exist_ok=True)
    for source, target, count in (("held", "train", NUM_TRAIN), ("held_test", "eval", NUM_EVAL)):
        rows = [json.loads(line) for line in (arguments.folder / f"{source}.jsonl").read_text().splitlines()]
        with (arguments.out / f"{target}.jsonl").open("w") as file:
            for index, row in enumerate([row for row in rows if row["speaker"] == arguments.voice][:count]):
                name = f"{arguments.voice}/{target}_{index:02d}.flac"
                shutil.copy(arguments.folder / row["audio"], arguments.out / name)
                line = {"text": f"Speaker 0: {row['text']}", "audio": name, "speaker": arguments.voice}
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
