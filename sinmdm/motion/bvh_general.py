"""The published system's layout of any BVH file (Raab et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .clip import Clip, ClipChunks
from .features import Group, Motion, require_frames
from .paths import Path, absolute_path
from .published import PublishedLayout


@dataclass(frozen=True)
class GeneralLayout(PublishedLayout):
    """The "bvh_general" layout of a clip of any skeleton.

    For each joint, in file order, and for each End Site with a length, behind its joint: 3 features of local
    translation in the file's units (the root's is its position), then the 6 or 4 of its local rotation. An End Site
    never turns and stays at its offset; in a decoded motion, joints without channels do the same.
    """

    kind: ClassVar[str] = "bvh_general"

    @classmethod
    def fit(cls, clip: Clip, representation: str = "6d") -> GeneralLayout:
        """The layout that holds `clip`.

        representation: "6d" or "quat".
        Raises: ValueError where it is another, or the clip has less than two frames.
        """
        require_frames(len(clip))
        return cls(clip.skeleton, clip.frame_time, representation)

    @property
    def size(self) -> int:
        return self._rest.numel()

    @cached_property
    def _joints(self) -> list[int]:
        """For each joint its row among those of joints and End Sites."""
        rows, row = [], 0
        for sites in self.skeleton.end_sites:
            rows.append(row)
            row += 1 + sum(map(any, sites))
        return rows

    @cached_property
    def _rest(self) -> Tensor:
        """(joints and End Sites, features of each) float64: offsets, unturned."""
        offsets = [
            offset
            for own, sites in zip(self.skeleton.offsets.tolist(), self.skeleton.end_sites, strict=True)
            for offset in (own, *filter(any, sites))
        ]
        return torch.tensor([[*offset, *self._rotation.identity] for offset in offsets], dtype=torch.float64)

    @property
    def _places(self) -> Tensor:
        """The features of each row."""
        return torch.arange(self.size).view(self._rest.shape)

    @cached_property
    def _rotations(self) -> Tensor:
        return self._places[:, 3:]

    @property
    def rotation_channels(self) -> Tensor:
        """As `PublishedLayout.rotation_channels`, of the joints without the End Sites."""
        channels = super().rotation_channels
        return channels[self._joints] if len(channels) else channels

    @property
    def joint_features(self) -> tuple[Tensor, ...]:
        """As `Layout.joint_features`; an End Site's belong to its joint."""
        ends = [*self._joints[1:], len(self._rest)]
        return tuple(self._places[row:end].flatten() for row, end in zip(self._joints, ends, strict=True))

    @property
    def paths(self) -> tuple[Path, ...]:
        return (absolute_path(slice(0, 3, 2)),)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The root's position, the other translations, rotations."""
        places = self._places
        return (slice(0, 3), places[1:, :3].flatten(), places[:, 3:].flatten())

    def encode(self, motion: Motion) -> Tensor:
        """As `Layout.encode`; a clip of the same skeleton and rate, of two frames or more."""
        clip = self._fitting(motion)
        rows = self._rest.repeat(len(clip), 1, 1)
        rows[:, self._joints] = torch.cat([clip.translations(), self._numbers(clip)], dim=-1)
        return rows.flatten(1).float()

    def decoder(self) -> Callable[[Tensor], Clip]:
        """As `Layout.decoder`; any numbers are read as a rotation."""
        clips = ClipChunks(self.skeleton, self.frame_time)

        def decode(features: Tensor) -> Clip:
            rows = self._checked(features).double().view(len(features), *self._rest.shape)[:, self._joints]
            return clips.append(self._rotation.matrices(rows[..., 3:]), rows[..., :3])

        return decode

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GeneralLayout:
        """Inverse of `to_dict`."""
        return cls(*cls._parts(data))
