"""q_sample: noise a clean state to a timestep."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import _dispatch
from .._checks import STATE_DTYPES, names
from .._library import LIBRARY, is_plain_call, native, no_forward_mode, note_write
from .._state import (
    check_no_gradient_into_out,
    check_noise_source,
    check_out,
    check_state,
    draw_words,
    per_row,
    timesteps,
)
from ..schedule import Schedule
from . import reference

_INPUTS = "Tensor x0, Tensor coefficients, Tensor? noise, int seed, Tensor step, Tensor sample, Tensor frame"
LIBRARY.define(f"q_sample({_INPUTS}, bool return_noise, str backend) -> (Tensor x_t, Tensor noise)")
LIBRARY.define(f"q_sample_out({_INPUTS}, bool return_noise, str backend, Tensor(a!) out) -> Tensor")
LIBRARY.define(f"q_sample_native({_INPUTS}, Tensor(a!) out, Tensor(b!)? noise_out) -> ()")


# An implementation writes x_t to `out` and the noise to `noise_out` where that is given.
def _reference(x0, coefficients, noise, seed, step, sample, frame, out, noise_out):  # type: ignore[no-untyped-def]
    x_t, drawn = reference.q_sample(x0, coefficients, noise, seed, step, sample, frame)
    out.copy_(x_t)
    if noise_out is not None:
        noise_out.copy_(drawn)


def _native(*inputs_and_outs):  # type: ignore[no-untyped-def]
    native("q_sample_native")(*inputs_and_outs)
    note_write(inputs_and_outs[-2])


def _triton(*inputs_and_outs):  # type: ignore[no-untyped-def]
    from . import triton  # only where it is called: the package needs torch alone

    triton.q_sample(*inputs_and_outs)
    note_write(inputs_and_outs[-2])


_dispatch.register("q_sample", "reference", _reference, names(STATE_DTYPES))
_dispatch.register("q_sample", "cpu", _native, ("float32",))
_dispatch.register("q_sample", "triton", _triton, ("float32",))
_dispatch.register("q_sample", "cuda", _native, ("float32",))


def _into_out(*arguments):  # type: ignore[no-untyped-def]
    *inputs, return_noise, backend, out = arguments
    x0 = inputs[0]
    noise_out = x0.new_empty(x0.shape) if return_noise else None
    _dispatch.body("q_sample", backend)(*inputs, out, noise_out)
    return x0.new_empty(0) if noise_out is None else noise_out


def _functional(*arguments):  # type: ignore[no-untyped-def]
    x0 = arguments[0]
    out = x0.new_empty(x0.shape)
    return out, _into_out(*arguments, out)


LIBRARY.impl("q_sample", _functional, "CompositeExplicitAutograd")
LIBRARY.impl("q_sample_out", _into_out, "CompositeExplicitAutograd")


def _noise_fake(x0: Tensor, return_noise: bool) -> Tensor:
    return x0.new_empty(x0.shape) if return_noise else x0.new_empty(0)


@torch.library.register_fake("sinmdm::q_sample", lib=LIBRARY)
def _fake(x0, coefficients, noise, seed, step, sample, frame, return_noise, backend):  # type: ignore[no-untyped-def]
    return x0.new_empty(x0.shape), _noise_fake(x0, return_noise)


@torch.library.register_fake("sinmdm::q_sample_out", lib=LIBRARY)
def _fake_out(x0, coefficients, noise, seed, step, sample, frame, return_noise, backend, out):  # type: ignore[no-untyped-def]
    return _noise_fake(x0, return_noise)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[1])
    ctx.given_noise, ctx.returned_noise = inputs[2] is not None, inputs[7]


def _backward(ctx, grad_x_t, grad_noise):  # type: ignore[no-untyped-def]
    (coefficients,) = ctx.saved_tensors
    signal, sigma = coefficients[:, :, None, None].unbind(1)
    to_noise = None
    if ctx.given_noise:
        to_noise = sigma * grad_x_t + grad_noise if ctx.returned_noise else sigma * grad_x_t
    return signal * grad_x_t, None, to_noise, *[None] * 6


torch.library.register_autograd("sinmdm::q_sample", _backward, setup_context=_setup_context, lib=LIBRARY)


@overload
def q_sample(
    x0: Tensor, t: int | Tensor, schedule: Schedule, *, return_noise: Literal[False] = ..., **options: Any
) -> Tensor: ...
@overload
def q_sample(
    x0: Tensor, t: int | Tensor, schedule: Schedule, *, return_noise: Literal[True], **options: Any
) -> tuple[Tensor, Tensor]: ...
def q_sample(  # type: ignore[misc]  # the overloads name only what the result depends on
    x0: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    *,
    seed: int | None = None,
    step: int | Tensor = 0,
    sample: int | Tensor = 0,
    frame: int | Tensor = 0,
    noise: Tensor | None = None,
    return_noise: bool = False,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """x_t = sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise, in one pass with the noise drawn inside.

    Ho et al. 2020, eq. 4. The noise is `philox_normal`'s: row b draws from (seed, step, sample + b).
    Differentiable in x0 and in a given noise.

    Args:
        x0: (B, frames, channels) float32 or float64, any strides.
        t: timestep 0 .. len(schedule) - 1, one int or (B,) integers.
        schedule: the noise schedule.
        seed: 0 .. 2^64 - 1; this or `noise` must be given.
        step: 32-bit word naming the draw, or (B,) of them; a training loop passes its own step.
        sample: 32-bit word of the first row, later rows counting up, or (B,) words.
        frame: number of x0's first frame, 0 .. 2^40 - 1, or (B,) of them: a piece of a longer sequence then gets that
            sequence's noise.
        noise: standard normals of x0's shape to use instead of drawing.
        return_noise: also return the noise, in x0's dtype.
        out: tensor like x0 to write into; may be x0 itself.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        x_t like x0, and with return_noise the noise.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call.
    """
    check_state("x0", x0)
    check_noise_source(seed, noise, x0)
    t = timesteps("t", t, schedule, x0, least=0)
    coefficients = per_row(schedule.forward_coefficients(t), x0)
    no_forward_mode("q_sample", x0, noise)
    inputs = (x0, coefficients, noise, *draw_words(seed, step, sample, frame, x0))
    arguments = (*inputs, return_noise, _dispatch.choose("q_sample", backend, x0))
    if out is None and is_plain_call(x0, noise):
        x_t, drawn = _functional(*arguments)
    elif out is None:
        x_t, drawn = torch.ops.sinmdm.q_sample(*arguments)
    else:
        check_out("out", out, x0, noise)
        check_no_gradient_into_out(x0, noise, out)
        x_t, drawn = out, torch.ops.sinmdm.q_sample_out(*arguments, out)
    return (x_t, drawn) if return_noise else x_t
