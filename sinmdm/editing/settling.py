"""Seams without a jump: what a prediction misses of the given frames is made up for in the generated ones beside them.

The network predicts the given frames, too, and is a little off; put beside each other, the given frames and what it
predicts for the next ones would differ by that much from one frame to the next. So the difference at the last given
frame is added to the generated ones, less and less over the next frames. As it is done at every step, the network goes
on from frames that fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

SETTLING = 20  # frames


class Settling:
    """Changes predictions beside given frames; `correct` of `sinmdm.diffusion.sample`.

    Args:
        known, mask: (frames, size), as the sampler blends them into every prediction, normalised.
        given: (frames,) bool: the frames that are given.
    """

    def __init__(self, known: Tensor, mask: Tensor, given: Tensor) -> None:
        frames = torch.arange(len(given))
        before = torch.where(given, frames, -1).cummax(0).values  # the last given frame so far
        after = torch.where(given, frames, len(given)).flip(0).cummin(0).values.flip(0)
        gap = (after - before - 1).clamp(max=SETTLING)
        self.sides = []
        for beside, inside in ((before, before >= 0), (after, after < len(given))):
            own = (~given & inside).nonzero().flatten()
            share = ((frames - beside).abs() / (gap + 1))[own].clamp(max=1)
            weight = (1 - share).square() * (1 + 2 * share)  # 1 to 0, level at both ends
            self.sides.append((own.to(known.device), beside[own].to(known.device), weight.to(known)[:, None]))
        self.known, self.kept = known, mask == 1

    def __call__(self, predicted: Tensor) -> Tensor:
        """(B, frames, size) predictions to ones that go on from the given frames."""
        missed = (self.known - predicted) * self.kept
        out = predicted.clone()
        for own, beside, weight in self.sides:
            out.index_add_(1, own, weight * missed[:, beside])
        return out
