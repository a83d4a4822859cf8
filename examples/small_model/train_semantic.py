"""The semantic encoder: what phone is being said in each frame, for real audio and for the codec's own.

A linear probe (dropped afterwards) tells the mixture of phones of each frame from noisy features. That is the first
run. With `--codec`, a second run goes on from it: half of every batch is heard twice, as recorded and as decoded from
noisy latents, and both must give the features that the first run gave for the recording, since training hears the one
and generation the other. The features of recordings so stay what they were, and a language model that is already
training on them can go on.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import Clip, read_clips
from matrix_codec import decode, encode, initialise
from state import Meter, cosine_lr, load_state, need_state, save_state, set_lr
from torch import Tensor, nn
from train_decoder import latents_of, read_codec
from train_encoder import HOP, VAE_STD
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel
from voices import SAMPLE_RATE_HZ

SEMANTIC: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 16,
    "downsampling_ratios": [40, 4, 6],
    "depths": [0, 2, 2, 3],
    "layer_scale_init_value": 0.1,
    "initializer_range": 0.02,
}
FRAMES = 32
PAUSE = "pau"


def phone_names(clips: list[Clip]) -> list[str]:
    """All phones that occur."""
    return sorted({phone for clip in clips for phone, _ in clip.phones or []} | {PAUSE})


def phone_mixture(clip: Clip, names: list[str]) -> Tensor:
    """The share of each phone in each frame, (F, phones); all zero where the clip's phones are not known."""
    frames = len(clip.audio_N) // HOP
    share = np.zeros((frames, len(names)), dtype=np.float32)
    if clip.phones is None:
        return torch.from_numpy(share)
    length_sec = HOP / SAMPLE_RATE_HZ
    starts, before = np.arange(frames) * length_sec, 0.0
    for phone, end in clip.phones:
        first, last = max(before, 0.0), max(end, 0.0)
        overlap = np.clip(np.minimum(starts + length_sec, last) - np.maximum(starts, first), 0, None)
        share[:, names.index(phone)] += (overlap / length_sec).astype(np.float32)
        before = end
    share[:, names.index(PAUSE)] += np.clip(1 - share.sum(1), 0, None)
    return torch.from_numpy(share / share.sum(1, keepdims=True))


def cross_entropy(logits: Tensor, share: Tensor) -> Tensor:
    """Soft cross-entropy over the frames whose phones are known."""
    known = share.sum(-1).clamp(min=1e-6)
    return -(share * logits.log_softmax(-1)).sum() / known.sum().clamp(min=1.0)


def read_semantic(path: Path) -> Any:
    """The encoder of a saved state."""
    state = need_state(path)
    encoder = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**state["config"])).encoder
    encoder.load_state_dict(state["model"])
    return encoder


@torch.no_grad()
def decoded_again(codec: Any, all_latents: list[Tensor], seed: int, strength: float = VAE_STD) -> list[Tensor]:
    """Clips as the codec would say it from noisy latents, (N,) float16."""
    noise = torch.Generator().manual_seed(seed)
    found = []
    for latents in all_latents:
        level = torch.randn(1, generator=noise) * strength
        noisy = latents + level * torch.randn(latents.shape, generator=noise)
        found.append(decode(codec.decoder, noisy[None], torch.bfloat16)[0].half())
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--codec", type=Path, help="state of the decoder's training: the second run")
    parser.add_argument("--latents", type=Path, help="where the decoder's training keeps its latents")
    parser.add_argument("--out", type=Path, required=True, help="the state, made or resumed")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-3)
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    phones = arguments.folder / "phones.json"
    clips = read_clips(arguments.folder / "train.jsonl", HOP, phones)
    run = _Run(arguments, clips, read_clips(arguments.folder / "dev.jsonl", HOP, phones))
    if arguments.codec is not None:
        run.hear(read_codec(arguments.codec), arguments.latents)
    run.train()


