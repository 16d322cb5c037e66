"""results.npz: the joint positions of several motions of one skeleton in one file, without pickles.

positions   (n, frames, J, 3) float32, world units, y up; zero beyond a motion's own length
lengths     (n,) int64, frames of each
names       (J,) text; parents (J,) int64, -1 for the root, each joint after its parent
frame_time  () float64, seconds from frame to frame
labels      (n,) text, what each is called
given       (n, frames, J) bool, what was given and not generated; missing where nothing was
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from .atomic import replacing

RESULTS = "results.npz"
_ARRAYS = {  # kind of number and number of dimensions
    "positions": ("f", 4), "lengths": ("iu", 1), "names": ("U", 1), "parents": ("iu", 1), "frame_time": ("f", 0),
    "labels": ("U", 1), "given": ("b", 3),
}  # fmt: skip
_OPTIONAL = {"given"}
_PADDING = bytes(2**16)
LARGEST = 1e9  # of coordinates: beyond it something is wrong, and float32 has no room to move and scale them


@dataclass(frozen=True, eq=False)
class Results:
    """Motions of one skeleton as positions; the fields are those of the file, `given` None where nothing was.

    Raises: ValueError where shapes disagree, a position is not within 1e9, or parents make no tree.
    """

    positions: np.ndarray
    lengths: np.ndarray
    names: tuple[str, ...]
    parents: tuple[int, ...]
    frame_time: float
    labels: tuple[str, ...]
    given: np.ndarray | None = None

    def __post_init__(self) -> None:
        _check(
            self.positions.shape, self.lengths.tolist(), self.names, self.parents, self.frame_time, self.labels,
            self.given,
        )  # fmt: skip
        check_coordinates(self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def write(self, path: str | os.PathLike[str]) -> None:
        """The file, whole or not at all. Raises: OSError where it cannot be written."""
        frames = self.positions.shape[1]
        with writing_results(
            path, self.names, self.parents, self.frame_time, frames, self.labels, lengths=self.lengths.tolist(),
            given=self.given,
        ) as writer:  # fmt: skip
            for motion, length in zip(self.positions, self.lengths, strict=True):
                writer.write(motion[:length])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Results:
        """Inverse of `write`; nothing is unpickled. Raises: ValueError naming the file and what is wrong; OSError."""
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = {name: _read_array(archive, name) for name in _ARRAYS}
            with np.errstate(over="ignore"):
                positions = arrays["positions"].astype(np.float32, copy=False)
            return cls(
                positions=positions,
                lengths=arrays["lengths"].astype(np.int64),
                names=tuple(arrays["names"].tolist()),
                parents=tuple(arrays["parents"].tolist()),
                frame_time=float(arrays["frame_time"]),
                labels=tuple(arrays["labels"].tolist()),
                given=arrays["given"],
            )
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path}: not a file of results: {error}") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> Any:
    """An array of the file, None where it may be missing and is. Raises: ValueError where it is not as it must be."""
    if f"{name}.npy" not in archive.namelist():
        if name in _OPTIONAL:
            return None
        raise ValueError(f"it has no {name}")
    kinds, dimensions = _ARRAYS[name]
    with archive.open(f"{name}.npy") as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # also has zipfile compare the check sum
            raise ValueError(f"{name} has more bytes than its shape {array.shape} says")
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        raise ValueError(f"{name} has dtype {array.dtype} and shape {array.shape}")
    return array


def _check(
    shape: tuple[int, ...],
    lengths: Sequence[int],
    names: Sequence[str],
    parents: Sequence[int],
    frame_time: float,
    labels: Sequence[str],
    given: np.ndarray | None,
) -> None:
    """Raise ValueError where the others do not describe positions of `shape`."""
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"positions have shape {shape}, must be (motions, frames, joints, 3), none of them 0")
    n, frames, joints, _ = shape
    if len(lengths) != n or not all(1 <= length <= frames for length in lengths):
        raise ValueError(f"lengths must be {n} numbers from 1 to {frames}, got {list(lengths)}")
    if len(names) != joints or len(labels) != n:
        raise ValueError(f"{len(names)} names and {len(labels)} labels for {joints} joints, {n} motions")
    if len(parents) != joints or any(not -1 <= parent < joint for joint, parent in enumerate(parents)):
        raise ValueError(f"parents must be {joints} numbers, each that of an earlier joint or -1, got {list(parents)}")
    if given is not None and given.shape != shape[:3]:
        raise ValueError(f"given has shape {given.shape}, must be {shape[:3]}")
    if not (math.isfinite(frame_time) and frame_time > 0):
        raise ValueError(f"frame_time is {frame_time}, must be positive seconds")


def check_coordinates(positions: np.ndarray) -> None:
    """Raise ValueError where a coordinate is not finite or not within 1e9 of 0."""
    if not (positions.min(initial=0) >= -LARGEST and positions.max(initial=0) <= LARGEST):  # neither where one is NaN
        raise ValueError(f"positions must be finite and within {LARGEST:g}")


class ResultsWriter:
    """Takes positions motion after motion, each chunk by chunk; `writing_results` makes it.

    motions: how many are whole so far.
    """

    def __init__(self, file: IO[bytes], joints: int, frames: int, lengths: Sequence[int]) -> None:
        self._file, self._joints, self._frames, self._lengths = file, joints, frames, list(lengths)
        self.motions = self._done = 0

    def write(self, positions: Tensor | np.ndarray) -> None:
        """Append the next frames (frames, J, 3) of the motion at hand; with its last frame the next motion begins.

        Raises: ValueError where the shape is another, a position is not within 1e9, or they are more than are left
        of the motion; they then count as not given.
        """
        array = np.asarray(positions)
        check_coordinates(array)
        array = np.ascontiguousarray(array, dtype=np.float32)
        if array.ndim != 3 or array.shape[1:] != (self._joints, 3):
            raise ValueError(f"positions have shape {array.shape}, must be (frames, {self._joints}, 3)")
        left = self._lengths[self.motions] - self._done if self.motions < len(self._lengths) else 0
        if len(array) > left:
            raise ValueError(f"positions have {len(array)} frames, but only {left} are left of the motion")
        self._file.write(array.data)
        self._done += len(array)
        if len(array) == left > 0:
            missing = 4 * 3 * self._joints * (self._frames - self._done)
            for begin in range(0, missing, len(_PADDING)):
                self._file.write(_PADDING[: missing - begin])
            self.motions, self._done = self.motions + 1, 0


@contextlib.contextmanager
def writing_results(
    path: str | os.PathLike[str],
    names: Sequence[str],
    parents: Sequence[int],
    frame_time: float,
    frames: int,
    labels: Sequence[str],
    *,
    lengths: Sequence[int] | None = None,
    given: np.ndarray | None = None,
) -> Iterator[ResultsWriter]:
    """Yield a writer for one motion a label, of `lengths` frames (default: all of `frames`); memory is a chunk's.

    The file appears when the block ends; where anything is raised, nothing is left. The same motions give
    the same bytes.
    Raises: ValueError where an argument does not fit the others, or not all that was announced was written; OSError.
    """
    lengths = [frames] * len(labels) if lengths is None else list(lengths)
    given = None if given is None else np.asarray(given, dtype=bool)
    shape = (len(labels), frames, len(names), 3)
    _check(shape, lengths, names, parents, frame_time, labels, given)
    small = {
        "lengths": np.array(lengths, dtype=np.int64),
        "names": np.array(list(names), dtype=np.str_),
        "parents": np.array(list(parents), dtype=np.int64),
        "frame_time": np.array(frame_time, dtype=np.float64),
        "labels": np.array(list(labels), dtype=np.str_),
    } | ({} if given is None else {"given": given})
    with replacing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in small.items():
            with archive.open(_entry(name), "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        with archive.open(_entry("positions"), "w", force_zip64=True) as file:
            head = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            writer = ResultsWriter(file, len(names), frames, lengths)
            yield writer
            if writer.motions < len(labels):
                raise ValueError(f"{path}: {writer.motions} motions were written whole, must be {len(labels)}")


def _entry(name: str) -> zipfile.ZipInfo:
    """An array's entry, without the time of writing."""
    return zipfile.ZipInfo(f"{name}.npy")
