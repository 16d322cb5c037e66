"""Motions from and to files, by suffix."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from . import bvh
from .atomic import replacing
from .clip import Clip
from .features import ClipLayout, Layout, Motion


def read_motion(path: str | os.PathLike[str]) -> Motion:
    """A clip from `.bvh`, or an array (frames, features) as a float tensor from `.npy` or `.pt`; nothing is unpickled.

    Raises: BVHError or ValueError naming the file and what is wrong; OSError where it cannot be opened.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".bvh":
        return Clip.read(path)
    if suffix == ".npy":
        return _checked(path, load_npy(path))
    if suffix == ".pt":
        return _checked(path, _load_pt(path))
    raise ValueError(f"{path}: suffix is {suffix!r}, must be .bvh, .npy or .pt")


def write_motion(path: str | os.PathLike[str], motion: Motion) -> None:
    """A clip to `.bvh`, a tensor to `.npy`; the file appears whole or not at all.

    Raises: ValueError where motion and suffix do not go together; OSError where it cannot be written.
    """
    path = Path(path)
    _require_suffix(path, ".bvh" if isinstance(motion, Clip) else ".npy")
    if isinstance(motion, Clip):
        motion.write(path)
        return
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, motion.detach().cpu().numpy(), allow_pickle=False)


class MotionWriter:
    """Takes the features of a motion chunk by chunk into an open file; `writing_motion` makes it.

    written: frames so far.
    """

    def __init__(self, file: BinaryIO, layout: Layout, frames: int) -> None:
        self.written = 0
        self._file = file
        self._frames = frames
        self._decode = layout.decoder()
        if isinstance(layout, ClipLayout):
            file.write(bvh.header(layout.skeleton, frames, layout.frame_time))
        else:
            head = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (frames, layout.size)}
            np.lib.format.write_array_header_1_0(file, head)

    def write(self, features: Tensor) -> Motion:
        """Append the next frames, features (frames, size) in the motion's own units; gives them decoded.

        Raises: ValueError where the layout refuses them, or they are more frames than are left; OSError where they
        cannot be written.
        """
        if (frames := self.written + len(features)) > self._frames:
            raise ValueError(f"features bring the motion to {frames} frames, must be {self._frames} in all")
        motion = self._decode(features)
        if isinstance(motion, Clip):
            self._file.writelines(bvh.rows(motion.values))
        else:
            self._file.write(motion.numpy().data)
        self.written = frames
        return motion


@contextlib.contextmanager
def writing_motion(path: str | os.PathLike[str], layout: Layout, frames: int) -> Iterator[MotionWriter]:
    """Yield a writer for the features of a motion of `frames` frames, of which no more than a chunk is held in memory.

    The file is, byte for byte, what `write_motion` makes of the whole decoded motion: `.bvh` for a skeleton's layout,
    `.npy` for an array's. It appears when the block ends; where anything is raised, nothing is left.
    Raises: ValueError where layout and suffix do not go together, `frames` is less than 1, or another number of frames
    was written; OSError where the file cannot be written.
    """
    path = Path(path)
    _require_suffix(path, ".bvh" if isinstance(layout, ClipLayout) else ".npy")
    if frames < 1:
        raise ValueError(f"frames is {frames}, must be at least 1")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        writer = MotionWriter(file, layout, frames)
        yield writer
        if writer.written != frames:
            raise ValueError(f"{path}: {writer.written} frames were written, must be {frames}")


def _require_suffix(path: Path, wanted: str) -> None:
    if path.suffix.lower() != wanted:
        raise ValueError(f"{path}: suffix is {path.suffix!r}, must be {wanted} for this motion")


def load_npy(path: Path) -> Tensor:
    """An array of any shape from `.npy`, as float32, or float64 where it has more digits; nothing is unpickled.

    Raises: ValueError naming the file where it is none; OSError where it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            array = np.lib.format.read_array(file, allow_pickle=False)
        except OSError:
            raise
        except Exception as error:  # a damaged header can raise anything
            raise ValueError(f"{path}: not a .npy array of numbers: {error}") from error
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{path}: the array has dtype {array.dtype}, must be floating point")
    return torch.from_numpy(array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32))


def holds_objects(path: Path) -> bool:
    """Whether a `.npy` file holds pickled Python objects. Raises: OSError where it cannot be opened."""
    with open(path, "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return bool(read(file)[2].hasobject)
        except OSError:
            raise
        except Exception:  # a damaged header can raise anything
            return False


def _load_pt(path: Path) -> Tensor:
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not a tensor saved by torch.save: {reason}") from error
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{path}: holds a {type(tensor).__name__}, must be one tensor")
    if not tensor.is_floating_point():
        raise ValueError(f"{path}: the tensor has dtype {tensor.dtype}, must be floating point")
    return tensor.detach()


def _checked(path: Path, array: Tensor) -> Tensor:
    if array.ndim != 2 or len(array) < 2 or not array.shape[1]:
        raise ValueError(f"{path}: shape is {tuple(array.shape)}, must be (frames, features), two frames or more")
    if not array.isfinite().all():
        raise ValueError(f"{path}: the array has numbers that are not finite")
    return array.contiguous()
