"""A motion clip: a skeleton and its channel values over time."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import roma
import torch
from torch import Tensor

from . import bvh
from .atomic import replacing
from .rotations import AXES, principal_angles, quaternions_of_angles
from .skeleton import Skeleton


@dataclass(frozen=True, eq=False)
class Clip:
    """`values` (frames, channels) float64 of `skeleton`'s channels, in file order; angles in degrees.

    frame_time: seconds from frame to frame.
    Raises: ValueError where the shapes disagree, a value is not finite, or the frame time is not positive.
    """

    skeleton: Skeleton
    values: np.ndarray = field(repr=False)
    frame_time: float

    def __post_init__(self) -> None:
        values = np.asarray(self.values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "frame_time", float(self.frame_time))
        if values.ndim != 2 or values.shape[1] != self.skeleton.channel_count or not len(values):
            raise ValueError(
                f"values have shape {values.shape}, must be (1 frame or more, {self.skeleton.channel_count} channels)"
            )
        if not np.isfinite(values).all():
            raise ValueError("values must be finite")
        if not (math.isfinite(self.frame_time) and self.frame_time > 0):
            raise ValueError(f"frame_time is {self.frame_time}, must be positive seconds")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def names(self) -> tuple[str, ...]:
        return self.skeleton.names

    @property
    def parents(self) -> tuple[int, ...]:
        return self.skeleton.parents

    @property
    def offsets(self) -> np.ndarray:
        return self.skeleton.offsets

    @property
    def fps(self) -> float:
        """Frames per second."""
        return 1.0 / self.frame_time

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Clip:
        """Read a BVH file, UTF-8 or else Latin-1.

        Raises: BVHError naming file and line; OSError where it cannot be opened.
        """
        data = Path(path).read_bytes()
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        skeleton, frame_time, values = bvh.parse(text, os.fspath(path))
        return cls(skeleton, values, frame_time)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a BVH file, whole or not at all. Raises: OSError where it cannot be written."""
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.write(bvh.header(self.skeleton, len(self), self.frame_time))
            file.writelines(bvh.rows(self.values))

    def rotations(self) -> Tensor:
        """Local rotation matrices (frames, J, 3, 3) float64: the product of the rotation channels as printed."""
        out = torch.eye(3, dtype=torch.float64).repeat(len(self), len(self.skeleton), 1, 1)
        for order, (joints, columns) in rotation_groups(self.skeleton).items():
            angles = torch.from_numpy(self.values[:, columns])
            out[:, joints] = roma.euler_to_rotmat(order, angles, degrees=True)
        return out

    def quaternions(self) -> Tensor:
        """Local rotations as unit quaternions (frames, J, 4) float64, (w, x, y, z), with the signs of the angles.

        The product, as printed, of (cos a/2, sin a/2) of each rotation channel's angle a: where the angles run on, so
        do the quaternions, and a whole turn changes the sign.
        """
        out = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(len(self), len(self.skeleton), 1)
        for order, (joints, columns) in rotation_groups(self.skeleton).items():
            out[:, joints] = quaternions_of_angles(order, torch.from_numpy(self.values[:, columns]))
        return out

    def translations(self) -> Tensor:
        """Local translations (frames, J, 3) float64: the offsets, replaced by what position channels there are."""
        out = np.tile(self.offsets, (len(self), 1, 1))
        joints, axes, columns = _position_channels(self.skeleton)
        out[:, joints, axes] = self.values[:, columns]
        return torch.from_numpy(out)

    def positions(self, global_: bool = True) -> Tensor:
        """Joint positions (frames, J, 3) float64: in the world, or (global_=False) relative to the root joint."""
        positions = self.skeleton.global_positions(self.rotations(), self.translations())
        return positions if global_ else positions - positions[:, :1]

    def slice(self, start: int, stop: int | None = None) -> Clip:
        """Frames start to stop (exclusive; None: the end). Raises: ValueError where none is left."""
        return Clip(self.skeleton, self.values[start:stop], self.frame_time)

    def thin(self, max_fps: float = 30.0) -> Clip:
        """Every n-th frame from the first, n the smallest that leaves at most `max_fps` frames a second (2 % grace).

        120 and 60 become 30, 50 becomes 25, 30 and less stay.
        """
        step = max(1, math.ceil(self.fps / (1.02 * max_fps)))
        return Clip(self.skeleton, self.values[::step], self.frame_time * step)

    def placed(self, x: float, z: float, heading: float = 0.0) -> Clip:
        """The same motion elsewhere: the root begins over (x, z) of the ground, and all is turned by `heading`.

        x, z: in the file's units. heading: degrees about the vertical axis through the start, from +z towards +x: root
        position and root rotation turn, heights and all else stay. Angles run on without jumps; with heading 0 they
        are those of this clip.
        Raises: ValueError where a number is not finite, the root has no X and Z position channels, or its rotation
        channels cannot hold a turn about y (they must be three, or begin with Y) and the heading is not 0.
        """
        if not np.isfinite([x, z, heading]).all():
            raise ValueError(f"x, z and heading must be finite, got {x}, {z} and {heading}")
        root, own = self.skeleton.names[0], self.skeleton.channels[0]
        if not {"Xposition", "Zposition"} <= set(own):
            raise ValueError(f"the root {root!r} has no X and Z position channels, so that its motion cannot be placed")
        values = self.values.copy()
        ground = [own.index("Xposition"), own.index("Zposition")]
        way = values[:, ground] - values[:1, ground]
        if heading:
            turn = math.radians(heading)
            way = way @ np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
            columns = [column for column, name in enumerate(own) if name.endswith("rotation")]
            order = "".join(own[column][0] for column in columns)
            if order.startswith("Y"):
                values[:, columns[0]] += heading
            elif len(order) == 3:
                about_y = roma.euler_to_rotmat("Y", torch.tensor([heading], dtype=torch.float64), degrees=True)
                rotations = roma.euler_to_rotmat(order, torch.from_numpy(values[:, columns]), degrees=True)
                values[:, columns] = _Angles(order).append((about_y @ rotations)[:, None])[:, 0]
            else:
                raise ValueError(
                    f"the root {root!r} has the rotation channels {order or 'none'!r}, which cannot hold a turn by "
                    f"{heading:g} degrees about y: they must be three, or begin with Y"
                )
        values[:, ground] = way + np.array([x, z])
        return Clip(self.skeleton, values, self.frame_time)

    @classmethod
    def from_motion(cls, skeleton: Skeleton, rotations: Tensor, translations: Tensor, frame_time: float) -> Clip:
        """Clip from local rotation matrices (frames, J, 3, 3) and translations (frames, J, 3).

        Angles follow each joint's own channel order and run on without jumps from frame to frame. Of what a joint has
        no channel for nothing is kept: with one or two rotation channels it takes the leading angles of the order
        completed by the missing axes (exact where the rotation can be had from them), with none it stays unrotated.
        Raises: ValueError where shapes disagree with the skeleton or values are not finite.
        """
        return ClipChunks(skeleton, frame_time).append(rotations, translations)


