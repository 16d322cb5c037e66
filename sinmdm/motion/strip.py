"""Pictures of clips: evenly spaced stick figures in a row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .atomic import replacing
from .clip import Clip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIVEN, _GENERATED = "#24476b", "#c4512d"
_INK, _SHADOW = "#6b7480", "#e9ebee"
_WIDTH, _MARGIN, _CAPTION = 13.0, 0.25, 0.3  # inches
_YAW, _PITCH = np.radians(35.0), np.radians(20.0)


def draw_strip(path: str | os.PathLike[str], rows: Mapping[str, Clip], poses: int = 10) -> None:
    """Draw each clip as a strip of `poses` evenly spaced poses over its label: the first row is the given motion, the
    others are generated ones and drawn in another colour. All rows have one scale. Seen from the front right and
    slightly above; y is up. Writes a PNG, whole or not at all.

    Raises: ImportError where matplotlib is missing; ValueError where there is nothing to draw; OSError where the
    picture cannot be written.
    """
    if not rows or poses < 1:
        raise ValueError(f"{len(rows)} rows of {poses} poses leave nothing to draw")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'sinmdm[plot]'") from error

    frames = {label: np.linspace(0, len(clip) - 1, poses).round().astype(int) for label, clip in rows.items()}
    figures = {label: _centred(clip, frames[label]) for label, clip in rows.items()}
    seen = {label: np.stack([_project(figure), _project(figure * (1, 0, 1))]) for label, figure in figures.items()}
    tops = [float(points[..., 1].max()) for points in seen.values()]
    bottoms = [float(points[..., 1].min()) for points in seen.values()]
    widest = max(np.ptp(points[..., 0], axis=-1).max() for points in seen.values())
    slot = max(1.08 * widest, 0.35 * max(np.subtract(tops, bottoms)), 1e-9)
    inch = (_WIDTH - 2 * _MARGIN) / (slot * poses)
    heights = [(top - bottom) * inch + 2 * _CAPTION for top, bottom in zip(tops, bottoms, strict=True)]
    height = sum(heights) + _MARGIN

    picture = Figure(figsize=(_WIDTH, height), dpi=120, facecolor="white")
    FigureCanvasAgg(picture)
    for row, (label, clip) in enumerate(rows.items()):
        base = (sum(heights[row + 1 :]) + _CAPTION + _MARGIN / 2) / height
        share = (heights[row] - 2 * _CAPTION) / height
        axes = picture.add_axes((_MARGIN / _WIDTH, base, 1 - 2 * _MARGIN / _WIDTH, max(share, 1e-3)))
        axes.set(xlim=(0, slot * poses), ylim=(bottoms[row], max(tops[row], bottoms[row] + 1e-9)))
        axes.set_axis_off()
        colour = _GENERATED if row else _GIVEN
        _draw(axes, clip, seen[label], slot, colour)
        big: dict[str, Any] = {"color": colour, "fontsize": 11, "weight": "bold"}
        small: dict[str, Any] = {"color": _INK, "fontsize": 7.5, "va": "top"}
        axes.annotate(label, (0, 1), (0, 9), "axes fraction", "offset points", **big)
        for pose, frame in enumerate(frames[label]):
            at, text = ((pose + 0.5) * slot, 0), f"{frame * clip.frame_time:.1f} s"
            axes.annotate(text, at, (0, -7), ("data", "axes fraction"), "offset points", ha="center", **small)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png")


def _centred(clip: Clip, frames: np.ndarray) -> np.ndarray:
    """Joint positions (poses, J, 3) of the frames, the root over the origin, the clip's lowest point on the ground."""
    chosen = Clip(clip.skeleton, clip.values[frames], clip.frame_time)
    positions = chosen.positions().numpy().copy()
    positions[..., [0, 2]] -= positions[:, :1, [0, 2]]
    positions[..., 1] -= positions[..., 1].min()
    return positions


def _project(points: np.ndarray) -> np.ndarray:
    """Points (..., 3) to the picture: right, up, and towards the eye."""
    x, y, z = np.moveaxis(points, -1, 0)
    right, towards = np.cos(_YAW) * x - np.sin(_YAW) * z, np.sin(_YAW) * x + np.cos(_YAW) * z
    return np.stack(
        [right, np.cos(_PITCH) * y - np.sin(_PITCH) * towards, np.sin(_PITCH) * y + np.cos(_PITCH) * towards], axis=-1
    )


def _draw(axes: Axes, clip: Clip, seen: np.ndarray, slot: float, colour: str) -> None:
    """Figures and their shadows, seen (2, poses, J, 3), each over the middle of its slot; near bones darker."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgb

    poses = seen.shape[1]
    middle = (seen[0, ..., 0].max(axis=1) + seen[0, ..., 0].min(axis=1)) / 2
    seen = seen + np.stack([(np.arange(poses) + 0.5) * slot - middle, 0 * middle, 0 * middle], axis=-1)[:, None]
    parents = np.array(clip.parents[1:], dtype=int)
    bones, shadows = np.stack([seen[:, :, parents], seen[:, :, 1:]], axis=3).reshape(2, -1, 2, 3)
    lengths = np.linalg.norm(clip.offsets[1:], axis=-1) / clip.skeleton.reach()
    widths = np.tile(np.clip(0.7 + 9 * lengths, 0.7, 2.2), poses)
    style: dict[str, Any] = {"capstyle": "round", "clip_on": False}
    axes.add_collection(LineCollection(list(shadows[..., :2]), colors=_SHADOW, linewidths=widths, **style))
    if len(clip.skeleton) == 1:
        axes.plot(*seen[0, :, 0, :2].T, "o", color=colour, clip_on=False)
        return
    depth = bones[..., 2].mean(axis=1)
    fade = 0.5 * (depth.max() - depth) / max(np.ptp(depth), 1e-9)
    shades = np.array(to_rgb(colour)) * (1 - fade[:, None]) + fade[:, None]
    order = np.argsort(depth)
    axes.add_collection(
        LineCollection(list(bones[order, :, :2]), colors=shades[order], linewidths=widths[order], **style)
    )
