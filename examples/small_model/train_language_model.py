"""The language model, the connectors and the diffusion head, with the project's own objective and data set.

What it has beside `vibevoice-finetune train`: everything but the speech tokenizers is trained from nothing; a linear
phone head on the conditions (dropped afterwards) teaches what is to be said before the diffusion loss could; and part
of the rows hear the semantic features of decoded, noisy latents, as generation does.
"""

import argparse
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from assemble import make_config, write_folder, write_tokenizer
from clips import Clip, read_clips
from matrix_codec import encode
from padded_attention import use_padded_attention
from state import Meter, cosine_lr, load_state, need_state, save_state, set_lr
from torch import Tensor, nn
from train_decoder import latents_of, read_codec
from train_encoder import HOP, VAE_STD
from train_semantic import cross_entropy, decoded_again, phone_mixture, phone_names, read_semantic
from transformers import VibeVoiceForConditionalGeneration

from vibevoice_finetune.base_model.tokenizer import special_tokens
from vibevoice_finetune.data.collate import Batch, collate
from vibevoice_finetune.data.dataset import Draw, DrawSettings, SpeechDataset
from vibevoice_finetune.data.prompt import Turn
from vibevoice_finetune.data.voice_prompts import PlannedRow, PromptSource
from vibevoice_finetune.latents.store import LatentStore
from vibevoice_finetune.objective.objective import Objective

CE_WEIGHT, TEXT_WEIGHT, PHONE_WEIGHT = 0.05, 0.3, 0.3
DECODED_SHARE = 0.65


class Store:
    """Latents in memory; `read` hears the decoded variant of a training clip now and then."""

    def __init__(self, seed: int) -> None:
        self.acoustic: dict[str, np.ndarray] = {}
        self.semantic: dict[str, list[np.ndarray]] = {}
        self.rng = np.random.default_rng(seed)

    def read(self, key: str) -> Any:
        """Acoustic latents and semantic features of a clip."""
        kinds = self.semantic[key]
        decoded = len(kinds) > 1 and self.rng.random() < DECODED_SHARE
        features = kinds[int(self.rng.integers(1, len(kinds)))] if decoded else kinds[0]
        return SimpleNamespace(acoustic_FC=self.acoustic[key], semantic_FS=features)


class PhoneObjective(Objective):
    """The project's objective, which also keeps the conditions for the phone head."""

    conditions_FD: Tensor

    def diffusion_sum(self, condition_FD: Tensor, clean_FC: Tensor, batch: Batch) -> Tensor:
        """As the objective's own."""
        self.conditions_FD = condition_FD
        return super().diffusion_sum(condition_FD, clean_FC, batch)


def fill(
    store: Store, clips: list[Clip], codec: Any, semantic: Any, decoded_draws: int, cache: Path | None = None
) -> None:
    """Encode the clips, as they are and decoded again."""
    all_latents = latents_of(codec.encoder, clips, cache)
    with torch.no_grad():
        for clip, latents in zip(clips, all_latents, strict=True):
            store.acoustic[clip.name] = latents.numpy()
            store.semantic[clip.name] = [encode(semantic, clip.wave()[None], torch.bfloat16)[0].numpy()]
        for draw in range(decoded_draws):
            for clip, audio in zip(clips, decoded_again(codec, all_latents, 100 + draw, VAE_STD), strict=True):
                store.semantic[clip.name].append(encode(semantic, audio.float()[None], torch.bfloat16)[0].numpy())


def plan(clips: list[Clip]) -> list[PlannedRow]:
    """Rows whose voice prompt is another clip of the same speaker."""
    voices: dict[str, list[tuple[str, ...]]] = {}
    place = {}
    for clip in clips:
        pool = voices.setdefault(clip.speaker, [])
        place[clip.name] = len(pool)
        pool.append((clip.name,))
    choices = {speaker: tuple(pool) for speaker, pool in voices.items()}
    return [
        PlannedRow(
            where=clip.name,
            turns=(Turn(0, clip.text),),
            target_key=clip.name,
            target_frames=len(clip.audio_N) // HOP,
            prompt_choices=choices[clip.speaker],
            own_choice=place[clip.name],
            num_tokens=0,
            speaker=clip.speaker,
            source=PromptSource.SPEAKER,
        )
        for clip in clips
    ]


