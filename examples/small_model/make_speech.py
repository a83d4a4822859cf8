"""Speak the sentences: FLAC files and one JSON Lines table for each split.

    python make_speech.py --folder RUN/speech --clips 200

Resumable: clips that are there are kept. Training clips of the held-out voices (`held.jsonl`) go only into fine-tuning.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import language
import soundfile
from voices import SAMPLE_RATE_HZ, SPEAKERS, say

Job = tuple[str, str, str, str]
"""Folder, speaker, name of the clip, text."""


def speak(job: Job) -> dict[str, Any]:
    """One clip; its row of the table."""
    folder, speaker, name, text = job
    path, note = Path(folder) / "wav" / f"{name}.flac", Path(folder) / "wav" / f"{name}.json"
    if note.exists():
        return json.loads(note.read_text())
    samples, phones = say(text, SPEAKERS[speaker])
    soundfile.write(path, samples, SAMPLE_RATE_HZ)
    row = {"audio": f"wav/{name}.flac", "text": text, "speaker": speaker}
    row |= {"duration": round(len(samples) / SAMPLE_RATE_HZ, 4), "phones": phones}
    note.write_text(json.dumps(row))
    return row


def jobs(folder: Path, clips: int) -> dict[str, list[Job]]:
    """What has to be spoken, by split."""
    test, dev = language.reserved()
    avoid = {*test, *dev}
    found: dict[str, list[Job]] = {"train": [], "dev": [], "test": [], "held": [], "held_test": []}
    for index, (name, speaker) in enumerate(SPEAKERS.items()):
        held = speaker.kind == "held"
        texts = language.sentences(80 if held else clips, seed=1000 + index, avoid=avoid)
        found["held" if held else "train"] += [
            (str(folder), name, f"{name}_{i:04d}", text) for i, text in enumerate(texts)
        ]
        if not held:
            dev_texts = [dev[(4 * index + i) % len(dev)] for i in range(4)]
            found["dev"] += [(str(folder), name, f"{name}_dev{i}", text) for i, text in enumerate(dev_texts)]
        number = 24 if held else 6
        texts = [test[(6 * index + i) % len(test)] for i in range(number)]
        split = "held_test" if held else "test"
        found[split] += [(str(folder), name, f"{name}_test{i:02d}", text) for i, text in enumerate(texts)]
    return found


def main() -> None:
    """Speak everything that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=200, help="training clips per voice")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    (arguments.folder / "wav").mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(arguments.workers) as pool:
        for split, todo in jobs(arguments.folder, arguments.clips).items():
            rows = list(pool.map(speak, todo, chunksize=8))
            table = arguments.folder / f"{split}.jsonl"
            table.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(split, len(rows), "clips", round(sum(row["duration"] for row in rows) / 60, 1), "minutes", flush=True)


if __name__ == "__main__":
    main()
