"""A small discriminator of spectrograms at two resolutions, with the hinge loss and feature matching.

Spectrograms go in as log magnitudes, (B, 1, bins, steps): phases are the decoder's own business, since the latents do
not hold them; but a waveform with incoherent phases shows in the magnitudes of a window it was not made with.
"""

import torch
import torch.nn.functional as F
from spectra import FLOOR, magnitudes
from torch import Tensor, nn

SIZES = (384, 768)


class _Scale(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        shapes = [
            (1, channels, 2),
            (channels, channels, 2),
            (channels, 2 * channels, 2),
            (2 * channels, 2 * channels, 2),
        ]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(i, o, (5, 3), (s, 1), (2, 1))) for i, o, s in shapes
        )
        self.last = nn.Conv2d(2 * channels, 1, (3, 3), padding=1)

    def forward(self, spectrogram: Tensor) -> list[Tensor]:
        features, hidden = [], spectrogram
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.1)
            features.append(hidden)
        return [*features, self.last(hidden)]


class Discriminator(nn.Module):
    """Features of each layer and the verdict, for each resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(_Scale() for _ in SIZES)

    def forward(self, audio_BN: Tensor) -> list[list[Tensor]]:
        """One list per resolution; the verdict is last."""
        found = []
        for scale, size in zip(self.scales, SIZES, strict=True):
            spectrogram = torch.log(magnitudes(audio_BN, size) + FLOOR)[:, None]
            with torch.autocast("cpu", torch.bfloat16):
                found.append([feature.float() for feature in scale(spectrogram)])
        return found


def discriminator_loss(judge: Discriminator, made_BN: Tensor, real_BN: Tensor) -> Tensor:
    """Hinge loss of telling real from made."""
    loss = made_BN.new_zeros(())
    for made, real in zip(judge(made_BN), judge(real_BN), strict=True):
        loss = loss + F.relu(1 - real[-1]).mean() + F.relu(1 + made[-1]).mean()
    return loss / len(SIZES)


def generator_loss(judge: Discriminator, made_BN: Tensor, real_BN: Tensor) -> tuple[Tensor, Tensor]:
    """How far the judge is from being fooled, and the distance of its features (relative, as in EnCodec)."""
    with torch.no_grad():
        real_features = judge(real_BN)
    fooling, matching = made_BN.new_zeros(()), made_BN.new_zeros(())
    for made, real in zip(judge(made_BN), real_features, strict=True):
        fooling = fooling + F.relu(1 - made[-1]).mean()
        for one, other in zip(made[:-1], real[:-1], strict=True):
            matching = matching + (one - other).abs().mean() / other.abs().mean() / (len(made) - 1)
    return fooling / len(SIZES), matching / len(SIZES)
