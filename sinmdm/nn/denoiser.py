"""What the published networks share: how a motion comes in and goes out, and what is made of the timestep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Linear
from .transformer import timestep_embedding


class Denoiser(nn.Module, ABC):
    """A network whose blocks are told of the timestep by linear projections of its embedding.

    features: of a motion. receptive_field: frames on each side that a frame depends on; None where that is all of them,
    and then not_local says why.
    """

    features: int
    time_embed: nn.Sequential
    receptive_field: int | None = None
    not_local: str | None = None

    def _make_time_embed(self, width: int) -> None:
        """Set the embedding: `width` numbers of a timestep to 4 width."""
        self.time_embed = nn.Sequential(Linear(width, 4 * width), nn.SiLU(), Linear(4 * width, 4 * width))

    @abstractmethod
    def _conditions(self, embedded: Tensor) -> Iterable[Tensor]:
        """What each block is told, (N, ...), of SiLU(embedding) (N, 4 width)."""

    @abstractmethod
    def _denoise(self, x: Tensor, conditions: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, frames, features) to its shape; conditions (B or 1, ...)."""

    def conditions(self, timesteps: Tensor) -> Tensor:
        """All that the network makes of timesteps (N,): (N, numbers), what each block is told, one after the other.

        A sampler computes it once for all its steps, and gives `forward` the rows of each.
        """
        first = cast(Linear, self.time_embed[0])
        embedding = timestep_embedding(timesteps, first.in_features).to(first.weight.dtype)
        return torch.cat(list(self._conditions(F.silu(self.time_embed(embedding)))), -1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        conditions: Tensor | None = None,
    ) -> Tensor:
        """A motion at its timesteps to the network's prediction.

        Args:
            x: (B, features, frames), or (B, a, b, frames) with a * b features, as the published networks take it.
            timesteps: (B,) integers.
            lengths: (B,) int, the real frames of right-padded motions, where the network can.
            conditions: of the method of that name, with B rows or 1; may be given instead of the timesteps.

        Returns:
            The prediction, in x's shape.

        Raises:
            ValueError: an argument that is not as above, by name.
        """
        if x.dim() not in (3, 4) or math.prod(x.shape[1:-1]) != self.features:
            raise ValueError(
                f"x must have shape (batch, {self.features}, frames), or (batch, a, b, frames) with "
                f"a * b = {self.features}, got {tuple(x.shape)}"
            )
        if (timesteps is None) == (conditions is None):
            raise ValueError("give either timesteps or conditions")
        if timesteps is not None:
            if timesteps.shape != x.shape[:1]:
                raise ValueError(f"timesteps must have shape (batch,) = ({len(x)},), got {tuple(timesteps.shape)}")
            conditions = self.conditions(timesteps)
        assert conditions is not None
        if conditions.dim() != 2 or len(conditions) not in (1, len(x)):
            raise ValueError(f"conditions must have {len(x)} rows or 1, got shape {tuple(conditions.shape)}")
        out = self._denoise(x.flatten(1, -2).transpose(1, 2).contiguous(), conditions, lengths).transpose(1, 2)
        return out if x.dim() == 3 else out.unflatten(1, x.shape[1:3])
