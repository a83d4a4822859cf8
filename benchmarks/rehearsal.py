"""Whether rehearsal keeps what a model knew: the small model learns new words, with and without it.

    python -m benchmarks.rehearsal --out RUN

The small model knows 87 words. It is taught sentences with others, spoken by flite, once from these alone and once with
a fifth of its steps from what it said before (`rehearse`). Then the base model and both results say sentences of the
old words and of the new ones that none of them was trained on, and a recogniser counts wrong words.
"""

import argparse
import itertools
import json
import random
import subprocess
from pathlib import Path

from vibevoice_finetune.audio.source import parse_audio
from vibevoice_finetune.commands.table import main as run
from vibevoice_finetune.data.rows import Row
from vibevoice_finetune.evaluation.recogniser import load_recogniser
from vibevoice_finetune.evaluation.speak import Voice, say_all
from vibevoice_finetune.evaluation.words import Errors, word_errors
from vibevoice_finetune.generation.generate import GenerationRequest, ModelSource
from vibevoice_finetune.generation.scripts import script_from_text

OLD = (
    "the {colour} {thing} is near the {place}",
    ("red", "blue", "green", "yellow", "orange", "purple"),
    ("book", "door", "hammer", "picture", "basket", "guitar", "piano", "apple"),
    ("window", "garden", "kitchen", "station", "office", "museum"),
)
NEW = (
    "a {colour} {thing} ran over my {place}",
    ("silver", "golden", "pink", "white", "grey", "striped"),
    ("tiger", "monkey", "chicken", "elephant", "spider", "dolphin", "camel", "rabbit"),
    ("pillow", "blanket", "sandwich", "shoulder", "bicycle", "notebook"),
)
VOICES = ("rms", "slt")
FLAGS = (
    "--do_train --max_steps {steps} --per_device_train_batch_size 8 --learning_rate 3e-4 --lora_r 16 --lora_alpha 32 "
    "--lora_dropout 0 --train_diffusion_head True --ddpm_batch_mul 4 --ce_loss_weight 0.05 --lr_scheduler_type cosine "
    "--warmup_ratio 0.1 --gradient_clipping --voice_prompt_drop_rate 0.1 --save_strategy no --report_to none "
    "--use_cpu True"
)


def sentences(language: tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], seed: int) -> list[str]:
    """All sentences of a language, shuffled."""
    pattern, *words = language
    found = [
        pattern.format(colour=colour, thing=thing, place=place) for colour, thing, place in itertools.product(*words)
    ]
    random.Random(seed).shuffle(found)
    return found


def spoken(texts: list[str], folder: Path) -> Path:
    """The texts as a data set, spoken by flite's voices in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, text in enumerate(texts):
        voice = VOICES[number % len(VOICES)]
        path = folder / f"{number}.wav"
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True)
        lines.append(json.dumps({"text": f"Speaker 0: {text}", "audio": path.name, "speaker": voice}) + "\n")
    (folder / "train.jsonl").write_text("".join(lines))
    return folder / "train.jsonl"


def wrong_words(
    model: str, voices: list[Voice], texts: list[str], prompts: list[Path], folder: Path
) -> dict[str, float]:
    """The share of wrong words of each model."""
    recogniser = load_recogniser("moonshine")
    recordings = [parse_audio(str(path), None, "prompt") for path in prompts]
    rows = [
        Row(f"Speaker 0: {text}", recordings[at % 2], (recordings[at % 2],), None, text)
        for at, text in enumerate(texts)
    ]
    source = ModelSource(model, device="cpu")
    settings = GenerationRequest(source, (script_from_text("settings"),), max_length_sec=8.0)
    errors = {voice.name: Errors(0, 0, 0, 0) for voice in voices}
    for said in say_all(source, voices, rows, [1], folder, settings):
        errors[said.voice] += word_errors(texts[said.row], recogniser(said.samples(), 24_000))
    return {name: round(found.rate, 3) for name, found in errors.items()}


def main() -> None:
    """Train twice, judge three models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--clips", type=int, default=40, help="of the new words, and as many of the old for rehearsal")
    parser.add_argument("--test", type=int, default=20, help="sentences of each kind")
    flags = parser.parse_args()
    out, base = flags.out, ["--model_name_or_path", flags.model]
    old, new = sentences(OLD, 1), sentences(NEW, 2)
    learned = spoken(new[: flags.clips], out / "new")
    spoken(old[-2:], out / "voices")
    (out / "texts.txt").write_text("\n".join(old[: flags.clips]) + "\n")
    rehearsed = out / "rehearsal" / "train.jsonl"
    if not rehearsed.exists():
        words = [
            "--script",
            str(out / "texts.txt"),
            "--voices",
            str(out / "voices"),
            "--output",
            str(out / "rehearsal"),
        ]
        assert run(["rehearse", *base, *words, "--max_length_sec", "8", "--device", "cpu"]) == 0
    training = [*FLAGS.format(steps=flags.steps).split(), "--latents_dir", str(out / "latents")]
    for name, data in (("alone", [learned]), ("rehearsed", [learned, rehearsed])):
        if not (out / name / "lora").exists():
            mix = ["--mix", "0.8,0.2"] if len(data) > 1 else []
            words = ["--train_jsonl", *map(str, data), *mix, "--output_dir", str(out / name), *training]
            assert run(["train", *base, *words]) == 0
    voices = [Voice("base"), *(Voice(name, str(out / name / "lora")) for name in ("alone", "rehearsed"))]
    prompts = [out / "voices" / "0.wav", out / "voices" / "1.wav"]
    found = {
        kind: wrong_words(flags.model, voices, texts[flags.clips : flags.clips + flags.test], prompts, out / "takes")
        for kind, texts in (("old words", old), ("new words", new))
    }
    (out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
