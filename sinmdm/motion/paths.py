"""What features say by steps and not by places: an edit has to reckon with it to have a motion arrive somewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Path:
    """A quantity of k numbers that the features of a motion hold by its steps from frame to frame.

    steps: features (..., frames, size), in the motion's own units, to steps (..., frames, k): the value of a frame is
        that of the frame before and its step; the first frame's step leads there from the last frame of a loop, and
        otherwise nowhere.
    change: (features, extra), extra steps (..., frames, k) in the same terms, to the change (..., frames, size) of the
        features that adds them. Linear in `extra`.
    begin: (k,), the value in the first frame of a decoded motion.
    period: what may be added to a value without any difference (a turn); None: nothing.
    features: (m,) int64, the features that hold it.
    """

    steps: Callable[[Tensor], Tensor]
    change: Callable[[Tensor, Tensor], Tensor]
    begin: Tensor
    features: Tensor
    period: float | None = None

    def values(self, features: Tensor) -> Tensor:
        """The value in each frame (..., frames, k) float64, from `begin` on."""
        steps = self.steps(features.double()).clone()
        steps[..., 0, :] = self.begin.to(steps)
        return steps.cumsum(-2)


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
