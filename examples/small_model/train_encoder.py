"""First stage of the codec: the encoder alone, from waveforms to latents that tell their frame's spectrum.

A small head (dropped afterwards) reads four sub-frames of log mels and of low harmonics from the noisy latents of the
last three frames. No waveform is made, so this runs at a hundred times real time, and the latents are fixed for
everything that follows: the decoder, the language model and the diffusion head.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clips import Clip, batch_of, read_clips
from matrix_codec import encode, initialise
from spectra import frame_targets
from state import Meter, cosine_lr, load_state, save_state, set_lr
from torch import Tensor, nn
from transformers import VibeVoiceAcousticTokenizerConfig, VibeVoiceAcousticTokenizerModel

HOP = 960
VAE_STD = 0.5
SPECTRUM = 4 * 124
"""Numbers per frame that the head reads: see `spectra.frame_targets`."""
CODEC: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 32,
    "downsampling_ratios": [40, 4, 6],
    "depths": [0, 3, 3, 4],
    "layer_scale_init_value": 0.1,
    "initializer_range": 0.02,
    "vae_std": VAE_STD,
}


class SpectrumHead(nn.Module):
    """Latents of a frame and the two before it in, its spectrum out: (B, F, C) to (B, F, 496)."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3 * size, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, outputs)
        )

    def forward(self, latents_BFC: Tensor) -> Tensor:
        """Causal: what comes later is not seen."""
        late = [F.pad(latents_BFC, (0, 0, n, 0))[:, : latents_BFC.shape[1]] for n in (2, 1, 0)]
        spectrum: Tensor = self.layers(torch.cat(late, -1))
        return spectrum


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of the speech")
    parser.add_argument("--out", type=Path, required=True, help="the state, made or resumed")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=2e-3)
    return parser.parse_args()


def main() -> None:
    """Train, or go on training."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clips = read_clips(arguments.folder / "train.jsonl", HOP)
    dev = read_clips(arguments.folder / "dev.jsonl", HOP)
    tokenizer = VibeVoiceAcousticTokenizerModel(VibeVoiceAcousticTokenizerConfig(**CODEC))
    initialise(tokenizer, torch.Generator().manual_seed(0))
    encoder, head = tokenizer.encoder, SpectrumHead(CODEC["hidden_size"], SPECTRUM)
    weights = [p for p in [*encoder.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, arguments.lr, betas=(0.9, 0.98), weight_decay=1e-3, foreach=True)
    step = 0
    if (state := load_state(arguments.out)) is not None:
        tokenizer.load_state_dict(state["model"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    rng, noise, meter = np.random.default_rng(step), torch.Generator().manual_seed(step), Meter()
    while step < arguments.steps:
        lr = cosine_lr(step, arguments.steps, arguments.lr)
        set_lr(optimizer, lr)
        audio = batch_of(clips, 32, HOP, rng, arguments.batch)
        latents = encode(encoder, audio, torch.bfloat16)
        spectrum = _spectrum_error(head, latents, audio, noise)
        (spectrum + 0.005 * latents.square().mean() + 0.02 * latents.mean((0, 1)).square().mean()).backward()
        norm = nn.utils.clip_grad_norm_(weights, 2.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        meter.add(spectrum=spectrum.item(), latent_rms=latents.square().mean().sqrt().item(), norm=norm.item())
        if step % 50 == 0:
            print(meter.line(step, lr), flush=True)
        if step % 500 == 0 or step == arguments.steps:
            print(f"  dev spectrum {_judge(encoder, head, dev):.4f}", flush=True)
            both = {"model": tokenizer.state_dict(), "head": head.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(arguments.out, both | {"step": step, "config": CODEC})


def _spectrum_error(head: nn.Module, latents_BFC: Tensor, audio_BN: Tensor, noise: torch.Generator) -> Tensor:
    """Mean distance of log spectra, read from latents with the noise of the sigma-VAE."""
    level = torch.randn(len(audio_BN), 1, 1, generator=noise) * VAE_STD
    with torch.autocast("cpu", torch.bfloat16):
        made = head(latents_BFC + level * torch.randn(latents_BFC.shape, generator=noise)).float()
    return (made - frame_targets(audio_BN, HOP)).abs().mean()


@torch.no_grad()
def _judge(encoder: Any, head: nn.Module, dev: list[Clip]) -> float:
    errors = []
    for clip in dev:
        audio = clip.wave()[None]
        errors.append((head(encode(encoder, audio)) - frame_targets(audio, HOP)).abs().mean().item())
    return float(np.mean(errors))


if __name__ == "__main__":
    main()
