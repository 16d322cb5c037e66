"""Crowds: many motions of one run in one world, set out by a layout and kept apart.

Character k is sample k of the seed, whatever the crowd's size: its motion is that of `Run.sample` of its length, turned
and moved. A scene lasts as long as its longest character; one that is done earlier holds its last frame.

scene.json     what is in the folder: {"format", "results", "together", "fps", "seed", "layout", "distance", "spacing",
               "closest", "characters": [{"file", "sample", "frames", "x", "z", "heading"}, ...]}
character000.bvh, ...   each character's motion, in the world
results.npz    the positions of all of them, in the world (`sinmdm.motion.Results`)
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .checks import check_at_least
from .kernels.philox import check_seed
from .motion import RESULTS, Clip, writing_results
from .motion.atomic import filling
from .motion.features import ClipLayout
from .run import DEFAULT_FRAMES, WRITTEN_AT_ONCE, Run, write_text

FORMAT = 1
SCENE = "scene.json"
FACINGS = {"in": 180.0, "out": 0.0, "along": 90.0}  # of a circle: degrees from the way out to where a character looks
_COLUMNS = ("x", "z", "heading")
_LARGEST = 1e9  # of positions, headings and distances


@dataclass(frozen=True, eq=False)
class Places:
    """Where n characters begin.

    points: (n, 2) float64, x and z.
    headings: (n,) float64, degrees from +z towards +x: by how much each motion is turned about its start; or, where
        `looking`, where each character looks at its start.
    """

    points: np.ndarray
    headings: np.ndarray
    looking: bool = False


def grid(n: int, facing: str | None = None) -> Places:
    """Rows, as many as columns or one less, about the origin and the first in front (+z); nobody is turned.

    Neighbours are 1 apart. Raises: ValueError where `facing` is given.
    """
    if facing is not None:
        raise ValueError(f"facing is of the layout circle, got {facing!r} for grid, where motions are not turned")
    columns = math.ceil(math.sqrt(n))
    row, column = np.divmod(np.arange(n), columns)
    points = np.stack([column - (columns - 1) / 2, row.max() / 2 - row], axis=1)
    return Places(points, np.zeros(n))


def circle(n: int, facing: str | None = None) -> Places:
    """A circle about the origin, the first in front (+z), the next towards +x.

    facing: "in" (default), "out", or "along" the circle to the next character. Neighbours are 1 apart.
    Raises: ValueError where it is another.
    """
    facing = "in" if facing is None else facing
    if facing not in FACINGS:
        raise ValueError(f"facing must be one of {', '.join(FACINGS)}, got {facing!r}" + _nearest(facing, FACINGS))
    angles = 2 * np.pi * np.arange(n) / n
    radius = 0.5 / math.sin(math.pi / n) if n > 1 else 0.0
    points = radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return Places(points, np.degrees(angles) + FACINGS[facing], looking=True)


# By name: of n and `facing`, places whose neighbours are 1 apart.
LAYOUTS: Mapping[str, Callable[[int, str | None], Places]] = {"grid": grid, "circle": circle}


def read_places(path: str | os.PathLike[str]) -> Places:
    """Places from a file with a row a character: x, z in the clip's units, and the heading in degrees.

    `.csv`, with or without a first line x,z,heading; or `.json`, a list of [x, z, heading] or of objects with those
    names. Raises: ValueError naming the file and the line or row; OSError where it cannot be opened.
    """
    path = Path(path)
    table = path.suffix.lower() != ".json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = _csv_rows(text) if table else json.loads(text)
    except (ValueError, RecursionError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError too
        raise ValueError(f"{path}: not a {path.suffix} file of places: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{path}: must have a row of x, z and heading for each character, has none")
    if table:
        header = f", or the header {','.join(_COLUMNS)}"
        read = [
            _numbers(f"{path}, line {line}", cells, str, "" if index else header)
            for index, (line, cells) in enumerate(rows)
        ]
    else:
        read = [_numbers(f"{path}, row {number}", row, (int, float)) for number, row in enumerate(rows, 1)]
    numbers = np.array(read)
    return Places(numbers[:, :2], numbers[:, 2])


@dataclass(frozen=True)
class Meeting:
    """The two characters of a crowd whose roots come nearest, how near on the ground, and in which frame."""

    distance: float
    characters: tuple[int, int]
    frame: int


def meeting(points: np.ndarray, ways: np.ndarray) -> Meeting | None:
    """The closest two of n characters over all frames; None where n is 1.

    points: (n, 2), where each begins. ways: (n, frames, 2), where each has gone from there.
    Exact; pairs that circles about their whole ways keep apart are not looked at frame by frame.
    """
    best: Meeting | None = None
    reach = np.linalg.norm(ways, axis=2).max(axis=1)
    for first in range(len(points) - 1):
        gaps = points[first + 1 :] - points[first]
        floor = np.linalg.norm(gaps, axis=1) - reach[first + 1 :] - reach[first]
        (near,) = np.nonzero(floor < (math.inf if best is None else best.distance))
        if len(near):
            apart = gaps[near, None] + ways[first + 1 + near] - ways[first]
            distances = np.hypot(apart[..., 0], apart[..., 1])
            pair, frame = np.unravel_index(distances.argmin(), distances.shape)
            if best is None or distances[pair, frame] < best.distance:
                characters = first, first + 1 + int(near[pair])
                best = Meeting(float(distances[pair, frame]), characters, int(frame))
    return best


def widened(points: np.ndarray, ways: np.ndarray, apart: float, distance: float) -> float:
    """A factor of `points`, at least `distance`, at which no two characters come nearer than `apart`.

    points: (n, 2), no two the same. ways: as `meeting`.
    `distance` itself where that is enough; otherwise the least from which on every factor is. Exact, without a search:
    at a factor s the two of a pair are |s gap + d| apart, so that each frame in which d leaves the gap's line by less
    than `apart` has one least s.
    """
    closest = meeting(distance * points, ways)
    if closest is None or closest.distance >= apart:
        return distance
    reach = np.linalg.norm(ways, axis=2).max(axis=1)
    for first in range(len(points) - 1):
        gaps = points[first + 1 :] - points[first]
        lengths = np.linalg.norm(gaps, axis=1)
        (near,) = np.nonzero(lengths * distance < reach[first + 1 :] + reach[first] + apart)
        if len(near):
            x, z = np.moveaxis(ways[first + 1 + near] - ways[first], 2, 0)
            gap_x, gap_z = (gaps[near] / lengths[near, None]).T[..., None]
            along, across = gap_x * x + gap_z * z, gap_x * z - gap_z * x
            inside = np.abs(across) < apart
            needed = (np.sqrt(np.where(inside, apart**2 - across**2, 0)) - along) / lengths[near, None]
            distance = max(distance, float(np.where(inside, needed, 0).max()))
    return distance


@dataclass(frozen=True, eq=False)
class Crowd:
    """Characters in one world; `make_crowd` makes it.

    clips: the motion of each, where it belongs; character k is sample k of `seed`.
    points: (n, 2) float64, x and z of each root in the first frame. headings: (n,), degrees each motion was turned.
    layout: its name, or that of its file.
    distance: from neighbour to neighbour at the start, after widening; None where a file says where all begin.
    apart: what roots keep between them on the ground; all in the clip's units.
    closest: where roots come nearest; None where there is one character.
    """

    clips: tuple[Clip, ...] = field(repr=False)
    points: np.ndarray = field(repr=False)
    headings: np.ndarray = field(repr=False)
    seed: int
    layout: str
    distance: float | None
    apart: float
    closest: Meeting | None

    def __len__(self) -> int:
        return len(self.clips)

    def write(self, folder: str | os.PathLike[str], *, on_step: Callable[[int, int], None] | None = None) -> list[Path]:
        """character000.bvh, ..., results.npz and scene.json into a new or empty folder, all of them or none.

        on_step: called with (characters written, characters in all).

        Returns:
            The motions' files.

        Raises:
            FileExistsError: the folder holds anything. OSError: a file cannot be written.
        """
        digits = max(3, len(str(len(self) - 1)))
        labels = [f"character{number:0{digits}d}" for number in range(len(self))]
        one, lengths = self.clips[0], [len(clip) for clip in self.clips]
        with filling(folder) as temporary:
            with writing_results(
                temporary / RESULTS, one.names, one.parents, one.frame_time, max(lengths), labels, lengths=lengths
            ) as results:
                for number, (label, clip) in enumerate(zip(labels, self.clips, strict=True), 1):
                    clip.write(temporary / f"{label}.bvh")
                    for begin in range(0, len(clip), WRITTEN_AT_ONCE):
                        results.write(clip.slice(begin, begin + WRITTEN_AT_ONCE).positions())
                    if on_step is not None:
                        on_step(number, len(self))
            write_text(temporary / SCENE, json.dumps(self._scene(labels), indent=2, allow_nan=False) + "\n")
        return [Path(folder) / f"{label}.bvh" for label in labels]

    def _scene(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "results": RESULTS,
            "together": True,
            "fps": self.clips[0].fps,
            "seed": self.seed,
            "layout": self.layout,
            "distance": self.distance,
            "spacing": self.apart,
            "closest": None if self.closest is None else self.closest.distance,
            "characters": [
                {"file": f"{label}.bvh", "sample": sample, "frames": len(clip), "x": x, "z": z, "heading": heading}
                for sample, (label, clip, (x, z), heading) in enumerate(
                    zip(labels, self.clips, self.points.tolist(), self.headings.tolist(), strict=True)
                )
            ],
        }


def make_crowd(
    run: Run,
    n: int | None = None,
    frames: int | tuple[int, int] = 200,
    *,
    layout: str | os.PathLike[str] = "grid",
    facing: str | None = None,
    distance: float | None = None,
    apart: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Crowd:
    """Characters of a run in one world. In memory are the channel values of all, and the features of a batch.

    Args:
        run: of a clip of a skeleton.
        n: how many; may be left out where `layout` is a file.
        frames: how long each is, or (shortest, longest), as `lengths_of`.
        layout: "grid", "circle", or a `.csv` or `.json` file as `read_places`.
        facing: of "circle", as `circle`; a character looks where `front` says.
        distance: from neighbour to neighbour at the start, in the clip's units, of "grid" and "circle"; default 1.5
            times `apart`. Where roots would come too near, the layout is widened as a whole.
        apart: what roots keep between them on the ground, over all frames; 0: nothing. Default twice the clip's
            `extent`: bodies that reach no farther do not touch.
        seed, on_step, sampling: as `Run.features`.
        batch_size: how many are computed at once; default as many as make 65 536 frames.

    Raises:
        ValueError: an argument that is not as above, or positions of a file at which two characters come too near.
        OSError: the file cannot be opened.
    """
    if not isinstance(run.layout, ClipLayout) or not isinstance(run.motion, Clip):
        raise ValueError(f"run must be of a clip of a skeleton, got one whose features are {run.layout.kind!r}")
    check_seed(seed)
    places, name = _places_of(layout, n, facing)
    fixed = name not in LAYOUTS
    if fixed and distance is not None:
        raise ValueError(f"distance is of the layouts {' and '.join(LAYOUTS)}, got {distance} for a file of positions")
    _check_length("distance", distance, above=True)
    _check_length("apart", apart)
    lengths = lengths_of(frames, len(places.points), seed)
    size = 2 * extent(run.motion)
    apart = size if apart is None else float(apart)
    distance = 1.5 * (apart or size) if distance is None else float(distance)
    run.motion.slice(0, 1).placed(0.0, 0.0, float(places.looking or places.headings.any()))  # or an error at once
    if fixed:
        _check_meeting(meeting(places.points, np.zeros((len(lengths), 1, 2))), apart, run.motion.frame_time, name)

    if batch_size is None:
        batch_size = max(1, DEFAULT_FRAMES // max(lengths))
    clips, headings = [], places.headings.copy()
    motions = run.features(lengths, len(lengths), seed=seed, batch_size=batch_size, on_step=on_step, **sampling)
    for k, features in enumerate(motions):
        clip = _decoded(run, features)
        if places.looking:
            headings[k] = (headings[k] - front(clip) + 180) % 360 - 180
        clips.append(clip.placed(0.0, 0.0, headings[k]))

    points, ways = places.points, _ways(clips)
    if not fixed:
        distance = widened(points, ways, _with_room(apart), distance)
        points = distance * points
    closest = meeting(points, ways)
    if fixed:
        _check_meeting(closest, apart, run.motion.frame_time, name)
    for k, (x, z) in enumerate(points.tolist()):
        clips[k] = clips[k].placed(x, z)
    return Crowd(tuple(clips), points, headings, seed, name, None if fixed else distance, apart, closest)


def lengths_of(frames: int | tuple[int, int], n: int, seed: int) -> list[int]:
    """Frames of each of n characters: all `frames`, or from the first of two numbers to the second.

    Character k's is drawn from the seed and k alone: one raw number of numpy's Philox under the key (seed, k).
    Raises: ValueError where a number is not an int >= 1, or the second is less than the first.
    """
    low, high = (frames, frames) if isinstance(frames, int) else _pair(frames)
    check_at_least(1, frames=low, n=n)
    check_at_least(low, **{"frames, the longest,": high})
    draws = (int(np.random.Philox(key=np.array([seed, k], np.uint64)).random_raw()) for k in range(n))
    return [low + (draw * (high - low + 1) >> 64) for draw in draws]


def extent(clip: Clip) -> float:
    """How far a skeleton reaches from its root along the ground: its farthest joint, in the median frame.

    The clip's units; the skeleton's `reach` where all joints are above the root.
    """
    part = Clip(clip.skeleton, clip.values[:: max(1, len(clip) // WRITTEN_AT_ONCE)], clip.frame_time)
    away = part.positions(global_=False)[..., [0, 2]].norm(dim=-1).amax(dim=1)
    return float(away.median()) or clip.skeleton.reach()


def front(clip: Clip) -> float:
    """Where a character looks in the first frame, degrees from +z towards +x: along its root's own z axis."""
    x, _, z = clip.slice(0, 1).rotations()[0, 0, :, 2].tolist()
    return math.degrees(math.atan2(x, z))


