"""philox_normal: the standard normals that every backend draws, as a tensor."""

import math

import torch
from torch import Tensor

from .. import _dispatch
from .._checks import first_frames, signed_seed, words
from .._library import LIBRARY, native, note_write
from .._state import check_no_gradient_into_out
from . import reference

LIBRARY.define(
    "philox_normal(SymInt[] shape, int seed, Tensor step, Tensor sample, Tensor frame, Device device, str backend)"
    " -> Tensor"
)
LIBRARY.define(
    "philox_normal_out(int seed, Tensor step, Tensor sample, Tensor frame, str backend, Tensor(a!) out) -> ()"
)
LIBRARY.define("philox_normal_native(int seed, Tensor step, Tensor sample, Tensor frame, Tensor(a!) out) -> ()")


# An implementation fills `out`, contiguous (rows, frames, channels) float32.
def _reference(seed: int, step: Tensor, sample: Tensor, frame: Tensor, out: Tensor) -> None:
    out.copy_(reference.philox_normal(out.shape, seed, step, sample, frame, out.device))


def _native(seed: int, step: Tensor, sample: Tensor, frame: Tensor, out: Tensor) -> None:
    native("philox_normal_native")(seed, step, sample, frame, out)
    note_write(out)


def _triton(seed: int, step: Tensor, sample: Tensor, frame: Tensor, out: Tensor) -> None:
    from . import triton  # only where it is called: the package needs torch alone

    triton.philox_normal(seed, step, sample, frame, out)
    note_write(out)


_dispatch.register("philox_normal", "reference", _reference, ("float32",))
_dispatch.register("philox_normal", "cpu", _native, ("float32",))
_dispatch.register("philox_normal", "triton", _triton, ("float32",))
_dispatch.register("philox_normal", "cuda", _native, ("float32",))


def _into_out(seed: int, step: Tensor, sample: Tensor, frame: Tensor, backend: str, out: Tensor) -> None:
    _dispatch.body("philox_normal", backend)(seed, step, sample, frame, out)


def _functional(
    shape: list[int], seed: int, step: Tensor, sample: Tensor, frame: Tensor, device: torch.device, backend: str
) -> Tensor:
    out = torch.empty(shape, dtype=torch.float32, device=device)
    _into_out(seed, step, sample, frame, backend, out)
    return out


LIBRARY.impl("philox_normal", _functional, "CompositeExplicitAutograd")
LIBRARY.impl("philox_normal_out", _into_out, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::philox_normal", lib=LIBRARY)
def _fake(
    shape: list[int], seed: int, step: Tensor, sample: Tensor, frame: Tensor, device: torch.device, backend: str
) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=device)


@torch.library.register_fake("sinmdm::philox_normal_out", lib=LIBRARY)
def _fake_out(seed: int, step: Tensor, sample: Tensor, frame: Tensor, backend: str, out: Tensor) -> None:
    return None


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an int from 0 to 2^64 - 1, as every op takes it."""
    signed_seed(seed)


def philox_normal(
    shape: tuple[int, int],
    *,
    seed: int,
    step: int = 0,
    sample: int | Tensor = 0,
    frame: int | Tensor = 0,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Standard normals as the diffusion kernels draw them.

    Philox4x32-10 (Salmon et al. 2011) under the key `seed`: element frame * channels + channel takes normal
    (element mod 4) of the counter (element div 4 in two words, step, sample). So the same numbers come out on every
    backend (integers bit for bit, normals within 2e-6), whatever else is in the batch, and a longer sequence starts
    with the same noise as a shorter one.

    Args:
        shape: (frames, channels), each >= 0.
        seed: 0 .. 2^64 - 1.
        step: 32-bit word naming the draw, such as the timestep.
        sample: 32-bit word naming the sample, or a (B,) integer tensor for B of them at once.
        frame: number of the first frame, 0 .. 2^40 - 1, or one for each of `sample`: later frames of the same draw
            than those from 0 on.
        device: where the result lies; default the CPU (or out's device).
        out: a contiguous float32 tensor of the result's shape to fill and return.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        float32, (frames, channels), or (B, frames, channels) where `sample` is a tensor.

    Raises:
        ValueError: a seed, step, sample, frame, shape or out that is not as above.
        BackendError: the forced backend cannot take the call.
    """
    if len(shape) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise ValueError(f"shape must be (frames, channels), each an int >= 0, got {tuple(shape)!r}")
    batched = isinstance(sample, Tensor)
    rows = sample.shape[0] if isinstance(sample, Tensor) and sample.dim() == 1 else 1
    probe = torch.empty(0, dtype=torch.float32, device=device or (out.device if out is not None else "cpu"))
    step_words = words("step", step, rows, probe.device)
    sample_words = words("sample", sample, rows, probe.device)
    frame_words = first_frames(frame, rows, probe.device)
    backend = _dispatch.choose("philox_normal", backend, probe, elements=rows * math.prod(shape))
    if out is None:
        normals = torch.ops.sinmdm.philox_normal(
            [rows, *shape], signed_seed(seed), step_words, sample_words, frame_words, probe.device, backend
        )
        return normals if batched else normals[0]
    expected = (rows, *shape) if batched else tuple(shape)
    if (out.shape, out.dtype, out.device) != (expected, torch.float32, probe.device) or not out.is_contiguous():
        raise ValueError(
            f"out must be float32 {expected} on {probe.device}, contiguous, "
            f"got {out.dtype} {tuple(out.shape)} with strides {out.stride()} on {out.device}"
        )
    check_no_gradient_into_out(out)
    rows_of_out = out if batched else out[None]
    torch.ops.sinmdm.philox_normal_out(signed_seed(seed), step_words, sample_words, frame_words, backend, rows_of_out)
    return out