class _Run:
    """The training loop and what it needs."""

    def __init__(self, arguments: argparse.Namespace, clips: list[Clip], dev: list[Clip]) -> None:
        self.arguments, self.clips, self.dev = arguments, clips, dev
        self.names = phone_names(clips)
        self.shares = [phone_mixture(clip, self.names) for clip in clips]
        self.encoder = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**SEMANTIC)).encoder
        initialise(self.encoder, torch.Generator().manual_seed(1))
        self.probe = nn.Linear(SEMANTIC["hidden_size"], len(self.names))
        self.weights = [*(p for p in self.encoder.parameters() if p.requires_grad), *self.probe.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.weights, arguments.lr, betas=(0.9, 0.98), weight_decay=0.01, foreach=True
        )
        self.step = 0
        if (state := load_state(arguments.out)) is not None:
            self.encoder.load_state_dict(state["model"])
            self.probe.load_state_dict(state["probe"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        if state is not None and "teacher" in state:
            self.teacher.load_state_dict(state["teacher"])
        self.decoded: list[Tensor] | None = None
        self.dev_decoded: list[Tensor] | None = None
        self.noise = torch.Generator().manual_seed(self.step)

    def hear(self, codec: Any, cache: Path | None) -> None:
        """Decode all clips again, for the second run."""
        self.decoded = decoded_again(codec, latents_of(codec.encoder, self.clips, cache), seed=2)
        self.dev_decoded = decoded_again(codec, latents_of(codec.encoder, self.dev), seed=3)

    def losses(self, audio_BN: Tensor, share: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Phones from noisy features; in the second run also the distance from the first run's features."""
        features = encode(self.encoder, audio_BN, torch.bfloat16)
        logits = self.probe(features + 0.3 * torch.randn(features.shape, generator=self.noise))
        phone = cross_entropy(logits, share)
        loss, values = phone + 0.01 * features.square().mean(), {"phone": phone.item()}
        if self.decoded is not None:
            with torch.no_grad():
                wanted = encode(self.teacher, audio_BN[: len(audio_BN) // 2], torch.bfloat16)
            gaps = [(part - wanted).square().mean() / wanted.square().mean() for part in features.chunk(2)]
            loss = 0.3 * loss + gaps[0] + gaps[1]
            values |= {"real_gap": gaps[0].item() ** 0.5, "decoded_gap": gaps[1].item() ** 0.5}
        return loss, values

    def train(self) -> None:
        """Until the last step."""
        arguments, rng, meter = self.arguments, np.random.default_rng(self.step), Meter()
        print("before:", self.judge(), flush=True)
        while self.step < arguments.steps:
            lr = cosine_lr(self.step, arguments.steps, arguments.lr)
            set_lr(self.optimizer, lr)
            loss, values = self.losses(*_batch(self.clips, self.decoded, self.shares, rng, arguments.batch))
            loss.backward()
            nn.utils.clip_grad_norm_(self.weights, 2.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            meter.add(**values)
            if self.step % 50 == 0:
                print(meter.line(self.step, lr), flush=True)
            if self.step % 150 == 0 or self.step == arguments.steps:
                print("  dev", self.judge(), flush=True)
                self.save()

    def save(self) -> None:
        """Everything to go on, and the encoder."""
        kept = {"teacher": self.teacher.state_dict()} if self.decoded is not None else {}
        kept |= {"model": self.encoder.state_dict(), "probe": self.probe.state_dict()}
        kept |= {"optimizer": self.optimizer.state_dict(), "step": self.step}
        save_state(self.arguments.out, kept | {"config": SEMANTIC, "phones": self.names})

    @torch.no_grad()
    def judge(self) -> str:
        """Share of frames whose phone is told right; how far decoded features are from recorded ones."""
        right = frames = 0
        gap = power = 0.0
        for index, clip in enumerate(self.dev):
            wave = clip.wave()[None]
            features = encode(self.encoder, wave)[0]
            right += int((self.probe(features).argmax(-1) == phone_mixture(clip, self.names).argmax(-1)).sum())
            frames += len(features)
            if self.dev_decoded is not None:
                made, wanted = encode(self.encoder, self.dev_decoded[index].float()[None]), encode(self.teacher, wave)
                gap, power = gap + (made - wanted).square().sum().item(), power + wanted.square().sum().item()
        told = f"phone accuracy {right / frames:.3f}"
        return told if not power else f"{told}, decoded features differ by {(gap / power) ** 0.5:.3f} (relative RMS)"


def _batch(
    clips: list[Clip], decoded: list[Tensor] | None, shares: list[Tensor], rng: np.random.Generator, size: int
) -> tuple[Tensor, Tensor]:
    """Cuts and their phones; with decoded audio, the second half is the first half decoded again."""
    number = size if decoded is None else size // 2
    audio = torch.zeros(size, FRAMES * HOP)
    share = torch.zeros(size, FRAMES, shares[0].shape[1])
    for row in range(number):
        index = int(rng.integers(len(clips)))
        frames = len(shares[index])
        start = 0 if rng.random() < 0.3 else int(rng.integers(max(1, frames - FRAMES // 2)))
        cut = slice(start * HOP, (start + FRAMES) * HOP)
        kept = min(FRAMES, frames - start)
        for place, source in ((row, clips[index].audio_N), (row + number, decoded[index] if decoded else None)):
            if source is not None:
                audio[place, : kept * HOP] = source[cut].float()
                share[place, :kept] = shares[index][start : start + FRAMES]
    return audio + torch.from_numpy(rng.normal(0, 5e-4, size=audio.shape).astype(np.float32)), share


if __name__ == "__main__":
    main()