def _with_room(apart: float) -> float:
    """What is kept between roots so that they are `apart` in the files too, which have nine decimals."""
    return apart + max(1e-6 * apart, 1e-8) if apart else 0.0


def _decoded(run: Run, features: Tensor) -> Clip:
    decode = run.layout.decoder()
    parts = [decode(run.normalizer.invert(part)) for part in features.split(WRITTEN_AT_ONCE)]
    clips = [part for part in parts if isinstance(part, Clip)]
    return Clip(clips[0].skeleton, np.concatenate([clip.values for clip in clips]), clips[0].frame_time)


def _ways(clips: Sequence[Clip]) -> np.ndarray:
    """(n, frames, 2): x and z of each root; the last of a shorter motion stays."""
    ways = np.empty((len(clips), max(map(len, clips)), 2))
    for way, clip in zip(ways, clips, strict=True):
        root = clip.translations()[:, 0, [0, 2]].numpy()
        way[: len(clip)], way[len(clip) :] = root, root[-1]
    return ways


def _places_of(layout: str | os.PathLike[str], n: int | None, facing: str | None) -> tuple[Places, str]:
    """Places and name of a layout: those of LAYOUTS are 1 apart. Raises: ValueError as `make_crowd`; OSError."""
    if n is not None:
        check_at_least(1, n=n)
    name = os.fspath(layout)
    if name in LAYOUTS:
        if n is None:
            raise ValueError(f"n must be given with the layout {name!r}: only a file says how many there are")
        return LAYOUTS[name](n, facing), name
    if Path(name).suffix.lower() not in (".csv", ".json"):
        raise ValueError(
            f"layout must be {', '.join(LAYOUTS)}, or a .csv or .json file, got {name!r}" + _nearest(name, LAYOUTS)
        )
    if facing is not None:
        raise ValueError(f"facing is of the layout circle, got {facing!r} for a file of headings")
    places = read_places(name)
    if n is not None and n != len(places.points):
        raise ValueError(f"{name}: must have a row for each of n = {n} characters, has {len(places.points)}")
    return places, Path(name).name


