"""Gates B, B' and C: what the model says with a voice prompt, how well it is understood, and whose voice it is.

    python judge_speech.py --model small --folder RUN/speech --split test
    python judge_speech.py --model small --folder RUN/speech --split held_test --voices hugo --adapter OUT/lora

For each clip of the split, its sentence is said with another clip of the same speaker as the voice prompt. `--forced`
judges teacher-forced sampling instead: conditions from the real clip, latents sampled by the head; its word error is
the fit alone, without the feedback of generation.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from judge_codec import error_rate, shown
from language import errors_of
from numpy.typing import NDArray
from voices import SAMPLE_RATE_HZ, SPEAKERS

from vibevoice_finetune.audio.source import load_audio, normalize_rms, pad_to_frames, parse_audio
from vibevoice_finetune.base_model import parts
from vibevoice_finetune.data.dataset import jitter
from vibevoice_finetune.data.prompt import Turn, training_sequence
from vibevoice_finetune.evaluation.recogniser import MOONSHINE, load_recogniser
from vibevoice_finetune.evaluation.speaker_similarity import Embedding, SpeakerEncoder, centroid, similarity
from vibevoice_finetune.evaluation.statistics import mean
from vibevoice_finetune.generation.generate import (
    GenerationRequest,
    ModelSource,
    SpeechModel,
    generate,
    load_speech_model,
)
from vibevoice_finetune.generation.loop import make_solver, sample_latents
from vibevoice_finetune.generation.prompts import encode_voice
from vibevoice_finetune.generation.scripts import script_from_text
from vibevoice_finetune.objective.embeddings import draw_latents

CENTROID_CLIPS = 4
Row = dict[str, Any]
Wave = NDArray[np.float32]


def drawn(model: torch.nn.Module, mean_FC: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A draw of a clip's latents, as training draws them."""
    return draw_latents(model, mean_FC, torch.from_numpy(jitter(rng, tuple(mean_FC.shape))))


def read_rows(table: Path) -> list[Row]:
    """Rows of a table, their audio as a path."""
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    return [row | {"audio": table.parent / row["audio"]} for row in rows]


def voice_centroids(folder: Path, embed: SpeakerEncoder) -> dict[str, Embedding]:
    """What each voice sounds like, from real clips that are in no test: training voices and held-out ones."""
    cache = folder / "centroids.npz"
    if cache.exists():
        return dict(np.load(cache))
    clips: dict[str, list[Path]] = defaultdict(list)
    for table in ("train", "held"):
        for row in read_rows(folder / f"{table}.jsonl"):
            clips[row["speaker"]].append(row["audio"])
    # The last clips: fine-tuning takes the first ones.
    found = {
        voice: centroid([embed(*_read(path)) for path in paths[-CENTROID_CLIPS:]]) for voice, paths in clips.items()
    }
    np.savez(cache, **found)
    return found


def _read(path: Path) -> tuple[Wave, int]:
    samples, rate_hz = soundfile.read(path, dtype="float32")
    return samples, rate_hz


