"""Where a video is seen from: a direction that stays, and a camera that stands still or goes along."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

FIELD = math.radians(32)  # angle of view from top to bottom
YAW, PITCH = 0.5, 0.3  # radians: from the front right, slightly above
_FREE = (0.92, 0.78)  # share of the picture, across and down, that figures keep within: labels need room
_FOLLOWED = 1.5  # a camera that stands still may be so many times as far away as one that goes along
_AT_ONCE = 1 << 20  # corners of boxes
_SMOOTH = 0.8  # seconds: the standard deviation of the bell under which a camera's way is smoothed

AXES = np.array(
    [
        [math.cos(YAW), 0.0, -math.sin(YAW)],
        [-math.sin(YAW) * math.sin(PITCH), math.cos(PITCH), -math.cos(YAW) * math.sin(PITCH)],
        [math.sin(YAW) * math.cos(PITCH), math.sin(PITCH), math.cos(YAW) * math.cos(PITCH)],
    ]
)  # rows: right, up, and towards the eye


def camera_path(boxes: np.ndarray, fps: float, aspect: float, follow: bool | None = None) -> tuple[np.ndarray, float]:
    """What the camera looks at in each frame (frames, 3), and from how far away, so that all boxes stay in sight.

    boxes: (frames, characters, 2, 3), the lowest and the highest coordinates of each; their corners are looked at part
        by part.
    aspect: width of the picture to its height.
    follow: whether the camera goes along; None: where it is much nearer for it.
    """
    low, high = boxes[:, :, 0].min(axis=1), boxes[:, :, 1].max(axis=1)
    way = smooth((low + high) / 2, fps)
    place, still = _fit(boxes, np.zeros_like(way), aspect)
    offset, near = _fit(boxes, way, aspect)
    if follow or (follow is None and still > _FOLLOWED * near):
        return way + offset, near
    return np.tile(place, (len(way), 1)), still


def _fit(boxes: np.ndarray, origins: np.ndarray, aspect: float) -> tuple[np.ndarray, float]:
    """What to look at (3,), and the least distance from which all corners are where they may be.

    boxes: as `camera_path`. origins: (frames, 3), what the boxes of each frame are seen from.
    """
    kept = list(_seen(boxes, origins)) if 4 * boxes.size // 3 <= _AT_ONCE else None

    def seen() -> Iterable[np.ndarray]:
        return _seen(boxes, origins) if kept is None else kept

    middle = _middle(seen())
    free = math.tan(FIELD / 2) * np.array([_FREE[0] * aspect, _FREE[1]])
    for further in range(8, -1, -1):  # what is moved to the middle is seen from elsewhere: a few rounds settle
        away = (part - middle for part in seen())
        distance = max(float((part[:, 2] + (np.abs(part[:, :2]) / free).max(axis=1)).max()) for part in away)
        if not further or distance <= 0:  # 0: all points are one
            break
        away = (part - middle for part in seen())
        middle[:2] += distance * _middle(part[:, :2] / (distance - part[:, 2:]) for part in away)
    return middle @ AXES, distance


def _seen(boxes: np.ndarray, origins: np.ndarray) -> Iterator[np.ndarray]:
    """All corners along AXES, in parts of (points, 3) float64."""
    which = np.indices((2, 2, 2)).reshape(3, 8).T  # of eight corners, each coordinate: the lowest or the highest
    frames = max(1, _AT_ONCE // (8 * boxes.shape[1]))
    for begin in range(0, len(boxes), frames):
        part = slice(begin, begin + frames)
        corners = boxes[part][:, :, which, np.arange(3)] - origins[part, None, None]
        yield corners.reshape(-1, 3) @ AXES.T


def _middle(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Halfway between the lowest and the highest of all points, (n,) of parts (points, n)."""
    lows, highs = zip(*((part.min(axis=0), part.max(axis=0)) for part in parts), strict=True)
    return (np.max(highs, axis=0) + np.min(lows, axis=0)) / 2


def smooth(way: np.ndarray, fps: float) -> np.ndarray:
    """Coordinates (frames, n) under a bell over the frames; beyond its ends a way goes on, turned about them."""
    if len(way) == 1:
        return way
    width = _SMOOTH * fps
    reach = math.ceil(3 * width)
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    longer = np.pad(way, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
    return np.stack([np.convolve(axis, bell / bell.sum(), mode="valid") for axis in longer.T], axis=-1)
