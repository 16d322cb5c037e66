"""Motions without ends: a network made to see the last frame before the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .sampling import check_model


class Circular:
    """A local network on a circle of frames: as `sample` takes a network, in place of `model`.

    A network whose attention can go round (`WindowTransformer`, with `boundary="circular"`) does so; any other is given
    the frames with as many of the other end on both sides as it sees, which gives the same.

    Args:
        model: a network with a `receptive_field`.

    Raises:
        ValueError: the network is not local, so that it has no frames to be shown round the end.
    """

    def __init__(self, model: Callable[..., Tensor]) -> None:
        self.field = check_model(model, "a motion without ends")
        self.model = model
        if hasattr(model, "features"):
            self.features = model.features
        if hasattr(model, "conditions"):
            self.conditions = model.conditions

    def __call__(self, x: Tensor, timesteps: Tensor | None = None, **options: Any) -> Tensor:
        """x (B, features, frames) and timesteps (B,) as the network takes them; to x's shape."""
        given = () if timesteps is None else (timesteps,)
        if getattr(self.model, "circular", False):
            return self.model(x, *given, boundary="circular", **options)
        frames = x.shape[-1]
        round_ = torch.arange(-self.field, frames + self.field, device=x.device) % frames
        return self.model(x[..., round_], *given, **options)[..., self.field : self.field + frames]
