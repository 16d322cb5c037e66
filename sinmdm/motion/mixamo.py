"""The published system's layout of people, elephants and crabs (Raab et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .clip import Clip, ClipChunks, rotation_groups
from .features import Group, Motion, interpolate_steps, require_frames, travelling
from .paths import Path, path_of
from .published import PublishedLayout
from .rigs import Rig, find_rig
from .rotations import principal_angles, quaternions_of_angles

_TALL = 10.0  # a root that its OFFSET puts higher is in centimetres


@dataclass(frozen=True)
class MixamoLayout(PublishedLayout):
    """The "mixamo" layout of a clip of one of the classes of skeletons in `rigs`; y is up.

    For J joints and n contacts of the class and r numbers of a rotation (6 or 4), the features are, in this order:

    - r J: local rotations;
    - r n: foot contacts, 1 where the joint hardly moved since the frame before, else 0, and r - 1 zeros after each;
    - 3: the root's x velocity, its y position and its z velocity, scaled units, per frame (v_t = p_t - p_{t-1},
      v_0 = v_1; v_0 is not integrated);
    - r - 3: zeros.

    first: the channel values of the clip's first frame. Decoded motions start where it is and keep what the features
    do not hold: the rotations of the other joints (fingers), and the translations of all but the root.
    Raises: ValueError where the skeleton is of no class, naming what it lacks, or `first` is no frame of it.
    """

    kind: ClassVar[str] = "mixamo"

    first: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._match, self._rest

    @classmethod
    def fit(cls, clip: Clip, representation: str = "6d") -> MixamoLayout:
        """The layout that holds `clip`.

        representation: "6d" or "quat".
        Raises: ValueError where it is another, the clip has less than two frames or its skeleton is of no class.
        """
        require_frames(len(clip))
        return cls(clip.skeleton, clip.frame_time, representation, tuple(clip.values[0].tolist()))

    @classmethod
    def thin(cls, motion: Motion, fps: float | None = 30.0) -> Motion:
        """The published rule, whatever `fps` is: 120 and 60 frames a second become 30, 100 becomes 50, 50 stays.

        With `fps` None the motion is as it is.
        """
        if fps is None or not isinstance(motion, Clip):
            return motion
        for limit in (0.0084, 0.017):
            if motion.frame_time < limit:
                motion = Clip(motion.skeleton, motion.values[::2], 2 * motion.frame_time)
        return motion

    @cached_property
    def _match(self) -> tuple[Rig, tuple[int, ...]]:
        return find_rig(self.skeleton.names)

    @property
    def rig(self) -> Rig:
        """The class of the skeleton."""
        return self._match[0]

    @property
    def joints(self) -> tuple[int, ...]:
        """For each joint of the class its index in the skeleton."""
        return self._match[1]

    @property
    def contacts(self) -> tuple[int, ...]:
        """For each contact its joint's index in the skeleton."""
        return tuple(self.joints[self.rig.joints.index(name)] for name in self.rig.contacts)

    @property
    def scale(self) -> float:
        """Scaled units in one of the file's."""
        return self.rig.scale * (0.01 if self.skeleton.offsets[0, 1] > _TALL else 1.0)

    @property
    def begin(self) -> tuple[float, float]:
        """x and z of the root in the first frame, in scaled units."""
        x, _, z = (self._rest.translations()[0, 0] * self.scale).tolist()
        return x, z

    @cached_property
    def _rest(self) -> Clip:
        return Clip(self.skeleton, np.array([self.first]), self.frame_time)

    @property
    def size(self) -> int:
        return self._root.stop + self._rotation.size - 3

    @property
    def _labels(self) -> slice:
        start, each = self._rotations.numel(), self._rotation.size
        return slice(start, start + each * len(self.rig.contacts), each)

    @property
    def _root(self) -> slice:
        return slice(self._labels.stop, self._labels.stop + 3)

    @property
    def _velocity(self) -> slice:
        return slice(self._root.start, self._root.stop, 2)

    @cached_property
    def _rotations(self) -> Tensor:
        each = self._rotation.size
        return torch.arange(each * len(self.rig.joints)).view(-1, each)

    @property
    def joint_features(self) -> tuple[Tensor, ...]:
        """As `Layout.joint_features`, in the skeleton's order; joints that the class lacks have none."""
        own: list[list[int]] = [[] for _ in self.skeleton.names]
        for joint, rotation in zip(self.joints, self._rotations.tolist(), strict=True):
            own[joint] += rotation
        each = self._rotation.size
        for place, joint in enumerate(self.contacts):
            own[joint] += range(self._labels.start + each * place, self._labels.start + each * (place + 1))
        own[self.joints[0]] += range(self._root.start, self.size)
        return tuple(torch.tensor(features, dtype=torch.int64) for features in own)

    @property
    def paths(self) -> tuple[Path, ...]:
        return (path_of(self._velocity, self.begin),)

    @property
    def unit(self) -> float:
        return self.scale

    def starting(self, motion: Motion) -> MixamoLayout:
        return replace(self, first=tuple(self._fitting(motion).values[0].tolist()))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Rotations, contacts, root velocity, root height, zeros."""
        height = slice(self._root.start + 1, self._root.start + 2)
        groups = (slice(0, self._labels.start), self._labels, self._velocity, height)
        held = torch.zeros(self.size, dtype=torch.bool)
        for group in groups:
            held[group] = True
        return (*groups, (~held).nonzero().squeeze(1))

    def _numbers(self, clip: Clip) -> Tensor:
        """As published, angles become quaternions about x, y and z; those of another order are first made such."""
        numbers = super()._numbers(clip)
        if self.representation == "quat":
            for order, (joints, _) in rotation_groups(clip.skeleton).items():
                if order != "XYZ":
                    angles = torch.from_numpy(principal_angles("XYZ", clip.rotations()[:, joints]))
                    numbers[:, joints] = quaternions_of_angles("XYZ", angles)
        return numbers

    def encode(self, motion: Motion) -> Tensor:
        """As `Layout.encode`; a clip of the same skeleton and rate, of two frames or more. Scaled units."""
        clip = self._fitting(motion)
        root = self.scale * clip.translations()[:, 0]
        bones = self.scale * torch.tensor(self.skeleton.offsets).repeat(len(clip), 1, 1)
        bones[:, 0] = root
        positions = self.skeleton.global_positions(clip.rotations(), bones)[:, list(self.contacts)]
        features = torch.zeros(len(clip), self.size, dtype=torch.float64)
        features[:, self._rotations] = self._numbers(clip)[:, list(self.joints)]
        features[1:, self._labels] = ((positions[1:] - positions[:-1]).norm(dim=-1) < self.rig.slow).double()
        steps = root[1:] - root[:-1]
        features[:, self._root] = torch.cat([steps[:1], steps])
        features[:, self._root.start + 1] = root[:, 1]
        return features.float()

    def decoder(self) -> Callable[[Tensor], Clip]:
        """As `Layout.decoder`; any numbers are read as a rotation, and the clip begins where the first frame is."""
        clips = ClipChunks(self.skeleton, self.frame_time)
        rotations, translations = self._rest.rotations(), self._rest.translations()
        way = travelling(translations[0, 0, [0, 2]])
        place = {joint: index for index, joint in enumerate(self.joints)}  # of a joint that stands for two, the latter

        def decode(features: Tensor) -> Clip:
            features = self._checked(features).double()
            turned = rotations.repeat(len(features), 1, 1, 1)
            numbers = features[:, self._rotations[list(place.values())]]
            turned[:, list(place)] = self._rotation.matrices(numbers)
            root = features[:, self._root] / self.scale
            placed = translations.repeat(len(features), 1, 1)
            placed[:, 0, [0, 2]] = way(root[:, [0, 2]])
            placed[:, 0, 1] = root[:, 1]
            return clips.append(turned, placed)

        return decode

    def resample(self, features: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
        """As `PublishedLayout.resample`; contacts stay in [0, 1], and the root goes the same way."""
        out = super().resample(features, positions, rate)
        out[..., self._velocity] = interpolate_steps(features[:, self._velocity], positions, rate)
        out[..., self._labels].clamp_(0, 1)
        return out

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "first": list(self.first)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MixamoLayout:
        """Inverse of `to_dict`."""
        return cls(*cls._parts(data), first=tuple(map(float, data["first"])))
