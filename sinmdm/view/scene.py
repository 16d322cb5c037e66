"""What is looked at: characters of any skeletons as joint positions, read from files and set out in one world.

scene.json names a file of results beside it, and says whether its motions belong in one world as they stand:
{"results": "results.npz", "together": true}; what else it holds is not read here.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..motion import RESULTS, Clip, Results
from ..motion.results import check_coordinates

SCENE = "scene.json"

_GAP = 0.4  # between characters that are set out in rows, in the middle one's sizes
_ONE_ROW = 5  # so many at most stand in one row
_WIDE = 1.6  # columns to rows of more than that
_ALIKE = 3.0  # sizes within this ratio are shown as they are: a child beside its father; beyond it, units differ
_AT_ONCE = 256  # poses


@dataclass(frozen=True, eq=False)
class Character:
    """One motion of one skeleton of J joints.

    names, parents: (J,), parents -1 for a root, each joint after its parent.
    positions: (frames, J, 3) float32, y up.
    frame_time: seconds from frame to frame.
    given: (frames, J) bool, what was given and not generated; None where nothing was.
    Raises: ValueError where shapes disagree, a position is not finite, or parents make no tree.
    """

    label: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    positions: np.ndarray
    frame_time: float
    given: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.positions.shape
        if len(shape) != 3 or shape[2] != 3 or 0 in shape:
            raise ValueError(f"positions have shape {shape}, must be (frames, joints, 3), none of them 0")
        if len(self.names) != shape[1] or len(self.parents) != shape[1]:
            raise ValueError(f"{len(self.names)} names and {len(self.parents)} parents for {shape[1]} joints")
        if any(not -1 <= parent < joint for joint, parent in enumerate(self.parents)):
            raise ValueError("parents must have one number a joint, that of an earlier joint, or -1")
        if self.given is not None and self.given.shape != shape[:2]:
            raise ValueError(f"given has shape {self.given.shape}, must be {shape[:2]}")
        if not np.isfinite(self.positions).all():
            raise ValueError("positions must be finite")
        if not (math.isfinite(self.frame_time) and self.frame_time > 0):
            raise ValueError(f"frame_time is {self.frame_time}, must be positive seconds")

    @property
    def frames(self) -> int:
        return len(self.positions)

    @property
    def seconds(self) -> float:
        """How long it lasts; its last frame stays for one frame time."""
        return self.frames * self.frame_time

    @cached_property
    def bone_lengths(self) -> np.ndarray:
        """Distance of each joint from its parent, the median over the frames: (J,) float64, 0 for a root."""
        lengths = np.zeros(len(self.parents))
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                bone = self.positions[:, joint] - self.positions[:, parent]
                lengths[joint] = np.median(np.linalg.norm(bone, axis=-1))
        return lengths

    @cached_property
    def size(self) -> float:
        """Length of the longest way from a root to a joint; 1 where it is 0."""
        ways = np.zeros(len(self.parents))
        for joint, parent in enumerate(self.parents):
            if parent >= 0:
                ways[joint] = ways[parent] + self.bone_lengths[joint]
        return float(ways.max()) or 1.0

    @cached_property
    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest x, y, z over all frames and joints: two (3,) float32."""
        return self.positions.min(axis=(0, 1)), self.positions.max(axis=(0, 1))

    def at(self, seconds: float, *, loop: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """The pose at a time: positions (J, 3) float32 between the frames around it, and what of the nearer was given.

        Past the end the motion begins again, or (loop=False) its last frame stays. Returns also given (J,) bool.
        """
        first, second, part = self._around(np.array([seconds % self.seconds if loop else max(seconds, 0.0)]))
        pose = self._between(first, second, part)[0]
        if self.given is None:
            return pose, np.zeros(len(self.names), dtype=bool)
        return pose, self.given[second[0] if part[0] >= 0.5 else first[0]]

    def boxes(self, times: Sequence[float]) -> np.ndarray:
        """Lowest and highest x, y, z at each of n times in seconds, as `at` without `loop`: (n, 2, 3) float32."""
        boxes = np.empty((len(times), 2, 3), dtype=np.float32)
        for begin in range(0, len(times), _AT_ONCE):
            part = slice(begin, begin + _AT_ONCE)
            poses = self._between(*self._around(np.maximum(times[part], 0.0)))
            boxes[part, 0], boxes[part, 1] = poses.min(axis=1), poses.max(axis=1)
        return boxes

    def _around(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The frames before and after each time >= 0, and how far it is from the first to the second, float32."""
        frame = np.minimum(seconds / self.frame_time, self.frames - 1)
        first = frame.astype(int)
        return first, np.minimum(first + 1, self.frames - 1), (frame - first).astype(np.float32)

    def _between(self, first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
        """Poses (n, J, 3)."""
        share = part[:, None, None]
        return self.positions[first] * (1 - share) + self.positions[second] * share


@dataclass(frozen=True, eq=False)
class Scene:
    """Characters where they stand; `set_out` or `load_characters` makes it.

    together: they share one world and stand as they were made; otherwise they were set out beside each other, their
        lowest points on y = 0.
    scales: what each character's positions were multiplied by, all 1 where sizes were alike or they are together.
    """

    characters: tuple[Character, ...]
    together: bool
    scales: tuple[float, ...]

    @property
    def scaled(self) -> bool:
        """Whether sizes differed so much that the characters were made equally large."""
        return any(scale != 1 for scale in self.scales)

    @property
    def seconds(self) -> float:
        """How long the longest character lasts."""
        return max(character.seconds for character in self.characters)

    @cached_property
    def size(self) -> float:
        """The middle one of the characters' sizes: a length to draw with."""
        return float(np.median([character.size for character in self.characters]))

    @cached_property
    def extents(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest x, y, z of all: two (3,) float32."""
        lows, highs = zip(*(character.extents for character in self.characters), strict=True)
        return np.min(lows, axis=0), np.max(highs, axis=0)

    @property
    def ground(self) -> float:
        """Height of the ground: that of the lowest joint of all."""
        return float(self.extents[0][1])


def load_characters(
    files: Sequence[str | os.PathLike[str]],
    *,
    given: Iterable[str | os.PathLike[str]] = (),
    together: bool | None = None,
) -> Scene:
    """Read files and set their characters out.

    Args:
        files: `.bvh`; `.npz` of results, a character a motion; `.json` as scene.json; or a folder: its scene.json,
            else its results.npz, else all its `.bvh` in order of name.
        given: files of motions that were given, not generated; those that are not among `files` come before them.
        together: whether all stand in one world as they are; None: only where the file is one scene.json that says so.

    Raises: ValueError naming the file and what is wrong; OSError where one cannot be opened.
    """
    marked = [Path(file) for file in given]
    paths = [Path(file) for file in files]
    paths = [path for path in dict.fromkeys(marked) if path not in paths] + paths
    if not paths:
        raise ValueError("there is no file to show")
    groups, sources = [], []
    for path in paths:
        for group in _read(path):
            if path in marked:
                group = [replace(one, given=np.ones(one.positions.shape[:2], dtype=bool)) for one in group]
            groups.append(group)
            sources += [path] * len(group)
    return set_out(_told_apart(groups, sources), together=together)


def set_out(groups: Sequence[Sequence[Character]], *, together: bool | None = None) -> Scene:
    """Characters of a group keep their places; groups stand beside each other, in one row or in rows behind each other.

    together: all are one group; None: they are where there is one group of several.
    Where sizes differ by more than 3 times, each group is made as large as the first, by its middle character's size.
    Raises: ValueError where there is no character.
    """
    groups = [group for group in groups if group]
    if not groups:
        raise ValueError("there is no character to show")
    if together is None:
        together = len(groups) == 1 and len(groups[0]) > 1
    everyone = tuple(character for group in groups for character in group)
    if together:
        return Scene(everyone, True, (1.0,) * len(everyone))
    sizes = [float(np.median([character.size for character in group])) for group in groups]
    alike = max(sizes) <= _ALIKE * min(sizes)
    scales = [1.0 if alike else sizes[0] / size for size in sizes]
    groups = [
        [replace(one, positions=one.positions * np.float32(scale)) for one in group] if scale != 1 else group
        for group, scale in zip(groups, scales, strict=True)
    ]
    size = float(np.median([size * scale for size, scale in zip(sizes, scales, strict=True)]))
    placed = [
        replace(one, positions=one.positions + move)
        for group, move in zip(groups, _moves(groups, _GAP * size), strict=True)
        for one in group
    ]
    each = [scale for group, scale in zip(groups, scales, strict=True) for _ in group]
    return Scene(tuple(placed), False, tuple(each))


def _moves(groups: Sequence[Sequence[Character]], gap: float) -> np.ndarray:
    """How far each group goes, (groups, 3) float32.

    The middle of its extents goes to the middle of its cell of a table, whose rows and columns are as wide as the
    widest in them; the first row is in front (+z), the whole about x = z = 0, each group's lowest point on y = 0.
    """
    lows = np.array([np.min([one.extents[0] for one in group], axis=0) for group in groups], dtype=np.float64)
    highs = np.array([np.max([one.extents[1] for one in group], axis=0) for group in groups], dtype=np.float64)
    count = len(groups)
    columns = count if count <= _ONE_ROW else math.ceil(math.sqrt(_WIDE * count))
    row, column = np.divmod(np.arange(count), columns)
    spans = highs - lows + gap
    widths, depths = np.zeros(column.max() + 1), np.zeros(row.max() + 1)
    np.maximum.at(widths, column, spans[:, 0])
    np.maximum.at(depths, row, spans[:, 2])
    x = np.cumsum(widths) - widths / 2 - widths.sum() / 2
    z = depths.sum() / 2 - np.cumsum(depths) + depths / 2
    targets = np.stack([x[column], np.zeros(count), z[row]], axis=-1)
    bases = (lows + highs) / 2
    bases[:, 1] = lows[:, 1]
    return (targets - bases).astype(np.float32)


def _read(path: Path) -> list[list[Character]]:
    """The groups of characters of a file or folder."""
    if path.is_dir():
        for name in (SCENE, RESULTS):
            if (path / name).is_file():
                return _read(path / name)
        clips = sorted(file for file in path.iterdir() if file.suffix.lower() == ".bvh")
        if not clips:
            raise ValueError(f"{path}: the folder has no {SCENE}, no {RESULTS} and no .bvh file")
        return [_read_clip(file) for file in clips]
    suffix = path.suffix.lower()
    if suffix == ".bvh":
        return [_read_clip(path)]
    if suffix == ".npz":
        return [[character] for character in _read_results(path)]
    if suffix == ".json":
        return _read_scene(path)
    raise ValueError(f"{path}: suffix is {suffix!r}, must be .bvh, .npz or .json, or the path of a folder")


def _read_clip(path: Path) -> list[Character]:
    clip = Clip.read(path)
    positions = clip.positions().numpy()
    try:
        check_coordinates(positions)
        positions = positions.astype(np.float32)
        return [Character(path.stem, clip.names, clip.parents, positions, clip.frame_time)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_results(path: Path) -> list[Character]:
    results = Results.read(path)
    return [
        Character(
            label, results.names, results.parents, results.positions[motion, :length], results.frame_time,
            None if results.given is None or not results.given[motion, :length].any()
            else results.given[motion, :length],
        )
        for motion, (label, length) in enumerate(zip(results.labels, results.lengths.tolist(), strict=True))
    ]  # fmt: skip


def _read_scene(path: Path) -> list[list[Character]]:
    try:
        scene = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too; lists in lists in lists
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(scene, dict) or not isinstance(scene.get("results"), str):
        raise ValueError(f'{path}: no scene: it must be an object whose "results" names a file')
    name = scene["results"]
    if name in ("", ".", "..") or any(mark in name for mark in "/\\:"):  # a scene from others opens no other file
        raise ValueError(f'{path}: "results" is {name!r}, must be the plain name of a file beside it')
    together = scene.get("together", False)
    if not isinstance(together, bool):
        raise ValueError(f'{path}: "together" is {together!r}, must be true or false')
    characters = _read_results(path.parent / name)
    return [characters] if together else [[character] for character in characters]


def _told_apart(groups: list[list[Character]], sources: list[Path]) -> list[list[Character]]:
    """The same, each label that several have preceded by where it comes from, and numbered where that is not enough."""
    labels = [character.label for group in groups for character in group]
    several = {label for label, times in Counter(labels).items() if times > 1}
    labels = [
        f"{_origin(source)}/{label}" if label in several else label
        for label, source in zip(labels, sources, strict=True)
    ]
    times, seen = Counter(labels), Counter[str]()
    named = []
    for label in labels:
        seen[label] += 1
        named.append(f"{label} ({seen[label]})" if times[label] > 1 else label)
    following = iter(named)
    return [[replace(character, label=next(following)) for character in group] for group in groups]


def _origin(path: Path) -> str:
    """What tells a file from others of its name: its folder's name, or a folder's own."""
    place = path.resolve()
    return place.name if place.is_dir() else place.parent.name
