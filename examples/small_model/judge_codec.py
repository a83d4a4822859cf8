"""Gate A: how well the codec's resynthesis of unseen sentences is understood, and how like the original it sounds.

python judge_codec.py --folder RUN/speech --codec RUN/decoder.pt --split test
"""

import argparse
from collections import defaultdict
from pathlib import Path

import torch
from clips import read_clips
from language import errors_of
from matrix_codec import decode, encode
from train_decoder import read_codec
from train_encoder import HOP
from voices import SAMPLE_RATE_HZ

from vibevoice_finetune.evaluation.recogniser import MOONSHINE, load_recogniser
from vibevoice_finetune.evaluation.speaker_similarity import SpeakerEncoder, similarity
from vibevoice_finetune.evaluation.statistics import Interval, mean, ratio
from vibevoice_finetune.evaluation.words import Errors


def main() -> None:
    """Print one line per voice and the sum."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--most", type=int, default=10**9, help="clips per voice")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recognise, embed, codec = load_recogniser(MOONSHINE), SpeakerEncoder(), read_codec(arguments.codec)
    by_voice: dict[str, list[tuple[Errors, Errors, float]]] = defaultdict(list)
    for clip in read_clips(arguments.folder / f"{arguments.split}.jsonl", HOP):
        if len(by_voice[clip.speaker]) >= arguments.most:
            continue
        with torch.no_grad():
            made = decode(codec.decoder, encode(codec.encoder, clip.wave()[None]))[0].numpy()
        real = clip.wave().numpy()
        before = errors_of(clip.text, recognise(real, SAMPLE_RATE_HZ))
        after = errors_of(clip.text, recognise(made, SAMPLE_RATE_HZ))
        alike = similarity(embed(real, SAMPLE_RATE_HZ), embed(made, SAMPLE_RATE_HZ))
        by_voice[clip.speaker].append((before, after, alike))
    by_voice["all"] = [row for rows in by_voice.values() for row in rows]
    for voice, rows in by_voice.items():
        figures = [shown(error_rate([row[column] for row in rows])) for column in (0, 1)]
        alike = shown(mean([row[2] for row in rows]))
        print(f"{voice:6s} n {len(rows)} original {figures[0]} resynthesis {figures[1]} similarity {alike}")


def error_rate(errors: list[Errors]) -> Interval:
    """Word error of several sentences."""
    return ratio([error.edits for error in errors], [error.total for error in errors])


def shown(interval: Interval) -> str:
    """A figure and its 95 % interval."""
    return f"{interval.value:.3f} ({interval.low:.3f}-{interval.high:.3f})"


if __name__ == "__main__":
    main()
