"""Rotations as numbers: 6D (two columns of the matrix; Zhou et al. 2019, arXiv:1812.07035), quaternions, angles."""

from __future__ import annotations

import numpy as np
import roma
import torch
from torch import Tensor

AXES = "XYZ"
_POLE = 1e-7  # radians


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


def unit_quaternions(numbers: Tensor) -> Tensor:
    """The unit quaternion along any finite (..., 4), the identity along zero: the same shape, (w, x, y, z), never NaN.

    Written out by component, so that a frame's numbers do not depend on how many frames come with it.
    """
    largest = numbers.abs().amax(dim=-1, keepdim=True)
    identity = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=numbers.dtype, device=numbers.device)
    w, x, y, z = torch.where(largest > 0, numbers / largest, identity).unbind(-1)
    norm = (w * w + x * x + y * y + z * z).sqrt()
    return torch.stack([w / norm, x / norm, y / norm, z / norm], dim=-1)


def from_quaternions(numbers: Tensor) -> Tensor:
    """Any finite (..., 4), (w, x, y, z) of any length, to rotation matrices (..., 3, 3)."""
    return roma.unitquat_to_rotmat(unit_quaternions(numbers)[..., [1, 2, 3, 0]])


def continuous_quaternions(quaternions: Tensor) -> Tensor:
    """Quaternions (frames, ..., 4) with the signs that bring each nearer to the one before; the first keeps its own."""
    turns = (quaternions[1:] * quaternions[:-1]).sum(dim=-1, keepdim=True) < 0
    return torch.cat([quaternions[:1], quaternions[1:] * torch.where(turns, -1, 1).cumprod(dim=0)])


def quaternions_of_angles(order: str, degrees: Tensor) -> Tensor:
    """Degrees (..., n) about the n axes of `order` to quaternions (..., 4), (w, x, y, z), with the sign of the product.

    Each axis has (cos a/2, sin a/2) for its angle a, so that a whole turn changes the sign.
    """
    return roma.euler_to_unitquat(order, degrees, degrees=True)[..., [3, 0, 1, 2]]


def principal_angles(order: str, rotations: Tensor) -> np.ndarray:
    """Degrees (frames, n, 3) in [-180, 180] about the three axes of `order`; at a pole the third is 0.

    What roma.rotmat_to_euler computes (Bernardes and Viollet 2022, doi:10.1371/journal.pone.0276302), but in numpy:
    torch's atan2 and hypot differ in the last bit between the body of a tensor and its tail, and a frame's angles must
    not depend on how many frames come with it.
    """
    k, j, i = map(AXES.index, order)
    sign = (i - j) * (j - k) * (k - i) // 2
    q = roma.rotmat_to_unitquat(rotations).numpy()
    a, b = q[..., 3] - q[..., j], q[..., i] + sign * q[..., k]
    c, d = q[..., 3] + q[..., j], sign * q[..., k] - q[..., i]
    middle = 2 * np.arctan2(np.hypot(c, d), np.hypot(a, b))
    half_sum, half_difference = np.arctan2(b, a), np.arctan2(d, c)
    half_difference = np.where(middle <= _POLE, half_sum, half_difference)  # at a pole only one of them is determined
    half_sum = np.where(middle >= np.pi - _POLE, half_difference, half_sum)
    third = half_sum - half_difference
    angles = np.degrees(np.stack([sign * (half_sum + half_difference), middle - np.pi / 2, third], axis=-1))
    return angles - 360.0 * np.rint(angles / 360.0)
