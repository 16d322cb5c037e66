"""HumanML3D features (Guo et al. 2022): people of 22 joints at 20 frames a second, 263 numbers a frame.

A file holds them raw, in metres and radians, or normalised by a data set's mean and std; nothing in it says which, so
that whoever reads one has to. Here they are always raw.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .features import ArrayLayout, Layout, Motion, interpolate, interpolate_steps, travelling
from .files import holds_objects, load_npy, write_motion
from .normalizer import Normalizer
from .paths import Path, change_in
from .rotations import orthonormal_6d

SIZE = 263
NAMES = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle"),
    *("spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder"),
    *("right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
)
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
_TURN, _WAY, _HEIGHT = slice(0, 1), slice(1, 3), slice(3, 4)
_PLACES, _ROTATIONS, _VELOCITIES, _CONTACTS = slice(4, 67), slice(67, 193), slice(193, 259), slice(259, 263)
_ARRAY = ArrayLayout(SIZE)
# Contacts are 0 or 1. What half a digit of bfloat16 makes of them, normalised and back, is nearer than this.
_ROUNDED = 0.01


@dataclass(frozen=True)
class HumanMLLayout(Layout):
    """The "humanml" layout of tensors (frames, 263) in raw units, y up. The features of a frame are, in this order:

    - 1: half the angle that the root's heading turns by until the next frame, in radians, about -y;
    - 2: how far the root goes along x and z until the next frame, metres, seen from the next frame's heading;
    - 1: the root's height;
    - 63: where joints 1 to 21 are, seen from the heading, the root's x and z taken off;
    - 126: the rotations of joints 1 to 21, two columns of the matrix each;
    - 66: how far joints 0 to 21 go until the next frame, seen from this frame's heading;
    - 4: contacts of the left heel and toe, then the right ones.

    Decoded motions are such tensors; `placer` has them begin above the origin, heading along z.
    """

    kind: ClassVar[str] = "humanml"
    contacts: ClassVar[tuple[int, ...]] = (7, 10, 8, 11)  # the joints of the last group

    frame_time = 0.05

    @classmethod
    def fit(cls, array: Tensor) -> HumanMLLayout:
        """The layout of `array`. Raises: ValueError where it is no (frames, 263) of two frames or more."""
        layout = cls()
        layout.encode(array)
        return layout

    @property
    def size(self) -> int:
        return SIZE

    @property
    def groups(self) -> tuple[slice, ...]:
        """As listed for the class."""
        return (_TURN, _WAY, _HEIGHT, _PLACES, _ROTATIONS, _VELOCITIES, _CONTACTS)

    @property
    def rotation_channels(self) -> Tensor:
        """(21, 6): those of joints 1 to 21. The root has a heading in place of a rotation."""
        return torch.arange(_ROTATIONS.start, _ROTATIONS.stop).view(-1, 6)

    @property
    def hierarchy(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return NAMES, PARENTS

    @property
    def joint_features(self) -> tuple[Tensor, ...]:
        """As `Layout.joint_features`, and each joint's velocity; the root has its heading, way and height."""
        own = [[*range(_VELOCITIES.start + 3 * joint, _VELOCITIES.start + 3 * joint + 3)] for joint in range(22)]
        own[0] += range(_HEIGHT.stop)
        for joint in range(1, 22):
            own[joint] += range(_PLACES.start + 3 * joint - 3, _PLACES.start + 3 * joint)
            own[joint] += range(_ROTATIONS.start + 6 * joint - 6, _ROTATIONS.start + 6 * joint)
        for place, joint in enumerate(self.contacts):
            own[joint].append(_CONTACTS.start + place)
        return tuple(torch.tensor(sorted(features)) for features in own)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The heading, in radians about +y, and the way over the ground, which all joints go along."""
        heading = Path(
            steps=lambda x: -2 * x[..., _TURN].roll(1, -2),
            change=lambda x, extra: change_in(x, _TURN, -extra.roll(-1, -2) / 2),
            begin=torch.zeros(1, dtype=torch.float64),
            features=torch.arange(_TURN.start, _TURN.stop),
            period=2 * np.pi,
        )

        def turned(x: Tensor, vectors: Tensor, sign: int) -> Tensor:
            """Vectors (..., frames, 2) by each frame's heading, or back."""
            angle = sign * heading.values(x)[..., 0]
            return _turned(vectors, angle.cos().to(vectors), angle.sin().to(vectors))

        def change(x: Tensor, extra: Tensor) -> Tensor:
            out = change_in(x, _WAY, turned(x, extra, -1).roll(-1, -2))
            for axis, along in zip((0, 2), turned(x, extra.roll(-1, -2), -1).unbind(-1), strict=True):
                out[..., _VELOCITIES.start + axis : _VELOCITIES.stop : 3] = along[..., None].to(x)
            return out

        way = Path(
            steps=lambda x: turned(x, x[..., _WAY].roll(1, -2), 1),
            change=change,
            begin=torch.zeros(2, dtype=torch.float64),
            features=torch.cat([torch.arange(group.start, group.stop) for group in (_WAY, _VELOCITIES)]),
        )
        return (heading, way)

    def placer(self) -> Callable[[Motion], Tensor]:
        """As `Layout.placer`; from where the joints are seen from the heading, not from their rotations."""
        before = torch.zeros(1, 3, dtype=torch.float64)
        turning, way = (travelling(torch.zeros(n, dtype=torch.float64)) for n in (1, 2))

        def place(motion: Motion) -> Tensor:
            nonlocal before
            if not isinstance(motion, Tensor):
                raise ValueError("this layout places the joints of an array (frames, 263), not of a clip")
            features = self._checked(motion).double()
            steps = torch.cat([before, features[:, :3]])  # what leads to each frame is in the frame before
            before = steps[-1:]
            angle = -2 * turning(steps[:-1, :1]).numpy()
            # Not by torch, whose last bit depends on how many frames come together.
            cosine, sine = torch.from_numpy(np.cos(angle)), torch.from_numpy(np.sin(angle))
            root = way(_turned(steps[:-1, 1:], cosine[:, 0], sine[:, 0]))
            joints = torch.cat([torch.zeros(len(features), 1, 3), features[:, _PLACES].unflatten(1, (-1, 3))], dim=1)
            joints[..., [0, 2]] = _turned(joints[..., [0, 2]], cosine, sine) + root[:, None]
            joints[:, 0, 1] = features[:, _HEIGHT.start]
            return joints

        return place

    def encode(self, motion: Motion) -> Tensor:
        """As `Layout.encode`; a tensor (frames, 263) of two frames or more."""
        return _ARRAY.encode(motion)

    def decoder(self) -> Callable[[Tensor], Motion]:
        """As `Layout.decoder`: the features, on the CPU in float32, contiguous."""
        return _ARRAY.decoder()

    def resample(self, features: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
        """As `Layout.resample`; rotations stay rotations, contacts in [0, 1], and the root goes the same way."""
        out = interpolate(features, positions)
        ends = positions + rate.to(positions).view(-1, 1) - 1  # the step that begins at a frame ends at the next
        for steps in (slice(_TURN.start, _WAY.stop), _VELOCITIES):
            out[..., steps] = interpolate_steps(features[:, steps], ends, rate)
        out[..., _ROTATIONS] = orthonormal_6d(out[..., _ROTATIONS].unflatten(-1, (-1, 6))).flatten(-2)
        out[..., _CONTACTS].clamp_(0, 1)
        return out

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HumanMLLayout:
        """Inverse of `to_dict`."""
        return cls()


def read_statistics(path: str | os.PathLike[str]) -> Tensor:
    """Mean.npy or Std.npy of HumanML3D: (263,) float32. Raises: ValueError where it is none; OSError."""
    array = load_npy(pathlib.Path(path)).float()
    if array.shape != (SIZE,) or not array.isfinite().all():
        raise ValueError(f"{path}: must be {SIZE} finite numbers, has shape {tuple(array.shape)}")
    return array


def read_humanml(
    path: str | os.PathLike[str],
    normalised: bool,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    *,
    generated: bool = False,
) -> Tensor:
    """A file of HumanML3D features in raw units: (frames, 263) float32.

    path: .npy of shape (frames, 263), (263, 1, frames) or (1, 263, frames); nothing is unpickled.
    normalised: whether the file holds (features - mean) / std in place of the features.
    mean, std: (263,) each, those that the file was normalised with (`read_statistics`); None for a raw file.
    generated: whether a model made the motion. Its contacts can be any numbers, so that what `normalised` says is
        believed.
    Raises: ValueError naming the file where it is none of these, or its foot contacts (0 or 1) and heights (positive)
    show that it is not what `normalised` says; OSError where it cannot be opened.
    """
    normalizer = _normalizer(normalised, mean, std)
    features = _frames(pathlib.Path(path))
    if generated:
        return features if normalizer is None else normalizer.invert(features)
    doubt = _unlike_raw(features)
    if normalizer is None:
        if doubt:
            raise ValueError(f"{path}: said to be raw, but it has {doubt}; if it is normalised, say so")
        return features
    if not doubt:
        raise ValueError(f"{path}: said to be normalised, but looks raw: contacts of 0 and 1, and positive heights")
    features = normalizer.invert(features)
    if doubt := _unlike_raw(features):
        raise ValueError(f"{path}: mean and std must be those it was normalised with; by these it has {doubt}")
    return features


def write_humanml(
    path: str | os.PathLike[str],
    features: Tensor,
    *,
    normalised: bool,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> None:
    """Raw features (frames, 263) to .npy of that shape, as they are or normalised; the arguments as `read_humanml`.

    Raises: ValueError where the features or the suffix are others, or mean and std do not go with `normalised`;
    OSError where it cannot be written.
    """
    normalizer = _normalizer(normalised, mean, std)
    features = _ARRAY.encode(features)
    write_motion(path, features if normalizer is None else normalizer.apply(features))


def _normalizer(normalised: bool, mean: Tensor | None, std: Tensor | None) -> Normalizer | None:
    """None for a raw file."""
    if not normalised:
        if mean is not None or std is not None:
            raise ValueError("mean and std go with a normalised file only; this one is said to be raw")
        return None
    if mean is None or std is None:
        raise ValueError("a normalised file needs mean and std: those that it was normalised with")
    for name, numbers in (("mean", mean), ("std", std)):
        if numbers.shape != (SIZE,):
            raise ValueError(f"{name} has shape {tuple(numbers.shape)}, must be ({SIZE},)")
    return Normalizer(mean.float(), std.float())


def _frames(path: pathlib.Path) -> Tensor:
    """(frames, 263) float32 from any of the forms."""
    if holds_objects(path):
        raise ValueError(
            f"{path}: holds Python objects, which could run code and are not opened. Where you trust the file and it "
            "is the published dict, convert it: numpy.save('motion.npy', "
            f"numpy.load({path.name!r}, allow_pickle=True).item()['motion_raw'][0])"
        )
    array = load_npy(path)
    shape = tuple(array.shape)
    if array.ndim == 3 and array.shape[1] == 1:
        array = array.transpose(0, 1)
    if array.ndim == 3 and len(array) == 1:
        array = array[0].T
    if array.ndim != 2 or array.shape[1] != SIZE or len(array) < 2:
        raise ValueError(
            f"{path}: shape is {shape}, must be (frames, {SIZE}), ({SIZE}, 1, frames) or (1, {SIZE}, "
            "frames), two frames or more"
        )
    if not (array := array.float()).isfinite().all():
        raise ValueError(f"{path}: the array has numbers that are not finite")
    return array.contiguous()


def _unlike_raw(features: Tensor) -> str | None:
    """What raw features do not have."""
    contacts = features[:, _CONTACTS].flatten()
    off = (contacts - contacts.round().clamp(0, 1)).abs()
    if off.amax() > _ROUNDED:
        return f"a foot contact of {contacts[off.argmax()].item():.3g}, where raw ones are 0 or 1"
    lowest = features[:, _HEIGHT].amin().item()
    return f"a root at height {lowest:.3g}, where raw ones are positive" if lowest <= 0 else None


def _turned(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Vectors (..., 2), x and z, about +y by an angle of that cosine and sine (...)."""
    x, z = vectors.unbind(-1)
    return torch.stack([x * cosine + z * sine, z * cosine - x * sine], dim=-1)