class ClipChunks:
    """`Clip.from_motion` of a motion that comes chunk by chunk: the clips together are that of the whole, to the bit.

    frame_time: seconds from frame to frame.
    """

    def __init__(self, skeleton: Skeleton, frame_time: float) -> None:
        self._skeleton = skeleton
        self._frame_time = frame_time
        self._groups = [(_Angles(order), *group) for order, group in rotation_groups(skeleton).items()]

    def append(self, rotations: Tensor, translations: Tensor) -> Clip:
        """The clip of the next frames: their rotations (frames, J, 3, 3) and translations (frames, J, 3).

        Raises: ValueError as `Clip.from_motion`; the chunk then counts as not given.
        """
        joints = len(self._skeleton)
        shape = (len(rotations), joints, 3)
        if tuple(rotations.shape) != (*shape, 3) or tuple(translations.shape) != shape or not len(rotations):
            raise ValueError(
                f"rotations have shape {tuple(rotations.shape)} and translations {tuple(translations.shape)}, "
                f"must be (frames, {joints}, 3, 3) and (frames, {joints}, 3), one frame or more"
            )
        rotations, translations = (tensor.detach().to("cpu", torch.float64) for tensor in (rotations, translations))
        if not (rotations.isfinite().all() and translations.isfinite().all()):
            raise ValueError("rotations and translations must be finite")
        values = np.zeros((len(rotations), self._skeleton.channel_count))
        for angles, turning, columns in self._groups:
            values[:, columns] = angles.append(rotations[:, turning])
        moving, axes, places = _position_channels(self._skeleton)
        values[:, places] = translations.numpy()[:, moving, axes]
        return Clip(self._skeleton, values, self._frame_time)


