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
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from .atomic import replacing

RESULTS = "results.npz"
_ARRAYS = ("positions", "lengths", "names", "parents", "frame_time", "labels")


@dataclass(frozen=True, eq=False)
class Results:
    """Motions of one skeleton as positions; the fields are those of the file, `given` None where nothing was.

    Raises: ValueError where shapes disagree, a position is not finite, or parents make no tree.
    """

    positions: np.ndarray
    lengths: np.ndarray
    names: tuple[str, ...]
    parents: tuple[int, ...]
    frame_time: float
    labels: tuple[str, ...]
    given: np.ndarray | None = None

    def __post_init__(self) -> None:
        shape = self.positions.shape
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"positions have shape {shape}, must be (motions, frames, joints, 3), none of them 0")
        n, frames, joints, _ = shape
        if self.lengths.shape != (n,) or not ((self.lengths >= 1) & (self.lengths <= frames)).all():
            raise ValueError(f"lengths must be {n} numbers from 1 to {frames}, got {self.lengths.tolist()}")
        if len(self.names) != joints or len(self.labels) != n:
            raise ValueError(f"{len(self.names)} names and {len(self.labels)} labels for {joints} joints, {n} motions")
        if len(self.parents) != joints or any(not -1 <= p < j for j, p in enumerate(self.parents)):
            raise ValueError("parents must have one number a joint, that of an earlier joint, or -1")
        if self.given is not None and self.given.shape != shape[:3]:
            raise ValueError(f"given has shape {self.given.shape}, must be {shape[:3]}")
        if not np.isfinite(self.positions).all():
            raise ValueError("positions must be finite")
        if not (np.isfinite(self.frame_time) and self.frame_time > 0):
            raise ValueError(f"frame_time is {self.frame_time}, must be positive seconds")

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
            with np.load(path, allow_pickle=False) as file:
                missing = [name for name in _ARRAYS if name not in file]
                if missing:
                    raise ValueError(f"it has no {', '.join(missing)}")
                return cls(
                    positions=file["positions"].astype(np.float32),
                    lengths=file["lengths"].astype(np.int64),
                    names=tuple(map(str, file["names"].tolist())),
                    parents=tuple(map(int, file["parents"].tolist())),
                    frame_time=float(file["frame_time"]),
                    labels=tuple(map(str, file["labels"].tolist())),
                    given=file["given"].astype(bool) if "given" in file else None,
                )
        except OSError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path}: not a file of results: {error}") from error


class ResultsWriter:
    """Takes positions motion after motion, each chunk by chunk; `writing_results` makes it."""

    def __init__(self, file: IO[bytes], joints: int, frames: int, lengths: Sequence[int]) -> None:
        self._file, self._joints, self._frames, self._lengths = file, joints, frames, list(lengths)
        self._motion = self._done = 0

    def write(self, positions: Tensor | np.ndarray) -> None:
        """Append the next frames (frames, J, 3) of the motion at hand; with its last frame the next motion begins.

        Raises: ValueError where the shape is another, or they are more than are left.
        """
        array = np.ascontiguousarray(positions, dtype=np.float32)
        if array.ndim != 3 or array.shape[1:] != (self._joints, 3):
            raise ValueError(f"positions have shape {array.shape}, must be (frames, {self._joints}, 3)")
        if self.finished or self._done + len(array) > self._lengths[self._motion]:
            raise ValueError("more frames than were announced")
        self._file.write(array.tobytes())
        self._done += len(array)
        if self._done == self._lengths[self._motion]:
            row = 4 * 3 * self._joints
            for _ in range(self._frames - self._done):
                self._file.write(bytes(row))
            self._motion, self._done = self._motion + 1, 0

    @property
    def finished(self) -> bool:
        """Whether every motion is whole."""
        return self._motion == len(self._lengths)


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

    The file appears when the block ends; where anything is raised, nothing is left.
    Raises: ValueError where not all that was announced was written; OSError.
    """
    lengths = [frames] * len(labels) if lengths is None else list(lengths)
    small = {
        "lengths": np.array(lengths, dtype=np.int64),
        "names": np.array(list(names), dtype=np.str_),
        "parents": np.array(list(parents), dtype=np.int64),
        "frame_time": np.array(frame_time, dtype=np.float64),
        "labels": np.array(list(labels), dtype=np.str_),
    } | ({} if given is None else {"given": np.asarray(given, dtype=bool)})
    shape = (len(labels), frames, len(names), 3)
    with replacing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in small.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())
        with archive.open("positions.npy", "w", force_zip64=True) as file:
            head = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            writer = ResultsWriter(file, len(names), frames, lengths)
            yield writer
            if not writer.finished:
                raise ValueError(f"{path}: fewer frames were written than were announced")
