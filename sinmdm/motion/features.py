"""Feature layouts: motions as float32 tensors (frames, size) a network can learn, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .clip import Clip, ClipChunks
from .paths import Path, path_of
from .rotations import from_6d, orthonormal_6d, to_6d
from .skeleton import Skeleton

Motion: TypeAlias = Clip | Tensor
Group: TypeAlias = slice | Tensor  # of features: what indexes the last dimension

# In lengths of the longest way from the root to a joint (Skeleton.reach), so that units and sizes do not matter.
# Held against people, an elephant and a crab: feet come out, hands and knees do not.
_STILL = 1e-5  # a translation that varies less is constant
_LOW = 0.07  # the lowest 5 % of a foot's heights lie at most so far above those of the lowest joint
_BAND = 0.03  # a foot in contact is at most so far above its lowest 5 %
_SLOW = 0.3  # and moves at most so far in a second
_SHARE = 0.1  # and is in contact for this share of the frames


class Layout(ABC):
    """What the `size` features of a frame mean.

    frame_time: seconds from frame to frame, None where unknown.
    """

    kind: ClassVar[str]
    frame_time: float | None

    @property
    @abstractmethod
    def size(self) -> int:
        """Features in a frame."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """Features that measure the same kind of thing in the same unit; together all of them, each once."""
        return (slice(0, self.size),)

    @property
    def rotation_channels(self) -> Tensor:
        """(J, 6) int64: the features that hold each joint's 6D rotation, joints in order; J is 0 where none do.

        Six numbers are two orthonormal vectors, one after the other: columns of the matrix or rows, as the layout says.
        """
        return torch.empty(0, 6, dtype=torch.int64)

    @classmethod
    def thin(cls, motion: Motion, fps: float | None = 30.0) -> Motion:
        """The motion at the rate that this kind of layout is learnt at: as it is, unless the kind says otherwise."""
        return motion

    @property
    def hierarchy(self) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
        """Names and parents of the joints that `placer` places; None where the features know of none."""
        return None

    def placer(self) -> Callable[[Motion], Tensor]:
        """Joint positions of one motion chunk by chunk: a function of what a `decoder` gave to (frames, J, 3) float64.

        Raises: ValueError where the features know of no joints.
        """
        raise ValueError(f"features of the layout {self.kind!r} know of no joints")

    @abstractmethod
    def encode(self, motion: Motion) -> Tensor:
        """Motion to float32 features (frames, size), in the motion's own units.

        Raises: ValueError where the motion does not fit the layout.
        """

    @property
    def joint_features(self) -> tuple[Tensor, ...]:
        """For each joint of `hierarchy` (n,) int64, the features that are its own: rotation, translation, contact, and
        of the root its way. Together they are all that a motion is decoded from, each once. Empty without joints."""
        return ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What a motion carries on from frame to frame, each after what it depends on: a heading before the way over
        the ground, which is last. Empty where nothing is known of that."""
        return ()

    @property
    def unit(self) -> float:
        """Of the features' units of length in one of the motion file's."""
        return 1.0

    def starting(self, motion: Motion) -> Layout:
        """The same features, decoded from where `motion`, one of this layout, begins."""
        return self

    def decode(self, features: Tensor) -> Motion:
        """Features (frames, size), also noisy ones, to a motion. Raises: ValueError as a `decoder`."""
        return self.decoder()(features)

    @abstractmethod
    def decoder(self) -> Callable[[Tensor], Motion]:
        """Decodes one motion chunk by chunk: a function of the next features (frames, size) to the next frames.

        The chunks, of one frame or more, together are what `decode` makes of the whole, to the bit.
        The function raises: ValueError where the shape is another or a number is not finite; the chunk then counts as
        not given.
        """

    def resample(self, features: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
        """Features at fractional frames: a batch of time-stretched windows of one motion.

        features: (F, size). positions: (B, W), frames of `features`, clamped to [0, F - 1].
        rate: (B,) frames of `features` that pass in one frame of the result; what is measured per frame scales with it.
        Returns (B, W, size) in features' dtype, by Catmull-Rom interpolation. At whole positions and rate 1 it gives
        the features themselves.
        """
        return interpolate(features, positions)

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-able, exact; `layout_from_dict` is the inverse."""

    def _checked(self, features: Tensor) -> Tensor:
        if features.ndim != 2 or features.shape[1] != self.size or not len(features):
            raise ValueError(f"features have shape {tuple(features.shape)}, must be (1 frame or more, {self.size})")
        features = features.detach().to("cpu")
        if not features.isfinite().all():
            raise ValueError("features must be finite")
        return features


@dataclass(frozen=True)
class ClipLayout(Layout):
    """A layout of clips of one skeleton at one rate."""

    skeleton: Skeleton
    frame_time: float

    @property
    def hierarchy(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return self.skeleton.names, self.skeleton.parents

    def placer(self) -> Callable[[Motion], Tensor]:
        """As `Layout.placer`."""
        return lambda clip: clip.positions() if isinstance(clip, Clip) else super(ClipLayout, self).placer()(clip)

    def _fitting(self, motion: Motion) -> Clip:
        """The motion, a clip of two frames or more of this skeleton and rate. Raises: ValueError where it is not."""
        if not isinstance(motion, Clip):
            raise ValueError("this layout holds a clip of a skeleton, not an array")
        require_frames(len(motion))
        if motion.skeleton != self.skeleton:
            raise ValueError("the clip has another skeleton than the layout (names, hierarchy, offsets and channels)")
        if abs(motion.frame_time / self.frame_time - 1) > 0.01:
            raise ValueError(f"the clip has {motion.fps:g} frames a second, the layout {1 / self.frame_time:g}")
        return motion


@dataclass(frozen=True)
class SkeletonLayout(ClipLayout):
    """The "sinmdm" layout of a clip of any skeleton of J joints; y is up. Features, in this order:

    - 2: the root's x and z velocity, units per frame (v_t = p_t - p_{t-1}, v_0 = v_1; v_0 is not integrated);
    - 1: the root's height y, units;
    - 6 J: local rotations, the first column of the matrix, then the second (Zhou et al. 2019, arXiv:1812.07035);
    - 3 each: local translations of `translated`, units;
    - 1 each: foot contacts of `contacts`, 1 on the ground and 0 off it.

    begin: x and z of the root in the first frame, where decoded motions start.
    rest: J local translations, kept by the joints that are not in `translated`.
    translated: joints below the root whose local translation changes in the clip.
    contacts: feet found in the clip, possibly none; ground: the height below which each of them can be in contact.
    """

    kind: ClassVar[str] = "sinmdm"

    begin: tuple[float, float]
    rest: tuple[tuple[float, float, float], ...]
    translated: tuple[int, ...]
    contacts: tuple[int, ...]
    ground: tuple[float, ...]

    @classmethod
    def fit(cls, clip: Clip) -> SkeletonLayout:
        """The layout that holds `clip`. Raises: ValueError where it has less than two frames."""
        require_frames(len(clip))
        skeleton, translations, positions = clip.skeleton, clip.translations(), clip.positions()
        rest = translations.mean(dim=0)
        reach = skeleton.reach(rest.numpy())
        spread = (translations.amax(dim=0) - translations.amin(dim=0)).amax(dim=-1)
        ends = sorted({*skeleton.leaves, *(max(skeleton.parents[leaf], 0) for leaf in skeleton.leaves)})
        lowest = positions[..., 1].quantile(0.05, dim=0)
        ground = lowest + _BAND * reach
        touching = _contacts(positions, clip.frame_time, reach, ground)
        feet = (lowest <= lowest.min() + _LOW * reach) & (touching.mean(dim=0) >= _SHARE)
        contacts = [joint for joint in ends if feet[joint]]
        x, _, z = positions[0, 0].tolist()
        return cls(
            skeleton=skeleton,
            frame_time=clip.frame_time,
            begin=(x, z),
            rest=_triples(rest.tolist()),
            translated=tuple(joint for joint in range(1, len(skeleton)) if spread[joint] > _STILL * reach),
            contacts=tuple(contacts),
            ground=tuple(ground[contacts].tolist()),
        )

    @property
    def size(self) -> int:
        return self.groups[-1].stop

    @cached_property
    def groups(self) -> tuple[slice, ...]:
        """Root velocity, root height, rotations, translations, contacts; the last two may be empty."""
        ends = torch.tensor([2, 1, 6 * len(self.skeleton), 3 * len(self.translated), len(self.contacts)]).cumsum(0)
        stops = ends.tolist()
        return tuple(slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False))

    @property
    def rotation_channels(self) -> Tensor:
        return torch.arange(self.groups[2].start, self.groups[2].stop).view(-1, 6)

    @property
    def joint_features(self) -> tuple[Tensor, ...]:
        """As `Layout.joint_features`; the root has its velocity and height."""
        velocity, height, _, translations, contacts = self.groups
        own = [[*channels] for channels in self.rotation_channels.tolist()]
        own[0] = [*range(velocity.start, height.stop), *own[0]]
        for place, joint in enumerate(self.translated):
            own[joint] += range(translations.start + 3 * place, translations.start + 3 * place + 3)
        for place, joint in enumerate(self.contacts):
            own[joint].append(contacts.start + place)
        return tuple(torch.tensor(features) for features in own)

    @property
    def paths(self) -> tuple[Path, ...]:
        return (path_of(self.groups[0], self.begin),)

    def starting(self, motion: Motion) -> SkeletonLayout:
        x, _, z = self._fitting(motion).slice(0, 1).translations()[0, 0].tolist()
        return replace(self, begin=(x, z))

    @classmethod
    def thin(cls, motion: Motion, fps: float | None = 30.0) -> Motion:
        """At most `fps` frames a second, as `Clip.thin`; None: as it is."""
        return motion if fps is None or not isinstance(motion, Clip) else motion.thin(fps)

    def encode(self, motion: Motion) -> Tensor:
        """As `Layout.encode`; a clip of the same skeleton and rate, of two frames or more."""
        motion = self._fitting(motion)
        translations, positions = motion.translations(), motion.positions()
        velocity = translations[1:, 0, [0, 2]] - translations[:-1, 0, [0, 2]]
        ground = torch.tensor(self.ground, dtype=torch.float64)
        return torch.cat(
            [
                torch.cat([velocity[:1], velocity]),
                translations[:, 0, 1:2],
                to_6d(motion.rotations()).flatten(1),
                translations[:, list(self.translated)].flatten(1),
                _contacts(positions[:, list(self.contacts)], motion.frame_time, self._reach, ground),
            ],
            dim=1,
        ).float()

    def decoder(self) -> Callable[[Tensor], Clip]:
        """As `Layout.decoder`; any 6D number is read as a rotation, and the clip begins at `begin`."""
        clips = ClipChunks(self.skeleton, self.frame_time)
        rest = torch.tensor(self.rest, dtype=torch.float64)
        way = travelling(torch.tensor(self.begin, dtype=torch.float64))

        def decode(features: Tensor) -> Clip:
            features = self._checked(features).double()
            velocity, height, rotations, translated, _ = (features[:, group] for group in self.groups)
            translations = rest.repeat(len(features), 1, 1)
            translations[:, 0, [0, 2]] = way(velocity)
            translations[:, 0, 1:2] = height
            translations[:, list(self.translated)] = translated.unflatten(1, (-1, 3))
            return clips.append(from_6d(rotations.unflatten(1, (-1, 6))), translations)

        return decode

    def resample(self, features: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
        """As `Layout.resample`; rotations stay rotations, contacts in [0, 1], and the root goes the same way."""
        velocity, _, rotations, _, contacts = self.groups
        out = interpolate(features, positions)
        out[..., velocity] = interpolate_steps(features[:, velocity], positions, rate)
        out[..., rotations] = orthonormal_6d(out[..., rotations].unflatten(-1, (-1, 6))).flatten(-2)
        out[..., contacts].clamp_(0, 1)
        return out

    @cached_property
    def _reach(self) -> float:
        return self.skeleton.reach(torch.tensor(self.rest, dtype=torch.float64).numpy())

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "skeleton": self.skeleton.to_dict(),
            "frame_time": self.frame_time,
            "begin": list(self.begin),
            "rest": [list(xyz) for xyz in self.rest],
            "translated": list(self.translated),
            "contacts": list(self.contacts),
            "ground": list(self.ground),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SkeletonLayout:
        """Inverse of `to_dict`."""
        x, z = data["begin"]
        return cls(
            skeleton=Skeleton.from_dict(data["skeleton"]),
            frame_time=float(data["frame_time"]),
            begin=(float(x), float(z)),
            rest=_triples(data["rest"]),
            translated=tuple(map(int, data["translated"])),
            contacts=tuple(map(int, data["contacts"])),
            ground=tuple(map(float, data["ground"])),
        )


@dataclass(frozen=True)
class ArrayLayout(Layout):
    """The "array" layout: a plain tensor (frames, features) whose features mean nothing to us."""

    kind: ClassVar[str] = "array"

    features: int
    frame_time: float | None = None

    def __post_init__(self) -> None:
        if self.features < 1:
            raise ValueError(f"features is {self.features}, must be at least 1")

    @classmethod
    def fit(cls, array: Tensor) -> ArrayLayout:
        """The layout of `array`. Raises: ValueError where it is no (frames, features) of two frames or more."""
        if array.ndim != 2:
            raise ValueError(f"the array has shape {tuple(array.shape)}, must be (frames, features)")
        require_frames(len(array))
        return cls(array.shape[1])

    @property
    def size(self) -> int:
        return self.features

    def encode(self, motion: Motion) -> Tensor:
        """As `Layout.encode`; a tensor (frames, size) of two frames or more."""
        if isinstance(motion, Clip):
            raise ValueError("this layout holds an array, not a clip of a skeleton")
        features = self._checked(motion).float()
        require_frames(len(features))
        return features

    def decoder(self) -> Callable[[Tensor], Tensor]:
        """As `Layout.decoder`: the features, on the CPU in float32, contiguous."""
        return lambda features: self._checked(features).float().contiguous()

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ArrayLayout:
        """Inverse of `to_dict`."""
        return cls(int(data["features"]), None if data["frame_time"] is None else float(data["frame_time"]))


def require_frames(frames: int) -> None:
    """Raises: ValueError where a motion has less than two frames."""
    if frames < 2:
        raise ValueError(f"the motion has {frames} frame{'' if frames == 1 else 's'}, at least 2 are needed")


def _triples(rows: list[list[float]]) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in rows)


def _contacts(positions: Tensor, frame_time: float, reach: float, ground: Tensor) -> Tensor:
    """1 where a joint is low and slow, else 0: positions (frames, n, 3), ground (n,) to (frames, n) of their dtype."""
    speed = (positions[1:] - positions[:-1]).norm(dim=-1) / (frame_time * reach)
    still = torch.cat([speed[:1], speed]) < _SLOW
    return (still & (positions[..., 1] < ground)).to(positions.dtype)


def travelling(begin: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of the next steps (frames, n) to the places (frames, n) they lead to, chunk after chunk.

    begin: (n,), the place in the first frame, whatever step comes with it.
    """
    place: Tensor | None = None

    def way(steps: Tensor) -> Tensor:
        nonlocal place
        if place is None:
            places = torch.cat([begin[None], steps[1:]]).cumsum(0)
        else:
            places = torch.cat([place, steps]).cumsum(0)[1:]
        place = places[-1:]
        return places

    return way


def interpolate_steps(steps: Tensor, positions: Tensor, rate: Tensor) -> Tensor:
    """Steps (F, n) a frame, as `Layout.resample`: (B, W, n), `rate` times as long.

    A step belongs to the middle of the time that ends at its frame, so that it is taken there.
    """
    rate = rate.to(steps).view(-1, 1)
    return interpolate(steps, positions + (1 - rate) / 2) * rate.unsqueeze(-1)


def interpolate(features: Tensor, positions: Tensor) -> Tensor:
    """Catmull-Rom through features (F, size) at positions (B, W), ends held: (B, W, size), one pass over memory."""
    last = len(features) - 1
    positions = positions.clamp(0, last)
    frame = positions.floor()
    f = (positions - frame).to(features.dtype)
    weights = torch.stack(
        [((2 - f) * f - 1) * f / 2, ((3 * f - 5) * f * f + 2) / 2, ((4 - 3 * f) * f + 1) * f / 2, (f - 1) * f * f / 2],
        dim=-1,
    )
    taps = (frame.long().unsqueeze(-1) + torch.arange(-1, 3, device=positions.device)).clamp(0, last)
    blended = F.embedding_bag(taps.view(-1, 4), features, per_sample_weights=weights.view(-1, 4), mode="sum")
    return blended.view(*positions.shape, features.shape[1])
