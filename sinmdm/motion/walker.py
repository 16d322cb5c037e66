"""A built-in clip: a many-legged animal walking about, made of formulas and a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import roma
import torch

from .clip import Clip
from .skeleton import Skeleton

# Lengths in body lengths, angles in radians, times in seconds; y is up, the animal looks along +z.
_HEIGHT = 0.34
_COXA, _FEMUR, _TIBIA, _TOE = 0.12, 0.42, 0.52, 0.06
_RAISED, _LOWERED = 0.75, 1.15  # how far femur and tibia point up and down in the rest pose
_STRIDE = 0.55
_STANCE = 0.62  # share of a cycle a foot is on the ground
_LIFT = 0.16
_TAIL = 5
_STEP = 1 / 240  # of the path's integration


@dataclass(frozen=True)
class _Gait:
    """The body's way over time: time, gait phase in cycles, ground position x and z, heading; all (n,)."""

    time: np.ndarray
    phase: np.ndarray
    x: np.ndarray
    z: np.ndarray
    heading: np.ndarray

    def at(self, time: np.ndarray) -> _Gait:
        ways = (self.phase, self.x, self.z, self.heading)
        return _Gait(time, *(np.interp(time, self.time, way) for way in ways))

    def place(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Ground points given in the body's frame to the world: (..., 3)."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return np.stack([self.x + cos * x + sin * z, np.zeros_like(x), self.z - sin * x + cos * z], axis=-1)


def walker(legs: int = 8, seconds: float = 8.0, fps: float = 30.0, seed: int = 0) -> Clip:
    """A clip of an animal with `legs` legs that walks, turns, changes speed, looks round and wags its tail.

    Its feet stay where they are while they stand. The same arguments give the same clip.
    Raises: ValueError where legs is not even and positive, or the clip would have no frame.
    """
    frames = round(seconds * fps)
    if legs < 2 or legs % 2:
        raise ValueError(f"legs is {legs}, must be even and at least 2")
    if frames < 1:
        raise ValueError(f"{seconds} seconds at {fps} frames a second make no frame")
    rng = np.random.default_rng(seed)
    angles, hips, homes = _stance(legs)
    skeleton = _skeleton(angles, hips)
    path = _path(rng, seconds)
    now = path.at(np.arange(frames) / fps)
    sway = 2 * np.pi * now.phase

    body = np.stack(
        [
            now.x + 0.02 * np.sin(sway) * np.cos(now.heading),
            _HEIGHT + 0.015 * np.sin(2 * sway) + 0.04 * _wander(rng, now.time, 0.1, 0.23),
            now.z - 0.02 * np.sin(sway) * np.sin(now.heading),
        ],
        axis=-1,
    )
    pitch = 0.04 * np.sin(2 * sway + 1.0) + 0.05 * _wander(rng, now.time, 0.13, 0.31)
    roll = 0.06 * np.sin(sway + 0.4)
    attitude = _turn("YXZ", now.heading, pitch, roll)

    feet = _feet(rng, path, now, homes)
    reach = np.einsum("fji,flj->fli", attitude, feet - body[:, None]) - hips
    swing, femur, tibia = _inverse_kinematics(reach, angles)

    rotations = np.tile(np.eye(3), (frames, len(skeleton), 1, 1))
    rotations[:, 0] = attitude
    look = 0.5 * _wander(rng, now.time, 0.17, 0.41)
    nod = 0.12 * np.sin(2 * sway) + 0.25 * _wander(rng, now.time, 0.21, 0.37)
    for joint in (1, 2):
        rotations[:, joint] = _turn("YXZ", 0.6 * look, 0.6 * nod, 0.2 * look)
    wag = 1.0 + 0.5 * _wander(rng, now.time, 0.15, 0.29)
    for link in range(_TAIL):
        rotations[:, 3 + link] = _turn(
            "YXZ", 0.22 * wag * np.sin(sway - 0.8 * link), 0.08 * np.sin(2 * sway - 0.8 * link) - 0.08, 0 * sway
        )
    hinge = np.stack([-np.sin(angles), np.zeros(legs), np.cos(angles)], axis=-1)
    first = 3 + _TAIL
    rotations[:, first::4] = _about(np.array([0.0, 1.0, 0.0]), swing)
    rotations[:, first + 1 :: 4] = _about(hinge, femur)
    rotations[:, first + 2 :: 4] = _about(hinge, tibia)
    rotations[:, first + 3 :: 4] = _about(hinge, -femur - tibia)

    translations = np.tile(skeleton.offsets, (frames, 1, 1))
    translations[:, 0] = body
    return Clip.from_motion(skeleton, torch.from_numpy(rotations), torch.from_numpy(translations), 1 / fps)


def _stance(legs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each leg's direction (legs,), its hip in the body's frame (legs, 3), and where its foot rests below (legs, 2)."""
    along = np.repeat(np.linspace(1, -1, legs // 2) if legs > 2 else np.zeros(1), 2)
    side = np.tile([1.0, -1.0], legs // 2)
    angles = np.arctan2(0.62 * along, 0.62 * side)
    hips = np.stack([0.16 * side, 0 * side, 0.34 * along], axis=-1)
    spread = _COXA + 0.52
    homes = hips[:, [0, 2]] + spread * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return angles, hips, homes


def _skeleton(angles: np.ndarray, hips: np.ndarray) -> Skeleton:
    names, parents = ["Body", "Neck", "Head"], [-1, 0, 1]
    offsets: list[np.ndarray | list[float]] = [[0, _HEIGHT, 0], [0, 0.06, 0.48], [0, 0.08, 0.16]]
    end_sites: list[tuple[tuple[float, float, float], ...]] = [(), (), ((0.0, 0.0, 0.22),)]
    for link in range(_TAIL):
        names.append(f"Tail{link + 1}")
        parents.append(len(parents) - 1 if link else 0)
        offsets.append([0, 0.02, -0.14] if link else [0, 0.04, -0.46])
        end_sites.append(((0.0, 0.02, -0.14),) if link == _TAIL - 1 else ())
    for leg, (angle, hip) in enumerate(zip(angles, hips, strict=True)):
        out, up = np.array([np.cos(angle), 0, np.sin(angle)]), np.array([0.0, 1.0, 0.0])
        side = "LR"[leg % 2] + str(leg // 2 + 1)
        start = len(names)
        names += [f"{side}_{part}" for part in ("Hip", "Femur", "Tibia", "Foot")]
        parents += [0, start, start + 1, start + 2]
        femur = _FEMUR * (np.cos(_RAISED) * out + np.sin(_RAISED) * up)
        tibia = _TIBIA * (np.cos(_LOWERED) * out - np.sin(_LOWERED) * up)
        offsets += [hip, _COXA * out, femur, tibia]
        x, _, z = (_TOE * out).tolist()
        end_sites += [(), (), (), ((x, 0.0, z),)]
    turns = ("Yrotation", "Xrotation", "Zrotation")
    channels = (("Xposition", "Yposition", "Zposition", *turns), *((turns,) * (len(names) - 1)))
    return Skeleton(tuple(names), tuple(parents), np.array(offsets, dtype=np.float64), channels, tuple(end_sites))


def _wander(rng: np.random.Generator, time: np.ndarray, *rates: float) -> np.ndarray:
    """A slow signal within [-1, 1]: waves of the given rates in hertz, with drawn phases and slightly drawn rates."""
    phases, stretch = rng.uniform(0, 2 * np.pi, len(rates)), rng.uniform(0.85, 1.15, len(rates))
    waves = np.sin(2 * np.pi * time[:, None] * (np.array(rates) * stretch) + phases)
    return waves.mean(axis=1)


def _path(rng: np.random.Generator, seconds: float) -> _Gait:
    """The walk from some cycles before the clip to some after it, at the origin when it begins."""
    margin = 4.0
    time = np.arange(-margin, seconds + margin, _STEP)
    speed = 0.75 + 0.35 * _wander(rng, time, 0.12, 0.27)
    heading = np.cumsum(0.9 * _wander(rng, time, 0.07, 0.16)) * _STEP
    ways = [np.cumsum(way) * _STEP for way in (speed / _STRIDE, speed * np.sin(heading), speed * np.cos(heading))]
    phase, x, z = (way - np.interp(0, time, way) for way in ways)
    return _Gait(time, phase, x, z, heading)


def _feet(rng: np.random.Generator, path: _Gait, now: _Gait, homes: np.ndarray) -> np.ndarray:
    """Feet in the world (frames, legs, 3): each stands where its home is at half of its stance, then swings on."""
    legs = len(homes)
    pair, right = np.arange(legs) // 2, np.arange(legs) % 2
    cycles = now.phase[:, None] + 0.5 * ((pair + right) % 2) + 0.07 * pair
    count = np.floor(cycles)
    into = cycles - count
    first = int(count.min())
    uneven = rng.normal(0, 0.02, (int(count.max()) - first + 2, legs, 2))

    def foothold(cycle: np.ndarray) -> np.ndarray:
        middle = cycle + _STANCE / 2 - (cycles - now.phase[:, None])
        spot = homes + uneven[(cycle - first).astype(int), np.arange(legs)]
        return path.at(np.interp(middle, path.phase, path.time)).place(spot[..., 0], spot[..., 1])

    part = np.clip((into - _STANCE) / (1 - _STANCE), 0, 1)
    eased = (part * part * (3 - 2 * part))[..., None]
    feet = foothold(count) * (1 - eased) + foothold(count + 1) * eased
    feet[..., 1] += _LIFT * np.sin(np.pi * part) ** 2
    return feet


def _inverse_kinematics(reach: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turns of hip (about y), femur and tibia (about the leg's hinge), each (frames, legs), that put the feet at
    `reach` (frames, legs, 3) from the hips, in the body's frame."""
    swing = (angles - np.arctan2(reach[..., 2], reach[..., 0]) + np.pi) % (2 * np.pi) - np.pi
    out, up = np.hypot(reach[..., 0], reach[..., 2]) - _COXA, reach[..., 1]
    length = np.clip(np.hypot(out, up), 1.02 * abs(_TIBIA - _FEMUR), 0.999 * (_FEMUR + _TIBIA))
    inside = np.arccos((_FEMUR**2 + length**2 - _TIBIA**2) / (2 * _FEMUR * length))
    raised = np.arctan2(up, out) + inside
    lowered = np.pi - np.arccos((_FEMUR**2 + _TIBIA**2 - length**2) / (2 * _FEMUR * _TIBIA)) - raised
    return swing, raised - _RAISED, _LOWERED - lowered - (raised - _RAISED)


def _turn(order: str, *angles: np.ndarray) -> np.ndarray:
    return roma.euler_to_rotmat(order, torch.from_numpy(np.stack(angles, axis=-1))).numpy()


def _about(axis: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) by `angle` (...) about unit `axis`."""
    return roma.rotvec_to_rotmat(torch.from_numpy(angle[..., None] * axis)).numpy()
