"""Second stage of the codec: the decoder alone, from the frozen encoder's latents to waveforms.

The loss compares spectra at three resolutions; with `--adversary_from STEP` a small discriminator of spectrograms joins
at that step, with feature matching. The latents get noise on the way in, as the sigma-VAE's own draws and the
diffusion head's small errors do later.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import Clip, read_clips
from discriminator import Discriminator, discriminator_loss, generator_loss
from matrix_codec import decode, encode
from spectra import distance
from state import Meter, cosine_lr, load_state, need_state, save_state, set_lr
from torch import Tensor, nn
from train_encoder import HOP, VAE_STD
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel

FRAMES = 32


def read_codec(path: Path) -> Any:
    """The tokenizer of a saved state."""
    state = need_state(path)
    tokenizer = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**state["config"]))
    tokenizer.load_state_dict(state["model"])
    return tokenizer


@torch.no_grad()
def latents_of(encoder: Any, clips: list[Clip], cache: Path | None = None) -> list[Tensor]:
    """Latents of whole clips, (F, C) each; kept in `cache` and read from there the next time."""
    names = [clip.name for clip in clips]
    found = load_state(cache) if cache is not None else None
    if found is not None and found["names"] == names:
        latents: list[Tensor] = found["latents"]
        return latents
    latents = [encode(encoder, clip.wave()[None])[0] for clip in clips]
    if cache is not None:
        save_state(cache, {"names": names, "latents": latents})
    return latents


def cuts(
    clips: list[Clip], latents: list[Tensor], rng: np.random.Generator, size: int, frames: int
) -> tuple[Tensor, Tensor]:
    """Random cuts: latents (size, frames, C) and the audio that they stand for."""
    width = latents[0].shape[1]
    codes, audio = torch.zeros(size, frames, width), torch.zeros(size, frames * HOP)
    for row in range(size):
        index = int(rng.integers(len(clips)))
        start = 0 if rng.random() < 0.3 else int(rng.integers(max(1, len(latents[index]) - frames // 2)))
        code = latents[index][start : start + frames]
        codes[row, : len(code)] = code
        audio[row, : len(code) * HOP] = clips[index].audio_N[start * HOP : (start + len(code)) * HOP].float()
    return codes, audio


def noisy(codes_BFC: Tensor, audio_BN: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise on the latents, milder than the sigma-VAE's own, and dither on the audio."""
    level = torch.randn(len(codes_BFC), 1, 1, generator=noise) * VAE_STD * 0.7
    codes = codes_BFC + level * torch.randn(codes_BFC.shape, generator=noise)
    return codes, audio_BN + 3e-4 * torch.randn(audio_BN.shape, generator=noise)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--encoder", type=Path, required=True, help="state of the first stage")
    parser.add_argument("--out", type=Path, required=True, help="the state, made or resumed")
    parser.add_argument("--steps", type=int, default=13000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--adversary_from", type=int, default=10**9, help="step at which the discriminator joins")
    return parser.parse_args()


class _Adversary:
    """The discriminator with its optimizer."""

    def __init__(self) -> None:
        self.model = Discriminator()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 4e-4, betas=(0.8, 0.98), foreach=True)

    def step(self, made_BN: Tensor, audio_BN: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Learn from a batch; what the decoder then has to lower."""
        against = discriminator_loss(self.model, made_BN.detach(), audio_BN)
        against.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        fooling, features = generator_loss(self.model, made_BN, audio_BN)
        values = {"judge": against.item(), "fooling": fooling.item(), "features": features.item()}
        return 0.1 * fooling + features, values


def main() -> None:
    """Train, or go on training."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer, config = read_codec(arguments.encoder), need_state(arguments.encoder)["config"]
    clips = read_clips(arguments.folder / "train.jsonl", HOP)
    latents = latents_of(tokenizer.encoder, clips, arguments.encoder.with_suffix(".latents"))
    print(len(clips), "clips encoded, latent rms", torch.cat(latents).square().mean().sqrt().item(), flush=True)
    decoder, adversary = tokenizer.decoder, _Adversary()
    weights = [weight for name, weight in decoder.named_parameters() if name != "conv_layers.2.convtr.convtr.bias"]
    optimizer = torch.optim.AdamW(weights, arguments.lr, betas=(0.9, 0.98), weight_decay=1e-3, foreach=True)
    step = 0
    if (state := load_state(arguments.out)) is not None:
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        adversary.model.load_state_dict(state["adversary"])
        adversary.optimizer.load_state_dict(state["judge"])
        step = state["step"]
    rng, noise, meter = np.random.default_rng(step), torch.Generator().manual_seed(step), Meter()
    while step < arguments.steps:
        lr = cosine_lr(step, arguments.steps, arguments.lr)
        set_lr(optimizer, lr)
        codes, audio = noisy(*cuts(clips, latents, rng, arguments.batch, FRAMES), noise)
        made = decode(decoder, codes, torch.bfloat16)
        loss = distance(made, audio)
        values = {"spectral": loss.item()}
        if step >= arguments.adversary_from:
            more, told = adversary.step(made, audio)
            loss, values = loss + more, values | told
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, 2.0)
        optimizer.step()
        optimizer.zero_grad()
        adversary.optimizer.zero_grad()
        step += 1
        meter.add(**values, norm=norm.item())
        if step % 100 == 0:
            print(meter.line(step, lr), flush=True)
        if step % 200 == 0 or step == arguments.steps:
            kept = {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            kept |= {"adversary": adversary.model.state_dict(), "judge": adversary.optimizer.state_dict()}
            save_state(arguments.out, kept | {"model": tokenizer.state_dict(), "config": config})


if __name__ == "__main__":
    main()
