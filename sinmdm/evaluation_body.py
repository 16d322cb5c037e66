"""What an evaluation measures of a body in the world: sliding feet and the root's way, in lengths of its reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import metrics
from .evaluation_table import MAX_FPS, Row, spread_of
from .motion import Clip, HumanMLLayout, Layout, Motion, SkeletonLayout


def body_of(layout: Layout, motion: Motion) -> ClipBody | HumanMLBody | None:
    """The body of a run's layout and motion; None where it is an array that knows of none."""
    if isinstance(motion, Clip):
        return ClipBody.of(motion)
    return HumanMLBody.of(layout, motion) if isinstance(layout, HumanMLLayout) else None


@dataclass(frozen=True, eq=False)
class ClipBody:
    """The body of a clip, thinned to 30 frames a second as all that it is held against.

    layout: which joints are feet, and when they are in contact. root: of the clip, as `_root` gives it.
    """

    layout: SkeletonLayout
    reach: float
    root: Tensor

    @classmethod
    def of(cls, clip: Clip) -> ClipBody:
        clip = clip.thin(MAX_FPS)
        reach = clip.skeleton.reach(clip.translations().mean(dim=0).numpy())
        return cls(SkeletonLayout.fit(clip), reach, _root(clip, reach))

    def add_to(self, row: Row, motions: Sequence[Motion]) -> None:
        """Foot sliding, where the clip has feet, and the distributions of the root's speed and height."""
        thinned = [motion.thin(MAX_FPS) for motion in motions if isinstance(motion, Clip)]
        if self.layout.contacts:
            row["values"]["foot_sliding"] = spread_of(self.foot_sliding(motion) for motion in thinned)
        distances = torch.stack(
            [metrics.distribution_distance(_root(motion, self.reach)[None], self.root)[0] for motion in thinned]
        )
        for name, numbers in zip(("root speed", "root height"), distances.T.tolist(), strict=True):
            row["distribution_parts"].append({"name": name, **spread_of(numbers)})

    def foot_sliding(self, motion: Clip) -> float:
        layout = replace(self.layout, skeleton=motion.skeleton, frame_time=motion.frame_time)
        contacts = layout.encode(motion)[:, layout.groups[-1]].double()
        feet = motion.positions()[:, list(layout.contacts)] / self.reach
        return metrics.foot_sliding(feet, contacts, motion.frame_time).item()


@dataclass(frozen=True, eq=False)
class HumanMLBody:
    """The body of a motion in HumanML3D features, which hold the contacts of its feet."""

    layout: HumanMLLayout
    reach: float

    @classmethod
    def of(cls, layout: HumanMLLayout, motion: Tensor) -> HumanMLBody:
        _, parents = layout.hierarchy
        joints = layout.placer()(motion)
        bones = (joints[:, 1:] - joints[:, parents[1:]]).norm(dim=-1).mean(dim=0).tolist()
        ways = [0.0]
        for parent, length in zip(parents[1:], bones, strict=True):
            ways.append(ways[parent] + length)
        return cls(layout, max(ways) or 1.0)

    def add_to(self, row: Row, motions: Sequence[Motion]) -> None:
        """Foot sliding."""
        arrays = [motion for motion in motions if isinstance(motion, Tensor)]
        row["values"]["foot_sliding"] = spread_of(self.foot_sliding(motion) for motion in arrays)

    def foot_sliding(self, motion: Tensor) -> float:
        feet = self.layout.placer()(motion)[:, list(self.layout.contacts)] / self.reach
        return metrics.foot_sliding(feet, motion[:, self.layout.groups[-1]], self.layout.frame_time).item()


def _root(clip: Clip, reach: float) -> Tensor:
    """The root's speed over the ground and its height, in reaches a second and reaches: (frames - 1, 2)."""
    places = clip.translations()[:, 0] / reach
    speed = places[:, [0, 2]].diff(dim=0).norm(dim=1) / clip.frame_time
    return torch.stack([speed, places[1:, 1]], dim=1)