def _csv_rows(text: str) -> list[tuple[int, list[str]]]:
    """The rows that hold anything, without the header, and the line of the file in which each ends."""
    lines = csv.reader(io.StringIO(text), strict=True)
    rows = [(lines.line_num, cells) for line in lines if any(cells := [cell.strip() for cell in line])]
    return rows[1:] if rows and [cell.lower() for cell in rows[0][1]] == list(_COLUMNS) else rows


def _numbers(where: str, row: Any, kind: type | tuple[type, ...], also: str = "") -> list[float]:
    """x, z and heading of a row, each in a cell of `kind`; `also` is what else it may be. Raises: ValueError."""
    if isinstance(row, dict) and row.keys() == set(_COLUMNS):
        row = [row[name] for name in _COLUMNS]
    try:
        if not isinstance(row, list) or len(row) != 3:
            raise ValueError
        if any(isinstance(cell, bool) or not isinstance(cell, kind) or "_" in str(cell) for cell in row):
            raise ValueError  # "_": Python reads 1_0 as 10
        numbers = [float(cell) for cell in row]
        if not all(abs(number) <= _LARGEST for number in numbers):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(
            f"{where}: must be x, z and heading, each a number within {_LARGEST:g}{also}, got {row!r}"
        ) from None
    return numbers


def _check_length(name: str, value: float | None, *, above: bool = False) -> None:
    """Raise ValueError unless a length is None or a number from 0 (`above`: more than that) on."""
    if value is None:
        return
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= _LARGEST or (above and value == 0):
        least = "above 0" if above else "of 0 or more"
        raise ValueError(f"{name} must be a number {least}, at most {_LARGEST:g}, got {value!r}")


def _check_meeting(closest: Meeting | None, apart: float, frame_time: float, name: str) -> None:
    if closest is not None and closest.distance < apart:
        first, second = closest.characters
        raise ValueError(
            f"{name}: characters {first} and {second} come within {closest.distance:.4g} of each other, "
            f"{closest.frame * frame_time:.2f} s after the start, but must stay {apart:.4g} apart: "
            "place them farther from each other, or lower apart (0: no limit)"
        )


def _pair(frames: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(frames, Sequence) or isinstance(frames, str) or len(frames) != 2:
        raise ValueError(f"frames must be an int >= 1, or two: the shortest and the longest, got {frames!r}")
    return frames[0], frames[1]


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    found = difflib.get_close_matches(name.lower(), names, n=1)
    return f": did you mean {found[0]!r}?" if found else ""
