"""The diffusion process: tables of the cosine schedule, noising, and the velocity that the head predicts.

Pure functions on tensors. A timestep is an integer in 0 … 999 and indexes the tables by itself: 0 is almost clean,
999 almost noise. (The `add_noise` of diffusers' multistep solver counts from the other end.)
"""

import math

import torch
from torch import Tensor

MAX_BETA = 0.999
COSINE_OFFSET = 0.008


def cosine_tables(num_timesteps: int) -> tuple[Tensor, Tensor]:
    """Signal and noise amplitude of every timestep of the squared-cosine schedule.

    Source: Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models (2021), section 3.2, with the betas
    cut at 0.999, in float32, as the original's sampler computes them.

    Args:
        num_timesteps: length of the tables; 1,000 in all released models.

    Returns:
        alpha and sigma, (num_timesteps,) float32, with alpha² + sigma² = 1.
    """

    def signal_left(fraction: float) -> float:
        return math.cos((fraction + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    betas = [
        min(1 - signal_left((step + 1) / num_timesteps) / signal_left(step / num_timesteps), MAX_BETA)
        for step in range(num_timesteps)
    ]
    signal_power = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float32), dim=0)
    return signal_power.sqrt(), (1 - signal_power).sqrt()


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``alpha · clean + sigma · noise``; amplitudes broadcast against the latents."""
    return alpha * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The head's target, ``alpha · noise - sigma · clean``.

    Source: Salimans and Ho, Progressive Distillation (2022), v-prediction.
    """
    return alpha * noise - sigma * clean


def sample_latent(mean: Tensor, jitter: Tensor, vae_std: float, bias: Tensor, scale: Tensor) -> Tensor:
    """A draw from the sigma-VAE, in the units the language model and the head see.

    Args:
        mean: (F, C) the acoustic encoder's output.
        jitter: (F, C) standard normal noise times one standard normal factor a clip.
        vae_std: the model's `vae_std`.
        bias: 0-d, the model's latent bias.
        scale: 0-d, the model's latent scale.

    Returns:
        (F, C) ``(mean + vae_std · jitter + bias) · scale``.
    """
    return (mean + vae_std * jitter + bias) * scale
