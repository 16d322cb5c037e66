"""Features to zero mean and unit spread and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import Layout


@dataclass(frozen=True, eq=False)
class Normalizer:
    """(x - mean) / std and back, for x (..., size); `mean` and `std` are float32 (size,), std positive.

    Raises: ValueError where they are not.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(f"mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} must be alike, (size,)")
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and (self.std > 0).all()):
            raise ValueError("mean must be finite, std finite and positive")

    @classmethod
    def fit(cls, features: Tensor, layout: Layout | None = None, floor: float = 1.0) -> Normalizer:
        """From features (frames, size): each one's own mean and standard deviation over the frames.

        A feature that moves less than the others is not blown up to their size, which would have a network learn its
        noise: its std is at least `floor` times the root mean square std of its group (`layout.groups`; without a
        layout all features are one group), and 1 where the whole group is constant.
        """
        features = features.double()
        mean, std = features.mean(dim=0), features.std(dim=0, correction=0)
        for group in layout.groups if layout else (slice(None),):
            if std[group].numel() == 0:
                continue
            spread = std[group].square().mean().sqrt()
            if spread <= 1e-6 * features[:, group].abs().amax():
                std[group] = 1.0
            else:
                std[group] = std[group].clamp_min(floor * spread)
        return cls(mean.float(), std.float())

    @classmethod
    def identity(cls, size: int) -> Normalizer:
        """The one that leaves `size` features as they are."""
        return cls(torch.zeros(size), torch.ones(size))

    def apply(self, features: Tensor) -> Tensor:
        """Features (..., size) to normalised ones."""
        return (features - self.mean) / self.std

    def invert(self, normalised: Tensor) -> Tensor:
        """Inverse of `apply`."""
        return normalised * self.std + self.mean

    def to(self, device: torch.device | str) -> Normalizer:
        """The same on another device."""
        return Normalizer(self.mean.to(device), self.std.to(device))
