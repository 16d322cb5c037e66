"""Small scenes to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sinmdm.motion import RESULTS, Results
from sinmdm.view import Character


@pytest.fixture
def nasty() -> str:
    """What a file may call a joint, and a page must not obey."""
    return "</script><img src=x onerror=alert(1)><!--&amp;\"'\u2028"


@pytest.fixture
def person() -> Callable[..., Character]:
    """Makes a character of a root and two arms: its label, frames, size, place, frames a second, and given."""

    def make(
        label: str = "one", frames: int = 7, size: float = 1.0, place: tuple[float, float, float] = (0, 0, 0),
        fps: float = 30.0, given: np.ndarray | None = None,
    ) -> Character:  # fmt: skip
        pose = np.array([[0, 1, 0], [0.5, 1.5, 0], [-0.5, 0.5, 0.25], [-1, 0, 0.25]]) * size
        moved = np.linspace(0, 1, frames)[:, None, None] * np.array([0, 0, 0.5]) * size
        positions = (pose + moved + np.array(place)).astype(np.float32)
        return Character(label, ("Hips", "Left", "Right", "Foot"), (-1, 0, 0, 2), positions, 1 / fps, given)

    return make


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., Path]:
    """Writes results.npz of two motions, of 5 and 3 frames, into a new folder; gives its path."""

    def write(folder: str = "made", given: np.ndarray | None = None, joint: str = "Foot") -> Path:
        path = tmp_path / folder / RESULTS
        path.parent.mkdir()
        positions = np.random.default_rng(0).normal(size=(2, 5, 3, 3)).astype(np.float32)
        names, labels = ("Hips", "Leg", joint), ("first", "second")
        Results(positions, np.array([5, 3]), names, (-1, 0, 1), 0.1, labels, given).write(path)
        return path

    return write
