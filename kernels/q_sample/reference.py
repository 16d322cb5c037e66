"""The forward process of a Gaussian diffusion in plain PyTorch: the definition (Ho et al. 2020, eq. 4)."""

import torch
from torch import Tensor

from ..philox.reference import philox_normal


def q_sample(
    x0: Tensor, coefficients: Tensor, noise: Tensor | None, seed: int, step: Tensor, sample: Tensor, frame: Tensor
) -> tuple[Tensor, Tensor]:
    """x_t = signal * x0 + sigma * noise for coefficients (B, 2) = (signal, sigma), and the noise that was used."""
    if noise is None:
        noise = philox_normal(x0.shape, seed, step, sample, frame, x0.device).to(x0.dtype)
    signal, sigma = coefficients[:, :, None, None].unbind(1)
    return torch.addcmul(signal * x0, sigma, noise), noise
