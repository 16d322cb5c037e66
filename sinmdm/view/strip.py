"""A picture of motions: evenly spaced poses in a row, a row for each character."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..motion.atomic import replacing
from .colours import GENERATED, GIVEN, INK, MUTED, rgb
from .scene import Character, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHADOW = "#e9ebee"
ROWS = 20  # of a picture at most
_DOTS, _MOST = 120, 1 << 15  # pixels an inch, and of a picture's height
_WIDTH, _MARGIN, _CAPTION = 13.0, 0.25, 0.3  # inches
_YAW, _PITCH = np.radians(35.0), np.radians(20.0)


def write_strip(path: str | os.PathLike[str], scene: Scene, poses: int = 10) -> None:
    """Draw each character as a strip of `poses` evenly spaced poses under its label, what was given in one colour and
    what was generated in another. All rows have one scale, and each pose stands in the middle of its place, wherever it
    has gone. Seen from the front right and slightly above; y is up. Of more than ROWS characters it shows the
    first ones, and says so in its last line. Writes a PNG, whole or not at all.

    Raises: ImportError where matplotlib is missing; ValueError where the suffix is not .png or there are no poses;
    OSError where the picture cannot be written.
    """
    if os.path.splitext(path)[1].lower() != ".png":
        raise ValueError(f"{path}: suffix is {os.path.splitext(path)[1]!r}, must be .png")
    if poses < 1:
        raise ValueError(f"poses is {poses}, must be at least 1")
    FigureCanvasAgg, Figure = matplotlib_figure()
    rows, missing = scene.characters[:ROWS], len(scene.characters) > ROWS
    frames = [np.linspace(0, row.frames - 1, poses).round().astype(int) for row in rows]
    figures = [_centred(row.positions[chosen]) for row, chosen in zip(rows, frames, strict=True)]
    seen = [np.stack([_project(figure), _project(figure * (1, 0, 1))]) for figure in figures]
    tops = [float(points[..., 1].max()) for points in seen]
    bottoms = [float(points[..., 1].min()) for points in seen]
    widest = max(np.ptp(points[..., 0], axis=-1).max() for points in seen)
    slot = max(1.08 * widest, 0.35 * max(np.subtract(tops, bottoms)), 1e-9)
    inch = (_WIDTH - 2 * _MARGIN) / (slot * poses)
    heights = [(top - bottom) * inch + 2 * _CAPTION for top, bottom in zip(tops, bottoms, strict=True)]
    last = _CAPTION if missing else 0.0  # the line below the rows
    height = sum(heights) + _MARGIN + last

    picture = Figure(figsize=(_WIDTH, height), dpi=min(_DOTS, _MOST / height), facecolor="white")
    FigureCanvasAgg(picture)
    if missing:
        note = f"the first {ROWS} of {len(scene.characters)}"
        picture.text(_MARGIN / _WIDTH, (_MARGIN / 2 + last / 2) / height, note, color=MUTED, fontsize=11, va="center")
    for index, row in enumerate(rows):
        base = (sum(heights[index + 1 :]) + _CAPTION + _MARGIN / 2 + last) / height
        share = (heights[index] - 2 * _CAPTION) / height
        axes = picture.add_axes((_MARGIN / _WIDTH, base, 1 - 2 * _MARGIN / _WIDTH, max(share, 1e-3)))
        axes.set(xlim=(0, slot * poses), ylim=(bottoms[index], max(tops[index], bottoms[index] + 1e-9)))
        axes.set_axis_off()
        given = np.zeros((poses, len(row.names)), dtype=bool) if row.given is None else row.given[frames[index]]
        _draw(axes, row, seen[index], given, slot)
        colour = GIVEN if given.all() else INK if given.any() else GENERATED
        big: dict[str, Any] = {"color": colour, "fontsize": 11, "weight": "bold", "parse_math": False}
        small: dict[str, Any] = {"color": MUTED, "fontsize": 7.5, "va": "top"}
        axes.annotate(row.label, (0, 1), (0, 9), "axes fraction", "offset points", **big)
        for pose, frame in enumerate(frames[index]):
            at, text = ((pose + 0.5) * slot, 0), f"{frame * row.frame_time:.1f} s"
            axes.annotate(text, at, (0, -7), ("data", "axes fraction"), "offset points", ha="center", **small)
    with replacing(path) as temporary:
        picture.savefig(temporary, format="png")


def matplotlib_figure() -> tuple[Any, Any]:
    """matplotlib's FigureCanvasAgg and Figure. Raises: ImportError where it is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'sinmdm[plot]'") from error
    return FigureCanvasAgg, Figure


def _centred(positions: np.ndarray) -> np.ndarray:
    """Poses (poses, J, 3) float64, the first joint over the origin, the lowest of all points on the ground."""
    poses = positions.astype(np.float64)
    poses[..., [0, 2]] -= poses[:, :1, [0, 2]]
    poses[..., 1] -= poses[..., 1].min()
    return poses


def _project(points: np.ndarray) -> np.ndarray:
    """Points (..., 3) to the picture: right, up, and towards the eye."""
    x, y, z = np.moveaxis(points, -1, 0)
    right, towards = np.cos(_YAW) * x - np.sin(_YAW) * z, np.sin(_YAW) * x + np.cos(_YAW) * z
    return np.stack(
        [right, np.cos(_PITCH) * y - np.sin(_PITCH) * towards, np.sin(_PITCH) * y + np.cos(_PITCH) * towards], axis=-1
    )


def _draw(axes: Axes, character: Character, seen: np.ndarray, given: np.ndarray, slot: float) -> None:
    """Figures and their shadows, seen (2, poses, J, 3), each over the middle of its slot; near bones darker.

    given: (poses, J) bool; a bone has the colour of its far joint.
    """
    from matplotlib.collections import LineCollection

    poses = seen.shape[1]
    tints = np.array([rgb(GENERATED), rgb(GIVEN)])[given.astype(int)] / 255  # (poses, J, 3)
    middle = (seen[0, ..., 0].max(axis=1) + seen[0, ..., 0].min(axis=1)) / 2
    seen = seen + np.stack([(np.arange(poses) + 0.5) * slot - middle, 0 * middle, 0 * middle], axis=-1)[:, None]
    parents = np.array(character.parents)
    joints = np.flatnonzero(parents >= 0)
    lone = np.setdiff1d(np.flatnonzero(parents < 0), parents)
    x, y, _ = seen[0][:, lone].reshape(-1, 3).T
    axes.scatter(x, y, s=36, c=tints[:, lone].reshape(-1, 3), clip_on=False)
    if not len(joints):
        return
    bones, shadows = np.stack([seen[:, :, parents[joints]], seen[:, :, joints]], axis=3).reshape(2, -1, 2, 3)
    lengths = character.bone_lengths[joints] / character.size
    widths = np.tile(np.clip(0.7 + 9 * lengths, 0.7, 2.2), poses)
    style: dict[str, Any] = {"capstyle": "round", "clip_on": False}
    axes.add_collection(LineCollection(list(shadows[..., :2]), colors=_SHADOW, linewidths=widths, **style))
    depth = bones[..., 2].mean(axis=1)
    fade = 0.5 * (depth.max() - depth) / max(np.ptp(depth), 1e-9)
    shades = tints[:, joints].reshape(-1, 3) * (1 - fade[:, None]) + fade[:, None]
    order = np.argsort(depth)
    axes.add_collection(
        LineCollection(list(bones[order, :, :2]), colors=shades[order], linewidths=widths[order], **style)
    )