@torch.no_grad()
def say_forced(speaker: SpeechModel, row: Row, prompt: Path | None, seed: int, steps: int) -> Wave:
    """Teacher-forced sampling of one clip: real context in, latents from the head, decoded."""
    model, rng = speaker.model, np.random.default_rng(seed)
    inner: Any = model.model
    hop = parts.facts(model.config).hop_length
    mean_FC = encode_voice(model, parse_audio(str(row["audio"]), None, "target"))
    wave = torch.from_numpy(
        pad_to_frames(normalize_rms(load_audio(parse_audio(str(row["audio"]), None, "target"))), hop)
    )
    semantic_FS = inner.semantic_tokenizer_encoder(wave[None, None]).latents[0]
    target_FC = drawn(model, mean_FC, rng)
    voices = [] if prompt is None else [drawn(model, encode_voice(model, parse_audio(str(prompt), None, "p")), rng)]
    turns = (Turn(0, row["text"]),)
    sequence = training_sequence(speaker.encode, speaker.special, turns, [len(v) for v in voices], len(target_FC))
    inputs_TD = parts.embed_tokens(model)(torch.from_numpy(sequence.token_ids))
    acoustic, from_semantic = parts.acoustic_connector(model), parts.semantic_connector(model)
    targets = torch.from_numpy(sequence.target_positions)
    inputs_TD[targets] = acoustic(target_FC) + from_semantic(semantic_FS)
    if voices:
        inputs_TD[torch.from_numpy(sequence.voice_positions)] = acoustic(torch.cat(voices))
    hidden = parts.language_model(model)(inputs_embeds=inputs_TD[None], use_cache=False).last_hidden_state[0]
    conditions_FD = hidden[torch.from_numpy(sequence.condition_positions)]
    noise = torch.from_numpy(rng.standard_normal(target_FC.shape, dtype=np.float32))
    sampled = sample_latents(
        *(parts.diffusion_head(model), make_solver(), conditions_FD, conditions_FD, noise),
        cfg_scale=1.0,
        num_steps=steps,
    )
    latents = sampled / parts.latent_scale(model).float() - parts.latent_bias(model).float()
    audio: Wave = inner.audio_tower.decode(latents[None]).audio.flatten().numpy()
    return audio


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--split", default="test")
    parser.add_argument("--voices", nargs="*", help="only these")
    parser.add_argument("--most", type=int, default=10**9, help="clips per voice")
    parser.add_argument("--cfg_scale", type=float, default=1.3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--no_prompt", action="store_true", help="no voice prompt")
    parser.add_argument("--forced", action="store_true", help="teacher-forced sampling")
    parser.add_argument("--out", type=Path, help="folder for the audio and results.jsonl")
    return parser.parse_args()


def choose(arguments: argparse.Namespace) -> tuple[list[Row], list[Path | None]]:
    """The clips to say again, and for each another clip of its speaker as the voice prompt."""
    by_voice: dict[str, list[Row]] = defaultdict(list)
    for row in read_rows(arguments.folder / f"{arguments.split}.jsonl"):
        voice = by_voice[row["speaker"]]
        if (not arguments.voices or row["speaker"] in arguments.voices) and len(voice) < arguments.most:
            voice.append(row)
    rows, prompts = list[Row](), list[Path | None]()
    for voice in by_voice.values():
        rows += voice
        prompts += [None if arguments.no_prompt else voice[(i + 1) % len(voice)]["audio"] for i in range(len(voice))]
    return rows, prompts


def speak_all(
    model: SpeechModel, rows: list[Row], prompts: list[Path | None], arguments: argparse.Namespace
) -> tuple[list[Wave], list[bool]]:
    """The audio of every row, and whether it ended by itself."""
    if arguments.forced:
        pairs = zip(rows, prompts, strict=True)
        return [say_forced(model, row, prompt, arguments.seed, arguments.steps) for row, prompt in pairs], [True] * len(
            rows
        )
    scripts = tuple(
        script_from_text(row["text"], () if prompt is None else (parse_audio(str(prompt), None, "prompt"),))
        for row, prompt in zip(rows, prompts, strict=True)
    )
    request = GenerationRequest(
        *(model, scripts, arguments.cfg_scale, arguments.steps, arguments.seed), max_length_sec=8.0, batch_size=16
    )
    speeches = generate(request).speeches
    return [speech.waveform_N for speech in speeches], [speech.ended for speech in speeches]


def main() -> None:
    """Judge, print, and write one JSON line per clip."""
    arguments = _arguments()
    torch.set_num_threads(1)
    recognise, embed = load_recogniser(MOONSHINE), SpeakerEncoder()
    centroids = voice_centroids(arguments.folder, embed)
    rows, prompts = choose(arguments)
    model = load_speech_model(
        ModelSource(arguments.model, adapter=arguments.adapter, dtype=torch.float32, device="cpu")
    )
    waves, ended = speak_all(model, rows, prompts, arguments)
    results = []
    for row, wave, done in zip(rows, waves, ended, strict=True):
        audio = wave if len(wave) > SAMPLE_RATE_HZ // 10 else np.zeros(SAMPLE_RATE_HZ, dtype=np.float32)
        heard, vector = recognise(audio, SAMPLE_RATE_HZ), embed(audio, SAMPLE_RATE_HZ)
        found: Row = {"speaker": row["speaker"], "text": row["text"], "heard": heard, "ended": done}
        found |= {"errors": errors_of(row["text"], heard), "seconds": len(wave) / SAMPLE_RATE_HZ}
        found["near"] = {voice: similarity(vector, middle) for voice, middle in centroids.items()}
        results.append(found)
    if arguments.out:
        _write(arguments.out, results, waves)
    report(results, arguments)


def report(results: list[Row], arguments: argparse.Namespace) -> None:
    """One line per voice, and the sum."""
    held = {speaker.name for speaker in SPEAKERS.values() if speaker.kind == "held"}
    voices = list(dict.fromkeys(row["speaker"] for row in results))
    for voice in [*voices, None]:
        rows = [row for row in results if voice in (row["speaker"], None)]
        own = [row["near"][row["speaker"]] for row in rows]
        # Among the training voices, and itself if it is held out.
        first = [
            max((v for v in row["near"] if v not in held or v == row["speaker"]), key=row["near"].get) == row["speaker"]
            for row in rows
        ]
        print(
            f"{voice or 'all':6s} n {len(rows)} word error {shown(error_rate([row['errors'] for row in rows]))} ended "
            f"{np.mean([row['ended'] for row in rows]):.3f} similarity {shown(mean(own))} "
            f"nearest is own {np.mean(first):.3f} seconds {np.mean([row['seconds'] for row in rows]):.2f}",
            flush=True,
        )
    print(
        f"model {arguments.model} adapter {arguments.adapter} split {arguments.split} cfg {arguments.cfg_scale} steps "
        f"{arguments.steps} seed {arguments.seed} prompt {not arguments.no_prompt} forced {arguments.forced}"
    )


def _write(folder: Path, results: list[Row], waves: list[Wave]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.jsonl").open("w") as file:
        for index, (row, wave) in enumerate(zip(results, waves, strict=True)):
            soundfile.write(folder / f"{row['speaker']}_{index:03d}.wav", wave, SAMPLE_RATE_HZ)
            errors = row["errors"]
            file.write(json.dumps(row | {"errors": [errors.edits, errors.total]}) + "\n")


if __name__ == "__main__":
    main()
