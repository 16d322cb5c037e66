"""A rig: named joints, their tree, offsets and channels; and forward kinematics over it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHANNELS = ("Xposition", "Yposition", "Zposition", "Xrotation", "Yrotation", "Zrotation")


@dataclass(frozen=True, eq=False)
class Skeleton:
    """A tree of J joints in file order (depth first, each joint before its children).

    names: any text without line breaks or braces; duplicates are allowed, nothing is looked up by name.
    parents: index of each joint's parent, -1 for the root, which is joint 0.
    offsets: (J, 3) float64, read-only, each joint from its parent in the file's units.
    channels: each joint's channel names in file order, `CHANNELS` spelling, none twice in a joint.
    end_sites: each joint's End Site offsets, usually none or one.

    Raises: ValueError where the parts do not make one such tree.
    """

    names: tuple[str, ...]
    parents: tuple[int, ...]
    offsets: np.ndarray = field(repr=False)
    channels: tuple[tuple[str, ...], ...] = field(repr=False)
    end_sites: tuple[tuple[tuple[float, float, float], ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        joints = len(self.names)
        offsets = np.array(self.offsets, dtype=np.float64)
        offsets.setflags(write=False)
        object.__setattr__(self, "offsets", offsets)
        if joints == 0:
            raise ValueError("a skeleton needs at least one joint")
        if not len(self.parents) == len(self.channels) == len(self.end_sites) == joints:
            raise ValueError(
                f"{joints} names, {len(self.parents)} parents, {len(self.channels)} channel lists and "
                f"{len(self.end_sites)} End Site lists; all must be as many as the joints"
            )
        if offsets.shape != (joints, 3):
            raise ValueError(f"offsets have shape {offsets.shape}, must be ({joints}, 3)")
        if not (np.isfinite(offsets).all() and np.isfinite([xyz for sites in self.end_sites for xyz in sites]).all()):
            raise ValueError("offsets must be finite")
        path: list[int] = []
        for joint, (name, parent) in enumerate(zip(self.names, self.parents, strict=True)):
            if not name or name != name.strip() or re.search(r"[{}\r\n]", name):
                raise ValueError(f"joint {joint} is named {name!r}; a name is stripped text, no braces or line breaks")
            while path and path[-1] != parent:
                path.pop()
            if (not path and joint) or (joint == 0 and parent != -1):
                raise ValueError(f"joint {joint} ({name}) has parent {parent}; joints must be one tree, depth first")
            path.append(joint)
            own = self.channels[joint]
            if set(own) - set(CHANNELS) or len(set(own)) < len(own):
                raise ValueError(f"joint {joint} ({name}) has channels {own}; each may be one of {CHANNELS}, once")

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Skeleton) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.names, self.parents, self.channels))

    @property
    def channel_count(self) -> int:
        """Numbers in a frame."""
        return sum(map(len, self.channels))

    @cached_property
    def channel_slices(self) -> tuple[slice, ...]:
        """Where each joint's channels lie in a frame."""
        ends = np.cumsum([len(own) for own in self.channels]).tolist()
        return tuple(slice(end - len(own), end) for own, end in zip(self.channels, ends, strict=True))

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Joints by depth: the root, its children, theirs, ..."""
        depths = [0] * len(self)
        for joint in range(1, len(self)):
            depths[joint] = depths[self.parents[joint]] + 1
        return tuple(
            tuple(joint for joint, depth in enumerate(depths) if depth == level) for level in range(max(depths) + 1)
        )

    @cached_property
    def leaves(self) -> tuple[int, ...]:
        """Joints that no joint hangs on."""
        return tuple(sorted(set(range(len(self))) - set(self.parents)))

    def reach(self, translations: np.ndarray | None = None) -> float:
        """Length of the longest way from the root to a joint (offsets replaced by `translations` (J, 3) if given).

        The skeleton's size where a length is to be measured in skeletons; 1 where every bone has length 0.
        """
        lengths = np.linalg.norm(self.offsets if translations is None else translations, axis=-1)
        ways = np.zeros(len(self))
        for joint in range(1, len(self)):
            ways[joint] = ways[self.parents[joint]] + lengths[joint]
        return float(ways.max()) or 1.0

    def global_transforms(self, rotations: Tensor, translations: Tensor) -> tuple[Tensor, Tensor]:
        """Local rotations (..., J, 3, 3) and translations (..., J, 3) to global ones, of the same shapes."""
        turned, placed = torch.empty_like(rotations), torch.empty_like(translations)
        turned[..., 0, :, :], placed[..., 0, :] = rotations[..., 0, :, :], translations[..., 0, :]
        for level in self.levels[1:]:
            own, parents = list(level), [self.parents[joint] for joint in level]
            frame = turned[..., parents, :, :]
            turned[..., own, :, :] = frame @ rotations[..., own, :, :]
            placed[..., own, :] = placed[..., parents, :] + (frame @ translations[..., own, :, None]).squeeze(-1)
        return turned, placed

    def global_positions(self, rotations: Tensor, translations: Tensor) -> Tensor:
        """Positions (..., J, 3) of the joints, from local rotations (..., J, 3, 3) and translations (..., J, 3)."""
        return self.global_transforms(rotations, translations)[1]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact."""
        return {
            "names": list(self.names),
            "parents": list(self.parents),
            "offsets": self.offsets.tolist(),
            "channels": [list(own) for own in self.channels],
            "end_sites": [[list(site) for site in sites] for sites in self.end_sites],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Skeleton:
        """Inverse of `to_dict`. Raises: ValueError naming what is missing or wrong."""
        try:
            return cls(
                names=tuple(data["names"]),
                parents=tuple(int(parent) for parent in data["parents"]),
                offsets=np.array(data["offsets"], dtype=np.float64).reshape(-1, 3),
                channels=tuple(tuple(own) for own in data["channels"]),
                end_sites=tuple(tuple((x, y, z) for x, y, z in sites) for sites in data["end_sites"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a skeleton: {error!r}") from error