def rotation_groups(skeleton: Skeleton) -> dict[str, tuple[list[int], list[list[int]]]]:
    """By order of rotation axes ('ZXY', 'Y', ...): the joints with that order, and each one's columns of values."""
    groups: dict[str, tuple[list[int], list[list[int]]]] = defaultdict(lambda: ([], []))
    for joint, (own, place) in enumerate(zip(skeleton.channels, skeleton.channel_slices, strict=True)):
        turns = [(name[0], place.start + index) for index, name in enumerate(own) if name.endswith("rotation")]
        if turns:
            joints, columns = groups["".join(axis for axis, _ in turns)]
            joints.append(joint)
            columns.append([column for _, column in turns])
    return dict(groups)


def _position_channels(skeleton: Skeleton) -> tuple[list[int], list[int], list[int]]:
    """Joint, axis (0 to 2) and column of values of every position channel."""
    found = [
        (joint, AXES.index(name[0]), place.start + index)
        for joint, (own, place) in enumerate(zip(skeleton.channels, skeleton.channel_slices, strict=True))
        for index, name in enumerate(own)
        if name.endswith("position")
    ]
    return [joint for joint, _, _ in found], [axis for _, axis, _ in found], [column for _, _, column in found]


class _Angles:
    """Angles about the axes of `order`, continuous over the frames of all chunks.

    A rotation has two triples of angles, (a, b, c) and (a + 180, 180 - b, c + 180), each up to whole turns. Going from
    one to the other keeps distances, so that which of the two a frame should take depends on its neighbour alone.
    """

    def __init__(self, order: str) -> None:
        self._order = order
        # Of the latest frame: the first triple, whether the other one was taken, and whole turns added to it.
        self._latest: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def append(self, rotations: Tensor) -> np.ndarray:
        """Degrees (frames, n, len(order)) of the next rotations (frames, n, 3, 3), float64."""
        used = len(self._order)
        following = principal_angles(self._order + "".join(axis for axis in AXES if axis not in self._order), rotations)
        if self._latest is None:
            joints = following.shape[1]
            self._latest = following[:1], np.zeros((1, joints), dtype=bool), np.zeros((1, joints, used))
        latest, latest_swapped, latest_turns = self._latest
        first = np.concatenate([latest, following])
        other = np.stack([first[..., 0] + 180.0, 180.0 - first[..., 1], first[..., 2] + 180.0], axis=-1)
        if used == 3:
            stay = np.abs(_wrapped(first[1:] - first[:-1])).sum(-1)
            swap = np.abs(_wrapped(other[1:] - first[:-1])).sum(-1)
            swapped = np.logical_xor.accumulate(np.concatenate([latest_swapped, swap < stay]))
        else:
            swapped = np.abs(_wrapped(other[..., 2])) < np.abs(_wrapped(first[..., 2]))
        angles = np.where(swapped[..., None], other, first)[..., :used]
        jumps = np.rint((angles[:-1] - angles[1:]) / 360.0)
        turns = np.cumsum(np.concatenate([latest_turns, jumps]), axis=0)  # whole numbers: their sums are exact
        self._latest = first[-1:], swapped[-1:], turns[-1:]
        return (angles + 360.0 * turns)[1:]


def _wrapped(degrees: np.ndarray) -> np.ndarray:
    return (degrees + 180.0) % 360.0 - 180.0
