"""What the tests of crowds share: a run whose motions are exact and go about, and checks by brute force."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from local_model import LocalModel
from torch import Tensor, nn

import sinmdm
from sinmdm.crowd import Meeting
from sinmdm.motion import Clip, walker, write_motion
from sinmdm.run import Run

STEPS: dict[str, Any] = {"sampler": "ddpm", "steps": 3}  # ddpm: every step draws noise
PLACES = [[0.0, 0.0, 0.0], [20.5, -3.0, 90.0], [-1e2, 40.0, -45.0]]


class NotLocal(nn.Module):
    """As LocalModel, and every frame looks at the first and at the last: it has to be given one length at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.local = LocalModel(3)
        self.batches: list[tuple[int, int]] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.batches.append((len(x), x.shape[2]))
        return self.local(x + x[..., :1] * 0.5 + x[..., -1:], timesteps)


def trained_run(folder: Path) -> Path:
    """The folder of a run of one step of training, made in `folder`."""
    write_motion(folder / "walk.bvh", walker(legs=2, seconds=1.5))
    sinmdm.train(folder / "walk.bvh", folder / "run", steps=1, progress=False)
    return folder / "run"


def exact_run(folder: Path) -> Run:
    """A run with a network whose results do not depend on what they are computed beside, to the bit; its motions go
    about at random."""
    return dataclasses.replace(sinmdm.load(folder), network=LocalModel(3))


def alone(run: Run, number: int, length: int, **options: Any) -> Clip:
    """Sample `number` of a seed, as it is without a crowd."""
    clip = run.sample(length, number + 1, **{**STEPS, **options})[number]
    assert isinstance(clip, Clip)
    return clip


def brute_force(files: list[Path]) -> Meeting:
    """The closest two of written files, frame by frame and pair by pair; a shorter motion holds its last frame."""
    clips = [Clip.read(path) for path in files]
    frames = max(map(len, clips))
    best = Meeting(np.inf, (0, 0), 0)
    for (one, first), (other, second) in itertools.combinations(enumerate(clips), 2):
        for frame in range(frames):
            here, there = (clip.values[min(frame, len(clip) - 1)] for clip in (first, second))
            away = float(np.hypot(here[0] - there[0], here[2] - there[2]))
            if away < best.distance:
                best = Meeting(away, (one, other), frame)
    return best


def csv_text(rows: list[list[float]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)
