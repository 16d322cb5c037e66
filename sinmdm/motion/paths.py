"""Quantities that a motion carries on from frame to frame: an edit has to reckon with them to arrive somewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Path:
    """A quantity of k numbers that the features of a motion hold, mostly by its steps from frame to frame.

    steps: features (..., frames, size), in the motion's own units, to steps (..., frames, k): the value of a frame is
        that of the frame before and its step; the first frame's step leads there from the last frame of a loop, and
        otherwise nowhere.
    change: (features, extra), extra steps (..., frames, k) in the same terms, to the change (..., frames, size) of the
        features that adds them. Linear in `extra`.
    begin: (k,), the value in the first frame of a decoded motion.
    features: (m,) int64, the features that hold it.
    period: what may be added to a value without any difference (a turn); None: nothing.
    absolute: whether the features hold the values themselves, so that a motion begins where they say.
    """

    steps: Callable[[Tensor], Tensor]
    change: Callable[[Tensor, Tensor], Tensor]
    begin: Tensor
    features: Tensor
    period: float | None = None
    absolute: bool = False

    def values(self, features: Tensor) -> Tensor:
        """The value in each frame (..., frames, k) float64, from `begin` on (or from where it is, where absolute)."""
        if self.absolute:
            return features[..., self.features].double()
        steps = self.steps(features.double()).clone()
        steps[..., 0, :] = self.begin.to(steps)
        return steps.cumsum(-2)


def absolute_path(features: Tensor) -> Path:
    """The way over the ground of a layout with features (2,) that are the root's x and z in each frame."""

    def steps(x: Tensor) -> Tensor:
        places = x[..., features.to(x.device)]
        return places - places.roll(1, -2)

    def change(x: Tensor, extra: Tensor) -> Tensor:
        changed = torch.zeros_like(x)
        changed[..., features.to(x.device)] = extra.to(x).cumsum(-2)
        return changed

    return Path(steps, change, torch.zeros(2, dtype=torch.float64), features, absolute=True)


def path_of(features: Tensor, begin: tuple[float, float]) -> Path:
    """The way over the ground of a layout with features (2,) that are themselves its steps along x and z."""

    def change(x: Tensor, extra: Tensor) -> Tensor:
        changed = torch.zeros_like(x)
        changed[..., features.to(x.device)] = extra.to(x)
        return changed

    return Path(
        steps=lambda x: x[..., features.to(x.device)],
        change=change,
        begin=torch.tensor(begin, dtype=torch.float64),
        features=features,
    )
