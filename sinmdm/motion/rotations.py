"""Rotations as six numbers: the first two columns of the matrix (Zhou et al. 2019, arXiv:1812.07035)."""

from __future__ import annotations

import torch
from torch import Tensor


def to_6d(matrices: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to (..., 6): the first column, then the second."""
    return matrices[..., :2].transpose(-1, -2).flatten(-2)


def from_6d(numbers: Tensor) -> Tensor:
    """Any finite (..., 6) to rotation matrices (..., 3, 3)."""
    first, second = orthonormal_6d(numbers).unflatten(-1, (2, 3)).unbind(-2)
    return torch.stack([first, second, torch.linalg.cross(first, second)], dim=-1)


def orthonormal_6d(numbers: Tensor) -> Tensor:
    """The 6D rotation that Gram-Schmidt makes of (..., 6): the same shape, never NaN.

    A vanishing first vector becomes the x axis; a second one that does not leave the first's line gives way to an axis
    that does. Written out by component: reductions over three neighbours cost ten times as much on a CPU.
    """
    tolerance = (16 * torch.finfo(numbers.dtype).eps) ** 2
    a0, a1, a2, b0, b1, b2 = numbers.unbind(-1)
    a0 = a0 + 1e-18
    scale = torch.rsqrt(a0 * a0 + a1 * a1 + a2 * a2)
    a0, a1, a2 = a0 * scale, a1 * scale, a2 * scale
    c0, c1, c2 = a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0
    parallel = c0 * c0 + c1 * c1 + c2 * c2 <= tolerance * (b0 * b0 + b1 * b1 + b2 * b2) + 1e-36
    off_x = a0.abs() < 0.8
    zero = torch.zeros_like(a0)
    c0 = torch.where(parallel, torch.where(off_x, zero, -a2), c0)
    c1 = torch.where(parallel, torch.where(off_x, a2, zero), c1)
    c2 = torch.where(parallel, torch.where(off_x, -a1, a0), c2)
    scale = torch.rsqrt(c0 * c0 + c1 * c1 + c2 * c2)
    c0, c1, c2 = c0 * scale, c1 * scale, c2 * scale
    return torch.stack([a0, a1, a2, c1 * a2 - c2 * a1, c2 * a0 - c0 * a2, c0 * a1 - c1 * a0], dim=-1)
