"""The camera: everything in sight all the time, as near as that allows, and calm."""

from __future__ import annotations

import math
import tracemalloc
from itertools import product

import numpy as np
import pytest

from sinmdm.view.camera import _FREE, _SMOOTH, AXES, FIELD, camera_path

FPS = 30.0
CORNERS = list(product((0, 1), repeat=3))


def _boxes(middle: np.ndarray, seed: int = 0) -> np.ndarray:
    """Boxes (frames, 2, 2, 3) of two things of random sizes about a way (frames, 3)."""
    rng = np.random.default_rng(seed)
    sizes = rng.uniform(0.2, 1, (len(middle), 2, 3))
    places = middle[:, None] + rng.uniform(-1, 1, (len(middle), 2, 3))
    return np.stack([places - sizes, places + sizes], axis=2)


def _places(boxes: np.ndarray, targets: np.ndarray, distance: float, aspect: float) -> np.ndarray:
    """All corners as seen, (frames, corners, 2): 1 is the edge of what is free."""
    corners = np.concatenate(
        [np.stack([boxes[:, :, x, 0], boxes[:, :, y, 1], boxes[:, :, z, 2]], axis=-1) for x, y, z in CORNERS], axis=1
    )
    seen = (corners - targets[:, None]) @ AXES.T
    depth = distance - seen[..., 2]
    assert (depth > 0).all()
    tall = math.tan(FIELD / 2)
    return seen[..., :2] / depth[..., None] / (tall * aspect * _FREE[0], tall * _FREE[1])


STANDING = np.zeros((90, 3))
FAR = np.linspace(0, 1, 90)[:, None] * np.array([60.0, 0.0, 20.0])


@pytest.mark.parametrize("aspect", [16 / 9, 1.0, 0.4])
@pytest.mark.parametrize("follow", [None, True, False])
@pytest.mark.parametrize("way", [STANDING, FAR, FAR[:1], FAR[:2]], ids=["standing", "far", "one frame", "two frames"])
def test_everything_is_in_sight_and_something_at_the_edge(way: np.ndarray, follow: bool | None, aspect: float) -> None:
    boxes = _boxes(way)
    targets, distance = camera_path(boxes, FPS, aspect, follow)
    assert targets.shape == (len(way), 3)
    places = np.abs(_places(boxes, targets, distance, aspect))
    assert places.max() == pytest.approx(1, rel=1e-9)


def test_it_goes_along_where_that_brings_it_nearer() -> None:
    for way, follows in ((STANDING, False), (FAR, True)):
        targets, distance = camera_path(_boxes(way), FPS, 16 / 9)
        assert bool((targets == targets[0]).all()) is not follows
        expected = camera_path(_boxes(way), FPS, 16 / 9, follows)
        assert np.array_equal(targets, expected[0])
        assert distance == expected[1]


def test_a_straight_way_is_followed_exactly_and_a_shaking_one_calmly() -> None:
    still = np.stack([np.full((90, 1, 3), -1.0), np.full((90, 1, 3), 1.0)], axis=2)
    targets, _ = camera_path(still + FAR[:, None, None], FPS, 16 / 9, follow=True)
    np.testing.assert_allclose(targets - targets[0], FAR, rtol=0, atol=1e-9)
    shaking = np.random.default_rng(0).normal(size=(900, 3))
    boxes = np.stack([shaking - 1, shaking + 1], axis=1)[:, None]
    targets, _ = camera_path(boxes, FPS, 16 / 9, follow=True)
    # White noise of variance 1 has steps of variance 2; under a bell w wide they have 1 / (4 sqrt(pi) w^3).
    steps = math.sqrt(1 / (4 * math.sqrt(math.pi) * (_SMOOTH * FPS) ** 3))
    assert np.diff(targets, axis=0).std() < 1.5 * steps
    assert np.diff(shaking, axis=0).std() > 100 * steps


def test_corners_are_looked_at_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = _boxes(FAR)
    whole = camera_path(boxes, FPS, 16 / 9)
    monkeypatch.setattr("sinmdm.view.camera._AT_ONCE", 16 * 7)  # seven frames
    targets, distance = camera_path(boxes, FPS, 16 / 9)
    np.testing.assert_allclose(targets, whole[0], rtol=0, atol=1e-12)
    assert distance == pytest.approx(whole[1], rel=1e-14)
    many = np.broadcast_to(_boxes(FAR)[:, :1].astype(np.float32), (90, 300, 2, 3)).copy()
    tracemalloc.start()
    try:
        camera_path(many, FPS, 16 / 9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < many.nbytes  # all corners alone are eight times as many bytes


def test_one_point_has_no_distance() -> None:
    targets, distance = camera_path(np.ones((3, 1, 2, 3)), FPS, 1.0)
    assert distance <= 1e-9
    np.testing.assert_allclose(targets, 1, atol=1e-12)
