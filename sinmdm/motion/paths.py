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


def absolute_path(ground: slice) -> Path:
    """The way over the ground of a layout with two features that are the root's x and z in each frame."""

    def steps(x: Tensor) -> Tensor:
        return x[..., ground] - x[..., ground].roll(1, -2)

    def change(x: Tensor, extra: Tensor) -> Tensor:
        return change_in(x, ground, extra.cumsum(-2))

    return Path(steps, change, torch.zeros(2, dtype=torch.float64), _indices(ground), absolute=True)


def path_of(ground: slice, begin: tuple[float, float]) -> Path:
    """The way over the ground of a layout with two features that are themselves its steps along x and z."""
    return Path(
        steps=lambda x: x[..., ground],
        change=lambda x, extra: change_in(x, ground, extra),
        begin=torch.tensor(begin, dtype=torch.float64),
        features=_indices(ground),
    )


def change_in(x: Tensor, where: slice, values: Tensor) -> Tensor:
    """A change of features (..., size) like x: the values in some of them, and zeros elsewhere."""
    out = torch.zeros_like(x)
    out[..., where] = values.to(x)
    return out


def _indices(where: slice) -> Tensor:
    return torch.arange(where.start, where.stop, where.step or 1)
