"""Frames of a scene as pictures: a grid on the ground, shadows, figures of shaded sticks, labels; in perspective.

Drawn with Pillow, at twice the size and then reduced. A figure is some hundred polygons, which cost Pillow microseconds
each; matplotlib sets up its artists anew for every frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .camera import AXES, FIELD, camera_path, smooth
from .colours import GENERATED, GIVEN, GRID, INK, MUTED, PAGE, SHADE, mixed, rgb
from .scene import Character, Scene

_FINE = 2  # pixels drawn for one of the picture, across and down
_THIN, _THICK, _SLENDER, _TAPER = 0.006, 0.025, 0.13, 0.7  # radii: bounds in sizes, in lengths, and at the far end
_LEAST, _LEAST_LONE = 0.6, 3.0  # of radii, in pixels of the picture
# A stick is drawn as sticks within each other: radius, brightness, and how many radii it is shifted towards the light.
_SHADING = ((1.0, 0.62, 0.0), (0.84, 0.82, 0.06), (0.62, 1.0, 0.16), (0.28, 1.14, 0.34))
_LIGHT = np.array([-0.44, -0.90])  # where it comes from: the left, above
_ROUND = 7  # corners of a stick's round end
_CAST = np.array([0.16, 0.0, -0.12])  # where the shadow of a point 1 above the ground lies
_COARSE = 4  # fine pixels in one of a shadow's, which is blurred anyway
_FADE = 8  # strengths of the grid's lines
_LETTERS = 32  # of a label


def sticks(character: Character) -> tuple[np.ndarray, np.ndarray]:
    """Which joints to draw sticks between, (n, 2) int64, and their radii at either, (n, 2) float64 in world units.

    A stick a bone, in the colour of its second joint; a joint without bones is a thick one from itself to itself.
    """
    parents, joints = np.array(character.parents), np.arange(len(character.parents))
    lone = (parents < 0) & ~np.isin(joints, parents)
    drawn = lone | (parents >= 0)
    ends = np.stack([np.where(lone, joints, parents), joints], axis=1)[drawn]
    lengths = np.where(lone, np.inf, character.bone_lengths)[drawn]
    radii = np.clip(_SLENDER * lengths, _THIN * character.size, _THICK * character.size)
    return ends, np.stack([radii, _TAPER * radii], axis=1)


def check_drawing() -> None:
    """Raise ImportError where Pillow or matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError("drawing needs Pillow and matplotlib: pip install 'sinmdm[view]'") from error


