"""Clips to test with: the real ones where they are, and random ones of any rig."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_data import SHARED_DATA

from sinmdm.motion import Clip, Skeleton

POSITIONS = ("Xposition", "Yposition", "Zposition")
ORDERS = [tuple(f"{axis}rotation" for axis in order) for order in permutations("XYZ")]


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are small, and threads that wait for each other on a busy machine cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def real() -> Callable[[str], Path]:
    def find(name: str) -> Path:
        path = SHARED_DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not in {SHARED_DATA.name}/ beside the checkout")
        return path

    return find


def skeleton(parents: list[int], channels: list[tuple[str, ...]], seed: int = 0, names: list[str] | None = None):
    rng = np.random.default_rng(seed)
    leaves = set(range(len(parents))) - set(parents)
    sites = tuple(((tuple(rng.normal(size=3).tolist()),) if joint in leaves else ()) for joint in range(len(parents)))
    return Skeleton(
        names=tuple(names or [f"rig:joint {index}-a" for index in range(len(parents))]),
        parents=tuple(parents),
        offsets=rng.normal(size=(len(parents), 3)) * 3,
        channels=tuple(channels),
        end_sites=sites,
    )


def moving(rig: Skeleton, frames: int = 40, seed: int = 0, frame_time: float = 1 / 30) -> Clip:
    """Smooth random values; rotations of some tens of degrees a second, positions about the offsets."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)[:, None] * frame_time
    waves = sum(
        np.sin(2 * np.pi * rate * time + rng.uniform(0, 7, rig.channel_count)) * rng.uniform(0.3, 1, rig.channel_count)
        for rate in (0.3, 0.7)
    )
    scale = np.array([40.0 if name.endswith("rotation") else 1.0 for own in rig.channels for name in own])
    return Clip(rig, waves * scale, frame_time)


def _random_tree(joints: int, seed: int) -> list[int]:
    rng = np.random.default_rng(seed)
    parents, path = [-1], [0]
    for joint in range(1, joints):
        del path[int(rng.integers(1, len(path) + 1)) :]
        parents.append(path[-1])
        path.append(joint)
    return parents


def _mixed(seed: int) -> Skeleton:
    rng = np.random.default_rng(seed)
    parents = _random_tree(25, seed)
    channels: list[tuple[str, ...]] = [(*POSITIONS, *ORDERS[seed % 6])]
    for _ in parents[1:]:
        turns = ORDERS[int(rng.integers(6))][: int(rng.choice([0, 1, 2, 3, 3, 3]))]
        moves = POSITIONS[: int(rng.choice([0, 0, 1, 3]))]
        channels.append((*moves, *turns) if rng.random() < 0.5 else (*turns, *moves))
    return skeleton(parents, channels, seed)


RIGS = {
    "mixed": lambda: _mixed(1),
    "mixed again": lambda: _mixed(5),
    "one joint": lambda: skeleton([-1], [(*POSITIONS, *ORDERS[2])]),
    "chain of 100": lambda: skeleton([*range(-1, 99)], [(*POSITIONS, *ORDERS[0])] + [ORDERS[i % 6] for i in range(99)]),
    "root turns only": lambda: skeleton([-1, 0, 0, 2], [ORDERS[3]] * 4),
    "twelve channels": lambda: skeleton([-1, 0], [(*ORDERS[1], *POSITIONS), (*POSITIONS[::-1], *ORDERS[4])]),
    "duplicate names": lambda: skeleton([-1, 0, 0], [ORDERS[5]] * 3, names=["a", "b", "b"]),
}


# A person as files have one: a prefix, another order than the features', and joints that they leave out.
PERSON = """
Hips
 Spine
  Spine1
   Spine2
    Neck
     Head
      HeadTop_End
    LeftShoulder
     LeftArm
      LeftForeArm
       LeftHand
        LeftHandThumb1
        LeftHandIndex1
         LeftHandIndex2
    RightShoulder
     RightArm
      RightForeArm
       RightHand
        RightHandThumb1
 LeftUpLeg
  LeftLeg
   LeftFoot
    LeftToeBase
     LeftToe_End
 RightUpLeg
  RightLeg
   RightFoot
    RightToeBase
     RightToe_End
"""


def make_person(prefix: str = "mixamorig7:", orders: list[tuple[str, ...]] = ORDERS[2:], seed: int = 0) -> Skeleton:
    """A person whose joints take turns with the orders of rotation channels."""
    lines = PERSON.split("\n")[1:-1]
    depths = [len(line) - len(line.lstrip()) for line in lines]
    parents = [
        max((above for above in range(joint) if depths[above] < depth), default=-1)
        for joint, depth in enumerate(depths)
    ]
    turns = [orders[joint % len(orders)] for joint in range(len(parents))]
    names = [prefix + line.strip() for line in lines]
    return skeleton(parents, [(*POSITIONS, *turns[0]), *turns[1:]], seed, names)


@pytest.fixture
def person() -> Callable[..., Skeleton]:
    """Makes a person: of another prefix, with other channels."""
    return make_person


@pytest.fixture(params=RIGS)
def clip(request: pytest.FixtureRequest) -> Clip:
    """A random clip of each kind of rig."""
    return moving(RIGS[request.param](), seed=3)


@pytest.fixture
def rig() -> Callable[..., Skeleton]:
    """Makes a skeleton with random offsets from parents and channels."""
    return skeleton


@pytest.fixture
def move() -> Callable[..., Clip]:
    """Makes a smooth random clip of a skeleton."""
    return moving
