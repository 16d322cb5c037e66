"""Harmonisation: a motion of the model's style with another motion's slow content (Raab et al. 2024; ILVR, Choi et al.
2021, arXiv:2108.02938, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import Schedule, q_sample
from ..motion import Normalizer

PUBLISHED_LAST = 20  # the timestep from which on the published code leaves the model alone
HARMONY_STEP = 0x80000000  # | timestep: the counter word of harmonisation's own draw


def low_pass(x: Tensor, factor: int) -> Tensor:
    """x (B, frames, size) at a `factor`-th of its rate and back: means of `factor` frames, then linear interpolation
    between their middles, the ends held. A last stretch that is shorter is filled up with its last frame."""
    frames = x.shape[1]
    padded = F.pad(x.mT, (0, -frames % factor), mode="replicate") if frames % factor else x.mT
    slow = F.avg_pool1d(padded, factor)
    return F.interpolate(slow, scale_factor=factor, mode="linear", align_corners=False)[..., :frames].mT


@dataclass(frozen=True, eq=False)
class Harmony:
    """The motion whose slow content a result takes over.

    reference: (frames, size) float32 features, in the motion's own units.
    factor: how slow: of changes faster than about `factor` frames nothing is taken over; 1 takes everything.
    until: share of the diffusion, 0 to 1: from timestep until * T on, the model is left alone.
    compat: as the published code: the reference is noised for the timestep that the step began at, a level too much,
        and the model is left alone from timestep 20 on, whatever `until`.
    """

    reference: Tensor
    factor: int = 2
    until: float = 0.02
    compat: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, int) or self.factor < 1:
            raise ValueError(f"factor must be a whole number of at least 1, got {self.factor!r}")
        if self.factor > len(self.reference):
            raise ValueError(f"factor must be at most the reference's {len(self.reference)} frames, got {self.factor}")
        if not 0 <= self.until <= 1:
            raise ValueError(f"until must be from 0 to 1, got {self.until}")

    def guide(
        self, schedule: Schedule, normalizer: Normalizer, *, seed: int, first_sample: int, count: int
    ) -> Callable[[Tensor, int, int], None]:
        """`guide` of `sinmdm.diffusion.sample` for `count` samples: x <- x - slow(x) + slow(reference, noised as x)."""
        reference = normalizer.apply(self.reference.to(normalizer.mean.device)).expand(count, -1, -1)
        samples = torch.arange(first_sample, first_sample + count, device=reference.device)
        last = PUBLISHED_LAST if self.compat else int(self.until * len(schedule) + 1e-9)

        def guide(x: Tensor, timestep: int, began: int) -> None:
            level = began if self.compat else timestep
            if level <= last:
                return
            noised = q_sample(reference, level, schedule, seed=seed, step=HARMONY_STEP | level, sample=samples)
            x += low_pass(noised - x, self.factor)

        return guide
