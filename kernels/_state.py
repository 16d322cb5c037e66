"""What q_sample and denoise_step share: checks of a diffusion state, its timesteps and its noise."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ._checks import (
    STATE_DTYPES,
    check_device,
    check_dtype,
    check_shape,
    first_frames,
    signed_seed,
    values_known,
    words,
)
from .schedule import Schedule


def check_state(name: str, x: Tensor) -> None:
    """Raise unless `x` is a (B, frames, channels) state."""
    if x.dim() != 3:
        raise ValueError(f"{name} must have shape (batch, frames, channels), got {tuple(x.shape)}")
    check_dtype(name, x, STATE_DTYPES)


def check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise unless `tensor` has the state's shape, dtype and device."""
    check_shape(name, tensor, tuple(x.shape), "(batch, frames, channels)")
    check_dtype(name, tensor, (x.dtype,))
    check_device(name, tensor, "the state", x)


def check_noise_source(seed: int | None, noise: Tensor | None, x: Tensor) -> None:
    """Raise unless exactly one source of noise is given, and given noise fits."""
    if (seed is None) == (noise is None):
        raise ValueError("give either seed or noise, " + ("not both" if noise is not None else "got neither"))
    if noise is not None:
        check_like("noise", noise, x)


def check_out(name: str, out: Tensor | None, x: Tensor, *operands: Tensor | None) -> None:
    """Raise unless `out` can hold a new state: like `x`, and each operand is `out` itself or lies elsewhere.

    Elements are computed in no particular order, so that one must not be written while another is still to be read.
    """
    if out is None:
        return
    check_like(name, out, x)
    if torch.compiler.is_compiling() or isinstance(out, FakeTensor) or out.device.type == "meta":
        return
    if any(stride == 0 and size > 1 for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError(
            f"{name} must have an element of its own for each of {tuple(out.shape)}, got strides {out.stride()}"
        )
    begin, end, dense = _memory(out)
    for operand in (x, *operands):
        if operand is None or _same_place(out, operand):
            continue
        other_begin, other_end, other_dense = _memory(operand)
        # Views with gaps may lie between one another without harm, and are the caller's business, as in torch.
        if dense and other_dense and begin < other_end and other_begin < end:
            raise ValueError(f"{name} must be one of the inputs itself or share no memory with any of them")


def check_apart(name: str, tensor: Tensor | None, other_name: str, other: Tensor | None) -> None:
    """Raise where two results would be written to one place."""
    if tensor is None or other is None or torch.compiler.is_compiling():
        return
    if isinstance(tensor, FakeTensor) or tensor.device.type == "meta":
        return
    begin, end, dense = _memory(tensor)
    other_begin, other_end, other_dense = _memory(other)
    if tensor.numel() and (
        _same_place(tensor, other) or (dense and other_dense and begin < other_end and other_begin < end)
    ):
        raise ValueError(f"{name} must share no memory with {other_name}")


def _same_place(a: Tensor, b: Tensor) -> bool:
    """Whether each element of `a` is the same element of `b`, which has its shape."""
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return (a.data_ptr(), a.dtype) == (b.data_ptr(), b.dtype) and all(n == 1 or i == j for n, i, j in strides)


def _memory(x: Tensor) -> tuple[int, int, bool]:
    """First byte of a tensor, the one after its last, and whether its elements are all there is between them."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.data_ptr(), x.data_ptr() + span * x.element_size(), span == x.numel()


def check_no_gradient_into_out(*tensors: Tensor | None) -> None:
    """Raise where a gradient would be asked through one of these, while the result goes into a given tensor."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        raise ValueError("out cannot be given where a gradient is needed: leave it out, or call under torch.no_grad()")


def timesteps(name: str, t: int | Tensor, schedule: Schedule, x: Tensor, *, least: int) -> Tensor:
    """Timesteps as int64: (1,) on the CPU for an int, (B,) on x's device for a tensor.

    Values are checked where that needs no wait for a device: an int, or a tensor on the CPU.
    """
    last = len(schedule) - 1
    if not isinstance(t, Tensor):
        if isinstance(t, bool) or not isinstance(t, int) or not least <= t <= last:
            raise ValueError(f"{name} must be from {least} to {last}, got {t!r}")
        return torch.tensor([t])
    check_shape(name, t, (x.shape[0],), "(batch,)")
    check_dtype(name, t, (torch.int32, torch.int64))
    if values_known(t):
        low, high = int(t.min()), int(t.max())
        if low < least or high > last:
            raise ValueError(f"{name} must be from {least} to {last}, got values from {low} to {high}")
    return t.to(device=x.device, dtype=torch.int64)


def per_row(coefficients: Tensor, x: Tensor) -> Tensor:
    """(B, n) coefficients in the state's dtype on its device, from one row or B."""
    return coefficients.to(device=x.device, dtype=x.dtype).expand(x.shape[0], -1).contiguous()


def draw_words(
    seed: int | None, step: int | Tensor, sample: int | Tensor, frame: int | Tensor, x: Tensor
) -> tuple[int, Tensor, Tensor, Tensor]:
    """(seed, step (B,), sample (B,), frame (B,)) as an op's schema carries them."""
    rows = x.shape[0]
    return (
        signed_seed(seed or 0),
        words("step", step, rows, x.device),
        words("sample", sample, rows, x.device, count_up=True),
        first_frames(frame, rows, x.device),
    )