class Renderer:
    """Draws the frames of a scene, as seen by a camera that keeps all of it in sight.

    times: seconds; a character that is over by then stays in its last frame.
    fps: how many of these are a second.
    size: width and height in pixels.
    follow: whether the camera goes along; None: where it is much nearer for it.
    In memory are the boxes about all characters at all times, some 60 bytes each.
    Raises: ImportError where Pillow or matplotlib, with whose font it writes, is missing.
    """

    def __init__(
        self, scene: Scene, times: Sequence[float], *, fps: float, size: tuple[int, int], follow: bool | None = None
    ) -> None:
        check_drawing()
        import matplotlib
        from PIL import Image, ImageDraw, ImageFilter, ImageFont

        self._image, self._canvas, self._filter = Image, ImageDraw, ImageFilter
        font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        self._font = ImageFont.truetype(str(font), max(8, round(size[1] / 36)))
        self._scene, self._times, self._size = scene, times, size

        characters = scene.characters
        begins = np.cumsum([0, *(len(character.names) for character in characters)])
        made = [sticks(character) for character in characters]
        self._ends = np.concatenate([ends + begin for (ends, _), begin in zip(made, begins, strict=False)])
        self._radii = np.concatenate([radii for _, radii in made])
        self._labels = [_shortened(character.label) for character in characters]
        given = [False if one.given is None else one.given for one in characters]
        self._legend = any(np.any(one) for one in given) and not all(np.all(one) for one in given)

        boxes = np.empty((len(times), len(characters), 2, 3), dtype=np.float32)
        for index, one in enumerate(characters):
            boxes[:, index] = one.boxes(times)
        self._targets, distance = camera_path(boxes, fps, size[0] / size[1], follow)
        self._tops = smooth(boxes[:, :, 1, 1].astype(np.float64), fps)  # of figures, in each frame
        self._distance = max(distance, 2.5 * scene.size)
        self._still = bool((self._targets == self._targets[0]).all())
        self._ground: Any = None

    def frame(self, index: int) -> Any:
        """The picture at `times[index]`, a PIL image in RGB."""
        time, target = self._times[index], self._targets[index]
        poses, given = zip(*(one.at(time, loop=False) for one in self._scene.characters), strict=True)
        points, own = np.concatenate(poses).astype(np.float64), np.concatenate(given)
        if self._ground is None or not self._still:
            self._ground = self._draw_ground(target)
        picture = self._ground.copy()
        self._draw_shadows(picture, points, target)
        self._draw_figures(picture, points, own, target)
        picture = picture.reduce(_FINE)
        self._write(picture, poses, index)
        return picture

    def _seen(self, points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 3) in the picture: right and down in fine pixels (..., 2), and how many a unit is there."""
        across = (points - target) @ AXES.T
        depth = np.maximum(self._distance - across[..., 2], 1e-3 * self._distance)
        pixels = _FINE * self._size[1] / 2 / math.tan(FIELD / 2) / depth
        middle = _FINE * np.array(self._size) / 2
        return middle + across[..., :2] * (1, -1) * pixels[..., None], pixels

    def _draw_ground(self, target: np.ndarray) -> Any:
        """The page with the grid, which fades with the distance from the target."""
        picture = self._image.new("RGB", (_FINE * self._size[0], _FINE * self._size[1]), PAGE)
        draw = self._canvas.Draw(picture)
        reach = 1.5 * self._distance
        step = _round_length(self._scene.size / 2)
        step *= max(1, math.ceil(reach / step / 40))
        count = math.ceil(reach / step)
        along, other = np.meshgrid(np.arange(-count, count + 1.0), np.arange(-count, count))
        lines = np.stack([np.stack([along, along], -1), np.stack([other, other + 1], -1)], axis=-1).reshape(-1, 2, 2)
        lines = np.concatenate([lines, lines[..., ::-1]]) * step + np.round(target[[0, 2]] / step) * step
        away = np.linalg.norm(lines.mean(axis=1) - target[[0, 2]], axis=-1) / reach
        fade = np.clip((1 - away) / 0.65, 0, 1)
        strength = np.round(_FADE * fade * fade * (3 - 2 * fade)).astype(int)
        ends = np.stack([lines[..., 0], np.full(lines.shape[:2], self._scene.ground), lines[..., 1]], axis=-1)
        places, pixels = self._seen(ends, target)
        nearest = _FINE * self._size[1] / 2 / math.tan(FIELD / 2) / (0.1 * self._distance)
        shown = (strength > 0) & (pixels < nearest).all(axis=1)
        colours = [mixed(PAGE, GRID, share / _FADE) for share in range(_FADE + 1)]
        for line, share in zip(places[shown].reshape(-1, 4).tolist(), strength[shown].tolist(), strict=True):
            draw.line(line, fill=colours[share], width=_FINE)
        return picture

    def _draw_shadows(self, picture: Any, points: np.ndarray, target: np.ndarray) -> None:
        """The figures on the ground, blurred: what is higher is paler. Where two meet, the darker one stays."""
        heights = np.maximum(points[self._ends, 1] - self._scene.ground, 0)
        cast = points[self._ends] + heights[..., None] * _CAST
        radii = 1.2 * self._radii + 0.01 * self._scene.size + 0.04 * heights
        flat = _outlines(cast[..., [0, 2]], radii)
        ground = np.full(flat.shape[:2], self._scene.ground)
        places, _ = self._seen(np.stack([flat[..., 0], ground, flat[..., 1]], axis=-1), target)
        places /= _COARSE
        size = np.array(picture.size) // _COARSE
        margin = max(2, round(0.004 * size[1]))
        low = np.clip(np.floor(places.min(axis=(0, 1))).astype(int) - 3 * margin, 0, size)
        high = np.clip(np.ceil(places.max(axis=(0, 1))).astype(int) + 3 * margin, 0, size)
        if (low >= high).any():
            return
        mask = self._image.new("L", tuple(high - low))
        draw = self._canvas.Draw(mask)
        strength = np.round(255 * np.exp(-1.1 * heights.min(axis=1) / self._scene.size)).astype(int)
        order = np.argsort(strength)
        outlines = (places - low)[order].reshape(len(order), -1).tolist()
        for outline, dark in zip(outlines, strength[order].tolist(), strict=True):
            draw.polygon(outline, fill=dark)
        for _ in range(2):  # of which two make a bell
            mask = mask.filter(self._filter.BoxBlur(margin))
        box = (*(_COARSE * low).tolist(), *(_COARSE * high).tolist())
        mask = mask.resize((box[2] - box[0], box[3] - box[1]), self._image.Resampling.BILINEAR)
        picture.paste(mixed(PAGE, "#000000", SHADE), box, mask)

    def _draw_figures(self, picture: Any, points: np.ndarray, given: np.ndarray, target: np.ndarray) -> None:
        """The sticks, the far ones first."""
        draw = self._canvas.Draw(picture)
        places, pixels = self._seen(points, target)
        ends, radii = places[self._ends], self._radii * pixels[self._ends]
        lone = self._ends[:, :1] == self._ends[:, 1:]
        radii = np.maximum(radii, _FINE * np.where(lone, _LEAST_LONE, _LEAST))
        way = ends[:, 1] - ends[:, 0]
        across = np.stack([-way[:, 1], way[:, 0]], axis=-1) / np.maximum(np.linalg.norm(way, axis=-1), 1e-9)[:, None]
        shift = (across @ _LIGHT)[:, None] * across
        layers = np.stack(
            [
                _outlines(ends + moved * radii[..., None] * shift[:, None], radius * radii)
                for radius, _, moved in _SHADING
            ],
            axis=1,
        )  # (sticks, layers, corners, 2)
        order = np.argsort(pixels[self._ends].sum(axis=1))
        outlines = layers[order].reshape(len(order), len(_SHADING), -1).tolist()
        tints = [[_lit(colour, light) for _, light, _ in _SHADING] for colour in (GENERATED, GIVEN)]
        for stick, which in zip(outlines, given[self._ends[order, 1]].tolist(), strict=True):
            for outline, tint in zip(stick, tints[which], strict=True):
                draw.polygon(outline, fill=tint)

    def _write(self, picture: Any, poses: Sequence[np.ndarray], index: int) -> None:
        """Labels above the figures, the time, and which colour is which where there are both."""
        draw = self._canvas.Draw(picture)
        letter = self._font.size
        edge: dict[str, Any] = {"stroke_width": max(1, letter // 9), "stroke_fill": PAGE, "font": self._font}
        heads = np.array([(pose[0, 0], top, pose[0, 2]) for pose, top in zip(poses, self._tops[index], strict=True)])
        places, _ = self._seen(heads, self._targets[index])
        for label, (x, y) in zip(self._labels, (places / _FINE).tolist(), strict=True):
            draw.text((x, y - 0.6 * letter), label, fill=INK, anchor="mb", **edge)
        low = self._size[1] - letter
        draw.text((self._size[0] - letter, low), f"{self._times[index]:.1f} s", fill=MUTED, anchor="rb", **edge)
        if self._scene.scaled:
            draw.text((letter, low), "sizes made equal", fill=MUTED, anchor="lb", **edge)
        if self._legend:
            for row, (name, colour) in enumerate((("given", GIVEN), ("generated", GENERATED))):
                y = letter * (1.5 + 1.6 * row)
                box = (letter, y - 0.25 * letter, 2.6 * letter, y + 0.25 * letter)
                draw.rounded_rectangle(box, 0.25 * letter, fill=colour)
                draw.text((3.2 * letter, y), name, fill=INK, anchor="lm", **edge)


def _outlines(ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Corners (n, 2 * _ROUND, 2) of sticks with round ends, ends (n, 2, 2) and radii (n, 2) in one unit."""
    way = ends[:, 1] - ends[:, 0]
    turn = np.arctan2(way[:, 1], way[:, 0])[:, None, None]
    half = np.linspace(np.pi / 2, 3 * np.pi / 2, _ROUND)
    angles = turn + np.stack([half, half + np.pi])  # (n, 2, _ROUND): about the first end, then about the second
    corners = ends[:, :, None] + radii[:, :, None, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return corners.reshape(len(ends), 2 * _ROUND, 2)


def _round_length(length: float) -> float:
    """The greatest of 1, 2, 5, 10, ... times a power of ten that is not above `length`."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(digit for digit in (1.0, 2.0, 5.0) if digit <= length / power * (1 + 1e-9)) * power


def _lit(colour: str, light: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, round(part * light)) for part in rgb(colour))
    return red, green, blue


def _shortened(label: str) -> str:
    """A label in one line that is not too long."""
    line = " ".join(label.split())
    return line if len(line) <= _LETTERS else line[: _LETTERS - 1] + "…"
