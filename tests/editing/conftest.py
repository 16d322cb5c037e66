"""Runs to edit with: networks that were never trained, since what an edit promises does not depend on that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from local_model import random_transformer

from sinmdm.motion import Clip, Motion, Normalizer, Skeleton, layout_for, walker
from sinmdm.motion.rigs import MIXAMO_JOINTS
from sinmdm.presets import Preset
from sinmdm.run import Run

HUMAN_PARENTS = (-1, 0, 1, 2, 3, 4, 0, 6, 7, 8, 9, 0, 11, 12, 13, 14, 13, 16, 17, 18, 13, 20, 21, 22)
XYZ = ("Xrotation", "Yrotation", "Zrotation")
POSITIONS = ("Xposition", "Yposition", "Zposition")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are small, and threads that wait for each other on a busy machine cost more than they bring."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def human(frames: int = 60, seed: int = 0, centimetres: bool = False) -> Clip:
    """A human of the 24 Mixamo joints, a finger beside, who waves and wanders about."""
    names = (*(f"mixamorig:{name}" for name in MIXAMO_JOINTS), "mixamorig:RightHandThumb1")
    rng = np.random.default_rng(seed)
    offsets = rng.normal(size=(25, 3)) * 0.2
    offsets[0] = (0, 95.0 if centimetres else 0.95, 0)
    sites = tuple(((0.0, 0.1, 0.0),) if joint in (5, 10, 15, 19, 24) else () for joint in range(25))
    rig = Skeleton(names, (*HUMAN_PARENTS, 23), offsets, ((*POSITIONS, *XYZ), *[XYZ] * 24), sites)
    time = np.arange(frames)[:, None] / 30
    values = 30 * np.sin(2 * np.pi * 0.4 * time + rng.uniform(0, 7, rig.channel_count))
    values[:, :3] = (100.0 if centimetres else 1.0) * np.concatenate([time, 1 + 0 * time, np.sin(time)], 1)
    return Clip(rig, values, 1 / 30)


def run_of(motion: Motion, kind: str | None = None, representation: str | None = None) -> Run:
    """A run on a motion, 8 diffusion steps, with a random network that sees 4 frames on each side."""
    layout = layout_for(motion, kind, representation)
    features = layout.encode(motion)
    preset = Preset(timesteps=8, network={"d_model": 16, "heads": 2, "layers": 2, "window": 2, "dropout": 0.0})
    network = random_transformer(layout.size, window=2, layers=2)
    return Run(Path("nowhere"), preset, layout, motion, Normalizer.fit(features, layout), network)


@pytest.fixture(scope="package")
def walking() -> Run:
    return run_of(walker(legs=2, seconds=3, fps=30))


@pytest.fixture(scope="package")
def people() -> dict[str, Run]:
    """By layout, runs on the human."""
    return {kind: run_of(human(), kind) for kind in ("sinmdm", "mixamo", "bvh_general")}


@pytest.fixture(scope="package")
def array() -> Run:
    return run_of(torch.randn(50, 7, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return run_of


@pytest.fixture
def make_human() -> Callable[..., Clip]:
    return human
