"""Argument checks that several ops share. Each raises an error naming the argument, what it was and what is allowed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

STATE_DTYPES = (torch.float32, torch.float64)
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def names(dtypes: tuple[torch.dtype, ...]) -> tuple[str, ...]:
    """("float32", ...) of (torch.float32, ...)."""
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    """Raise TypeError unless `tensor` has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise TypeError(f"{name} must be {' or '.join(names(allowed))}, got {names((tensor.dtype,))[0]}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `tensor` has exactly this shape, described as `meaning`."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {meaning} = {tuple(shape)}, got {tuple(tensor.shape)}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on {other_name}'s device {other.device}, got {tensor.device}")


def values_known(tensor: Tensor) -> bool:
    """Whether a check may look at the tensor's values: it holds some, and no other device must be waited for."""
    return (
        tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not torch.compiler.is_compiling()
        and not isinstance(tensor, FakeTensor)
    )


def check_boundary(boundary: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for a boundary rule that does not exist."""
    if boundary not in allowed:
        raise ValueError(f"boundary must be one of {', '.join(allowed)}, got {boundary!r}")


def window_pair(window: int | tuple[int, int]) -> tuple[int, int]:
    """(left, right) of a window given as a pair or as one number for both sides."""
    pair = tuple(window) if isinstance(window, Sequence) else (window, window)
    if len(pair) != 2 or any(isinstance(x, bool) or not isinstance(x, int) or not 0 <= x < 2**31 for x in pair):
        raise ValueError(f"window must be an int from 0 to 2**31 - 1 or a pair (left, right) of them, got {window!r}")
    return pair


def check_lengths(lengths: Tensor | None, like: Tensor, frames: int, least: int = 0) -> None:
    """Raise unless `lengths` is (B,) integers on `like`'s device, each from `least` to `frames`.

    The values are looked at on the CPU only: on another device that would make the host wait for it. There they are
    the caller's promise.
    """
    if lengths is None:
        return
    check_shape("lengths", lengths, (like.shape[0],), "(batch,)")
    check_dtype("lengths", lengths, (torch.int32, torch.int64))
    check_device("lengths", lengths, "the input", like)
    if values_known(lengths):
        low, high = int(lengths.min()), int(lengths.max())
        if low < least or high > frames:
            raise ValueError(f"lengths must be from {least} to {frames}, got values from {low} to {high}")


def signed_seed(seed: int) -> int:
    """The 64-bit seed as the signed integer that an op's schema carries."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an int from 0 to 2**64 - 1, got {seed!r}")
    return seed - 2**64 if seed >= 2**63 else seed


def words(name: str, value: int | Tensor, rows: int, device: torch.device, *, count_up: bool = False) -> Tensor:
    """(rows,) int64 tensor of 32-bit counter words: of one int (all equal, or counting up from it) or of a tensor.

    A tensor's values are taken modulo 2^32, so that an int32 holds every word.
    """
    if isinstance(value, Tensor):
        check_shape(name, value, (rows,), "(batch,)")
        check_dtype(name, value, (torch.int32, torch.int64))
        return value.to(device=device, dtype=torch.int64) & 0xFFFFFFFF
    last = value + rows - 1 if count_up and rows else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= last < 2**32:
        raise ValueError(f"{name} must stay within 0 and 2**32 - 1, got {value!r} for {rows} rows")
    if count_up:
        return torch.arange(value, value + rows, device=device, dtype=torch.int64)
    return torch.full((rows,), value, device=device, dtype=torch.int64)


def first_frames(frame: int | Tensor, rows: int, device: torch.device) -> Tensor:
    """(rows,) int64 numbers of each row's first frame, from one int or (B,) integers; values below 2^40."""
    if isinstance(frame, Tensor):
        check_shape("frame", frame, (rows,), "(batch,)")
        check_dtype("frame", frame, (torch.int32, torch.int64))
        if values_known(frame):
            low, high = int(frame.min()), int(frame.max())
            if low < 0 or high >= 2**40:
                raise ValueError(f"frame must be from 0 to 2**40 - 1, got values from {low} to {high}")
        return frame.to(device=device, dtype=torch.int64).contiguous()
    if isinstance(frame, bool) or not isinstance(frame, int) or not 0 <= frame < 2**40:
        raise ValueError(f"frame must be from 0 to 2**40 - 1, got {frame!r}")
    return torch.full((rows,), frame, device=device, dtype=torch.int64)