def set_latent_scale(inner: Any, store: Store, clips: list[Clip]) -> None:
    """Bias and scale that bring sampled latents to mean 0 and standard deviation 1."""
    values = np.concatenate([store.acoustic[clip.name] for clip in clips])
    scale = 1 / np.sqrt(values.var() + VAE_STD**2)
    inner.latent_bias_factor.data.fill_(float(-values.mean()))
    inner.latent_scaling_factor.data.fill_(float(scale))
    print("latents: mean", values.mean(), "std", values.std(), "scale", scale, "frames", len(values), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--semantic", type=Path, required=True)
    parser.add_argument("--latents", type=Path, help="where the decoder's training keeps its latents")
    parser.add_argument("--out", type=Path, required=True, help="the state, made or resumed")
    parser.add_argument("--model", type=Path, required=True, help="the model folder, written again and again")
    parser.add_argument("--steps", type=int, default=6400)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--draws", type=int, default=3, help="K, noise draws per frame")
    parser.add_argument("--decoded_draws", type=int, default=1, help="variants of each clip heard from the codec")
    return parser.parse_args()


def main() -> None:
    """Train, or go on training; the model folder is written at every saved state."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    phones = arguments.folder / "phones.json"
    clips = read_clips(arguments.folder / "train.jsonl", HOP, phones)
    dev = read_clips(arguments.folder / "dev.jsonl", HOP, phones)
    codec, semantic = read_codec(arguments.codec), read_semantic(arguments.semantic)
    tokenizer = write_tokenizer(arguments.model)
    special = special_tokens(tokenizer)
    config = make_config(len(tokenizer), *(need_state(p)["config"] for p in (arguments.codec, arguments.semantic)))
    model = VibeVoiceForConditionalGeneration(config)
    state = load_state(arguments.out)
    if state is not None:
        model.load_state_dict(state["model"])
    model.model.audio_tower.load_state_dict(codec.state_dict())
    model.model.semantic_tokenizer_encoder.load_state_dict(semantic.state_dict())
    store, dev_store = Store(seed=0 if state is None else state["step"]), Store(seed=0)
    fill(store, clips, codec, semantic, arguments.decoded_draws, arguments.latents)
    fill(dev_store, dev, codec, semantic, 0)
    if state is None:
        set_latent_scale(model.model, store, clips)
    names = phone_names(clips)
    shares = {clip.name: phone_mixture(clip, names) for clip in [*clips, *dev]}
    encode_text = partial(tokenizer.encode, add_special_tokens=False)

    def rows(of: list[Clip], held: Store, settings: DrawSettings) -> SpeechDataset:
        return SpeechDataset(plan(of), cast(LatentStore, held), encode_text, special, settings)

    data = rows(clips, store, DrawSettings(1, arguments.draws, 1000, 0.1, 0.1))
    dev_data = rows(dev, dev_store, DrawSettings(1, 4, 1000, evaluation=True))
    _Run(arguments, PhoneObjective(model, special), shares, len(names), data, dev_data).train(state, config)


class _Run:
    """The training loop and what it needs."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        objective: PhoneObjective,
        shares: dict[str, Tensor],
        num_phones: int,
        data: SpeechDataset,
        dev: SpeechDataset,
    ) -> None:
        self.arguments, self.objective, self.shares, self.data, self.dev = arguments, objective, shares, data, dev
        self.model: Any = objective.model
        model = self.model
        inner = model.model
        trained = (inner.language_model, inner.diffusion_head, inner.multi_modal_projector, inner.semantic_connector)
        model.requires_grad_(False)
        for part in trained:
            part.requires_grad_(True)
        sizes = [sum(weight.numel() for weight in part.parameters()) for part in (*trained, model)]
        print("parameters: language model, head, connectors, all:", sizes, flush=True)
        use_padded_attention(inner.language_model)
        self.phone_head = nn.Linear(inner.language_model.config.hidden_size, num_phones)
        self.weights = [weight for part in (*trained, self.phone_head) for weight in part.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.weights, arguments.lr, betas=(0.9, 0.95), weight_decay=0.02, foreach=True
        )

    def losses(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and its parts."""
        with torch.autocast("cpu", torch.bfloat16):
            sums = self.objective(batch)
        counts = batch["counts"]
        diffusion = sums["diffusion"] / counts.diffusion
        text, control = sums["text"] / max(1, counts.text), sums["control"] / max(1, counts.control)
        share = torch.cat([self.shares[name] for name in batch["rows"]])
        logits = self.phone_head(self.objective.conditions_FD.float())
        phone = cross_entropy(logits, share)
        right = (logits.argmax(-1) == share.argmax(-1)).float().mean()
        stops = sums["stop_right"] / sums["stop_total"].clamp(min=1)
        values = {
            "diffusion": diffusion,
            "phone": phone,
            "right": right,
            "text": text,
            "control": control,
            "stop": stops,
        }
        loss = diffusion + CE_WEIGHT * (TEXT_WEIGHT * text + control) + PHONE_WEIGHT * phone
        return loss, {name: float(value) for name, value in values.items()}

    def train(self, state: dict[str, Any] | None, config: Any) -> None:
        """Until the last step."""
        arguments, step, epoch, order = self.arguments, 0, 0, list[int]()
        if state is not None:
            self.phone_head.load_state_dict(state["phone_head"])
            self.optimizer.load_state_dict(state["optimizer"])
            step, epoch = state["step"], state["epoch"] + 1
        meter = Meter()
        while step < arguments.steps:
            if len(order) < arguments.batch:
                order = np.random.default_rng(epoch).permutation(len(self.data)).tolist()
                epoch += 1
            lr = cosine_lr(step, arguments.steps, arguments.lr)
            set_lr(self.optimizer, lr)
            batch = collate([self.data[Draw(epoch, order.pop())] for _ in range(arguments.batch)])
            loss, values = self.losses(batch)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            step += 1
            meter.add(**values, norm=float(norm))
            if step % 25 == 0:
                print(meter.line(step, lr), flush=True)
            if step % 200 == 0 or step == arguments.steps:
                self.judge()
                kept = {"model": self.model.state_dict(), "phone_head": self.phone_head.state_dict()}
                save_state(
                    arguments.out, kept | {"optimizer": self.optimizer.state_dict(), "step": step, "epoch": epoch}
                )
                write_folder(arguments.model, self.model, config)

    @torch.no_grad()
    def judge(self) -> None:
        """Losses on the development sentences, with fixed draws."""
        _, values = self.losses(collate([self.dev[Draw(0, row)] for row in range(len(self.dev))]))
        print("  dev", " ".join(f"{name} {value:.4f}" for name, value in values.items()), flush=True)


if __name__ == "__main__":
    main()
