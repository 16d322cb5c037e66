"""Arriving where one has to: predictions moved so that their steps lead from each given place to the next.

Features hold the way over the ground by its steps, so that what is generated between two given parts decides where the
second one lies (the published code leaves it wherever that is). Here every prediction of x0 is changed, before it is
blended with what is given: between two given places a smooth bump of extra speed makes up for what is missing. At the
last step the way is met to rounding; at those before, the network sees it nearly met, and moves accordingly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..motion import Normalizer
from ..motion.paths import Path


@dataclass(frozen=True, eq=False)
class Meets:
    """Values of one path at some frames: frames (m,) rising, values (m, k). Only their differences matter, and none
    between a frame numbered in `breaks` (which of the m) and the next.

    Raises: ValueError where the frames do not rise, or there are not as many values.
    """

    frames: Tensor
    values: Tensor
    breaks: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.frames):
            raise ValueError(f"values have shape {tuple(self.values.shape)}, must be ({len(self.frames)}, k)")
        if bool((self.frames.diff() <= 0).any()):
            raise ValueError(f"frames must rise, got {self.frames.tolist()}")

    @property
    def ties(self) -> list[int]:
        """Which of the frames are tied to the next one."""
        return [number for number in range(len(self.frames) - 1) if number not in self.breaks]

    @property
    def groups(self) -> list[list[int]]:
        """Which of the frames are tied together, all of them."""
        edges = [0, *(number + 1 for number in sorted(self.breaks)), len(self.frames)]
        return [list(range(begin, end)) for begin, end in pairwise(edges) if begin < end]


class _Gaps:
    """Stretches of frames, each with the sum that a path's steps must have in it."""

    def __init__(self, meets: Meets, frames: int, circular: bool, device: torch.device) -> None:
        at, values, ties = meets.frames.tolist(), meets.values.double(), meets.ties
        self.total = torch.cat([values[:0], *(values[i + 1 : i + 2] - values[i : i + 1] for i in ties)])
        self.count = len(ties)
        owner = torch.full((frames,), -1, dtype=torch.int64)
        shape = torch.ones(frames, dtype=torch.float64)
        for gap, number in enumerate(ties):
            first, last = at[number], at[number + 1]
            span = torch.arange(first + 1, last + 1)
            owner[span] = gap
            shape[span] = torch.sin(math.pi * (span.double() - first - 0.5) / (last - first)).square()
        if circular:  # once round: from the last given place to the first, or from the first frame to itself
            owner[owner < 0], self.count = self.count, self.count + 1
            self.total = torch.cat([self.total, values[:1] - values[-1:]])
        owner[owner < 0] = self.count  # a last one that nobody looks at
        self.total, self.owner, self.shape = (x.to(device) for x in (self.total, owner, shape))

    def sums(self, steps: Tensor) -> Tensor:
        """Steps (B, frames, k) to their sums (B, gaps, k) float64."""
        out = torch.zeros(len(steps), self.count + 1, steps.shape[-1], dtype=torch.float64, device=steps.device)
        return out.index_add_(1, self.owner, steps.double())[:, :-1]


class Meeting:
    """Changes predictions so that the motion arrives; `correct` of `sinmdm.diffusion.sample`.

    Args:
        paths, meets: what is held by steps, and for each the values to meet.
        known, mask: (frames, size), as the sampler blends them into every prediction, normalised.
        normalizer: of the features.
        circular: whether the steps must also lead from the last frame back to the first.

    Raises:
        ValueError: two places that nothing generated lies between, and which the given steps do not lead between.
    """

    def __init__(
        self, paths: Sequence[Path], meets: Sequence[Meets], known: Tensor, mask: Tensor, normalizer: Normalizer,
        circular: bool = False,
    ) -> None:  # fmt: skip
        self.known, self.mask, self.normalizer = known, mask, normalizer
        self.paths = list(paths)
        self.gaps = [_Gaps(each, len(known), circular, known.device) for each in meets]
        self._check()

    def __call__(self, predicted: Tensor) -> Tensor:
        """(B, frames, size) predictions to ones that, blended with what is given, arrive."""
        for path, gaps in zip(self.paths, self.gaps, strict=True):
            if gaps.count:
                raw = self._blended(predicted)
                predicted = predicted + self._change(path, gaps, raw, *self._needed(path, gaps, raw))
        return predicted

    def _needed(self, path: Path, gaps: _Gaps, raw: Tensor) -> tuple[Tensor, Tensor]:
        """What the sums of raw features (B, frames, size) miss, and how far they go with extra steps of a gap's shape:
        both (B, gaps, k)."""
        missing = gaps.total - gaps.sums(path.steps(raw))
        if path.period is not None:
            missing = missing - path.period * (missing / path.period).round()
        return missing, self._reach(path, gaps, raw)

    def _change(self, path: Path, gaps: _Gaps, raw: Tensor, missing: Tensor, reach: Tensor) -> Tensor:
        """The change of predictions that makes up for what is missing."""
        speed = torch.where(reach > 0, missing / reach.clamp_min(1e-9), 0.0)
        speed = torch.cat([speed, torch.zeros_like(speed[:, :1])], 1)[:, gaps.owner]
        extra = (speed * gaps.shape[:, None]).to(raw.dtype)
        return path.change(raw, extra) / self.normalizer.std

    def _blended(self, predicted: Tensor) -> Tensor:
        """What the sampler makes of a prediction, in the motion's own units."""
        return self.normalizer.invert(self.known * self.mask + predicted * (1 - self.mask))

    def _reach(self, path: Path, gaps: _Gaps, raw: Tensor) -> Tensor:
        """How far each gap's sums (B, gaps, k) go with extra steps of the gap's shape."""
        before = path.steps(raw)
        each = []
        for k in range(before.shape[-1]):
            extra = torch.zeros_like(before)
            extra[..., k] = gaps.shape.to(before)
            after = path.steps(raw + path.change(raw, extra) * (1 - self.mask))
            each.append(gaps.sums(after - before)[..., k])
        return torch.stack(each, -1)

    def _check(self) -> None:
        predicted = torch.zeros_like(self.known)[None]
        for path, gaps in zip(self.paths, self.gaps, strict=True):
            if not gaps.count:
                continue
            raw = self._blended(predicted)
            missing, reach = self._needed(path, gaps, raw)
            stuck = (reach <= 0) & (missing.abs() > 1e-3 * (1 + gaps.total.abs()))
            if bool(stuck.any()):
                gap = int(stuck[0].any(-1).nonzero()[0, 0])
                frames = (gaps.owner == gap).nonzero().flatten()
                raise ValueError(
                    f"frames {int(frames[0])} to {int(frames[-1])} are given and lead elsewhere than the places to meet"
                )
            predicted = predicted + self._change(path, gaps, raw, missing, reach)
