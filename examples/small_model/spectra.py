"""Spectra: what the codec is asked to keep, and how far two waveforms are apart.

Shapes: B rows, N samples, M mels.
"""

import math

import torch
from torch import Tensor

SAMPLE_RATE_HZ = 24_000
TOP_MEL_HZ = 9_000  # the sources hold nothing above 8 kHz times the formant factor
FLOOR = 5e-3
SIZES = (256, 512, 1024)
NUM_MELS = {256: 32, 512: 64, 1024: 96}


def mel_filters(fft_size: int, num_mels: int) -> Tensor:
    """Triangles with equal weight, (M, bins)."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges = [700 * (10 ** (mel(TOP_MEL_HZ) * i / (num_mels + 1) / 2595) - 1) for i in range(num_mels + 2)]
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, fft_size // 2 + 1)
    rows = [
        torch.clamp(torch.minimum((bins - a) / (b - a), (c - bins) / (c - b)), min=0)
        for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    filters = torch.stack(rows)
    return filters / (filters.sum(1, keepdim=True) + 1e-6)


_WINDOWS = {size: torch.hann_window(size) for size in (*SIZES, 384, 768)}  # two more for the discriminator
_FILTERS = {size: mel_filters(size, mels) for size, mels in NUM_MELS.items()}


def magnitudes(audio_BN: Tensor, size: int, hop: int | None = None) -> Tensor:
    """Magnitudes, (B, bins, steps): up to 12 kHz, or the decoder would hum where nothing is asked of it."""
    spectrum = torch.stft(audio_BN, size, hop or size // 4, window=_WINDOWS[size], return_complex=True)
    return (torch.view_as_real(spectrum).square().sum(-1) + 1e-7).sqrt()


def distance(decoded_BN: Tensor, real_BN: Tensor) -> Tensor:
    """Spectral convergence, log magnitudes and log mels at three resolutions."""
    total = decoded_BN.new_zeros(())
    for size in SIZES:
        with torch.no_grad():
            real = magnitudes(real_BN, size)
        made = magnitudes(decoded_BN, size)
        gap = (made - real).square().sum((1, 2)).add(1e-8).sqrt() / (real.square().sum((1, 2)).add(10.0).sqrt())
        filters = _FILTERS[size]
        mels = (torch.log(filters @ made + FLOOR) - torch.log(filters @ real + FLOOR)).abs().mean()
        logs = (torch.log(made + FLOOR) - torch.log(real + FLOOR)).abs().mean()
        total = total + gap.mean() + 0.5 * logs + mels
    return total / len(SIZES)


def frame_targets(audio_BN: Tensor, hop: int) -> Tensor:
    """What the latents of a frame must tell, in four sub-frames: 64 log mels and the harmonics below 1.4 kHz,
    (B, F, 4 * 124).
    """
    step = hop // 4
    with torch.no_grad():
        short = magnitudes(audio_BN, 512, step)[..., :-1]
        long = magnitudes(audio_BN, 1024, step)[..., :-1]
        mels = torch.log(_FILTERS[512] @ short + FLOOR)
        low = torch.log(long[:, :60] + FLOOR)
        both = torch.cat([mels, low], 1).transpose(1, 2)
        return both.reshape(len(audio_BN), -1, 4 * both.shape[-1])
