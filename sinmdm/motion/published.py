"""What the published system's layouts of clips have in common (Raab et al. 2024): how they write a rotation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .clip import Clip
from .features import ClipLayout, interpolate
from .rotations import (
    continuous_quaternions,
    from_6d,
    from_quaternions,
    orthonormal_6d,
    to_6d,
    unit_quaternions,
)
from .skeleton import Skeleton


@dataclass(frozen=True)
class Representation:
    """A rotation as `len(identity)` numbers.

    matrices: any finite numbers (..., n) to rotation matrices (..., 3, 3). nearest: any to those of a rotation, the
    same shape. continuous: those of rotations (frames, ..., n) to ones that can be interpolated over the frames.
    """

    identity: tuple[float, ...]
    matrices: Callable[[Tensor], Tensor]
    nearest: Callable[[Tensor], Tensor]
    continuous: Callable[[Tensor], Tensor]

    @property
    def size(self) -> int:
        return len(self.identity)


REPRESENTATIONS = {
    "6d": Representation(
        identity=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        matrices=lambda numbers: from_6d(numbers).mT,  # rows, not columns
        nearest=orthonormal_6d,
        continuous=lambda numbers: numbers,
    ),
    "quat": Representation(
        identity=(1.0, 0.0, 0.0, 0.0),
        matrices=from_quaternions,
        nearest=unit_quaternions,
        continuous=continuous_quaternions,
    ),
}


@dataclass(frozen=True)
class PublishedLayout(ClipLayout):
    """A layout of clips whose rotations are written as `representation`.

    "6d": the first row of the matrix, then the second. "quat": (w, x, y, z), of either sign.
    Raises: ValueError where it is neither.
    """

    representation: str

    def __post_init__(self) -> None:
        if self.representation not in REPRESENTATIONS:
            raise ValueError(f"representation is {self.representation!r}, must be {' or '.join(REPRESENTATIONS)}")

    @property
    def _rotation(self) -> Representation:
        return REPRESENTATIONS[self.representation]

    @property
    @abstractmethod
    def _rotations(self) -> Tensor:
        """(n, numbers of a rotation) int64: the features that hold rotations."""

    def _numbers(self, clip: Clip) -> Tensor:
        """Rotations (frames, J, numbers of a rotation) float64 of a clip's joints."""
        return to_6d(clip.rotations().mT) if self.representation == "6d" else clip.quaternions()

    @property
    def rotation_channels(self) -> Tensor:
        """As `Layout.rotation_channels`; rows. Quaternions are no 6D rotations: with "quat" there are none."""
        return self._rotations if self.representation == "6d" else super().rotation_channels

    def resample(self, features: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
        """As `Layout.resample`; rotations stay rotations.

        Quaternions run on without a change of sign, so that at whole positions theirs may be the other one.
        """
        numbers = self._rotation.continuous(features[:, self._rotations])
        out = interpolate(features.index_copy(1, self._rotations.flatten(), numbers.flatten(1)), positions)
        out[..., self._rotations] = self._rotation.nearest(out[..., self._rotations])
        return out

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "skeleton": self.skeleton.to_dict(),
            "frame_time": self.frame_time,
            "representation": self.representation,
        }

    @staticmethod
    def _parts(data: dict[str, Any]) -> tuple[Skeleton, float, str]:
        """The fields of this class from what `to_dict` gives."""
        return Skeleton.from_dict(data["skeleton"]), float(data["frame_time"]), str(data["representation"])
