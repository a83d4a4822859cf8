"""Gate A: how well the codec's resynthesis of unseen sentences is understood, and how like the original it sounds.

python judge_codec.py --folder RUN/speech --codec RUN/decoder.pt --split test
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from clips import read_clips
from hearing import Recogniser, WordErrors, bootstrap_interval, word_errors
from language import HOMOPHONES
from likeness import SpeakerEncoder, mean_interval, similarity
from matrix_codec import decode, encode
from train_decoder import read_codec
from train_encoder import HOP
from voices import SAMPLE_RATE_HZ


def main() -> None:
    """Print one line per voice and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--most", type=int, default=10**9, help="clips per voice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recognise, embed, codec = Recogniser(), SpeakerEncoder(), read_codec(arguments.codec)
    by_voice: dict[str, list[tuple[WordErrors, WordErrors, float]]] = defaultdict(list)
    for clip in read_clips(arguments.folder / f"{arguments.split}.jsonl", HOP):
        if len(by_voice[clip.speaker]) >= arguments.most:
            continue
        with torch.no_grad():
            made = decode(codec.decoder, encode(codec.encoder, clip.wave()[None]))[0].numpy()
        real = clip.wave().numpy()
        before = word_errors(clip.text, recognise(real, SAMPLE_RATE_HZ), HOMOPHONES)
        after = word_errors(clip.text, recognise(made, SAMPLE_RATE_HZ), HOMOPHONES)
        alike = similarity(embed(real, SAMPLE_RATE_HZ), embed(made, SAMPLE_RATE_HZ))
        by_voice[clip.speaker].append((before, after, alike))
    for voice, rows in by_voice.items():
        print(f"{voice:6s}", _line(rows))
    every = [row for rows in by_voice.values() for row in rows]
    print("all   ", _line(every))
    for name, column in (("original", 0), ("resynthesis", 1)):
        print(name, "word error, 95 %:", bootstrap_interval([row[column] for row in every]))
    print("similarity, 95 %:", mean_interval([row[2] for row in every]))


def _line(rows: list[tuple[WordErrors, WordErrors, float]]) -> str:
    before = sum((row[0] for row in rows), WordErrors(0, 0)).rate
    after = sum((row[1] for row in rows), WordErrors(0, 0)).rate
    return f"n {len(rows)} original {before:.3f} resynthesis {after:.3f} similarity {np.mean([r[2] for r in rows]):.3f}"


if __name__ == "__main__":
    main()
