"""A normalisation and what follows it up to the next product, in plain PyTorch: the definition.

Ba et al. 2016 (layer norm), Wu and He 2018 (group norm), Peebles and Xie 2023, section 3.2 (shift and scale by the
timestep). Half types are computed in float32.
"""

import torch
from torch import Tensor


def _normed(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """The normed input and 1 / sqrt(variance + eps), both broadcasting over (B, T, groups or 1, channels of one)."""
    parts = x.unflatten(-1, (groups or 1, -1))
    variance, mean = torch.var_mean(parts, (1, 3) if groups else 3, correction=0, keepdim=True)
    rstd = (variance + eps).rsqrt()
    return (parts - mean) * rstd, rstd


def norm_affine(x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """(B, T, C) in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    normed, _ = _normed(x.to(dtype), groups, eps)
    z = normed.flatten(2) * gain.to(dtype)[:, None] + offset.to(dtype)[:, None]
    return (z * z.sigmoid() if silu else z).to(x.dtype).contiguous()


def norm_affine_backward(
    grad_out: Tensor, x: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gain and offset. With n the normed input, z = gain n + offset and g the gradient of z, gain gets
    the sum of g n, offset that of g, and x 1 / sqrt(variance + eps) (gain g - mean(gain g) - n mean(gain g n)), means
    over what has its statistics together."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    normed, rstd = _normed(x.to(dtype), groups, eps)
    gains, g = gain.to(dtype)[:, None], grad_out.to(dtype)
    if silu:
        z = normed.flatten(2) * gains + offset.to(dtype)[:, None]
        s = z.sigmoid()
        g = g * (s + z * s * (1 - s))
    dgain, doffset = ((y.sum(1).sum_to_size(gain.shape)) for y in (g * normed.flatten(2), g))
    scaled = (gains * g).unflatten(-1, (groups or 1, -1))
    over = (1, 3) if groups else (3,)
    mean1, mean2 = scaled.mean(over, keepdim=True), (scaled * normed).mean(over, keepdim=True)
    dx = ((scaled - mean1 - normed * mean2) * rstd).flatten(2)
    return dx.to(x.dtype).contiguous(), dgain.to(gain.dtype), doffset.to(offset.dtype)
