"""denoise_step: one reverse step of any sampler, in one pass."""

import torch
from torch import Tensor

from .. import _dispatch
from .._checks import FLOAT_DTYPES, STATE_DTYPES, check_device, check_dtype, check_shape, names, values_known
from .._library import LIBRARY, native, note_write
from .._state import (
    check_like,
    check_no_gradient_into_out,
    check_noise_source,
    check_out,
    check_state,
    draw_words,
    per_row,
    timesteps,
)
from ..schedule import PREDICTIONS, VARIANCES, Schedule
from . import reference

_INPUTS = (
    "Tensor x_t, Tensor model_output, Tensor coefficients, Tensor? known, Tensor? mask, Tensor? previous_x0,"
    " Tensor? noise, bool draw, int seed, Tensor step, Tensor sample"
)
LIBRARY.define(f"denoise_step({_INPUTS}, str backend) -> Tensor")
LIBRARY.define(f"denoise_step_out({_INPUTS}, str backend, Tensor(a!) out) -> ()")
LIBRARY.define(f"denoise_step_native({_INPUTS}, Tensor(a!) out) -> ()")


def _reference(*inputs_and_out):  # type: ignore[no-untyped-def]
    *inputs, out = inputs_and_out
    out.copy_(reference.denoise_step(*inputs))


def _native(*inputs_and_out):  # type: ignore[no-untyped-def]
    native("denoise_step_native")(*inputs_and_out)
    note_write(inputs_and_out[-1])


_dispatch.register("denoise_step", "reference", _reference, names(STATE_DTYPES))
_dispatch.register("denoise_step", "cpu", _native, ("float32",))


def _into_out(*arguments):  # type: ignore[no-untyped-def]
    *inputs, backend, out = arguments
    _dispatch.body("denoise_step", backend)(*inputs, out)


def _functional(*arguments):  # type: ignore[no-untyped-def]
    x_t = arguments[0]
    out = torch.empty(x_t.shape, dtype=x_t.dtype, device=x_t.device)
    _into_out(*arguments, out)
    return out


LIBRARY.impl("denoise_step", _functional, "CompositeExplicitAutograd")
LIBRARY.impl("denoise_step_out", _into_out, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::denoise_step", lib=LIBRARY)
def _fake(x_t, *_):  # type: ignore[no-untyped-def]
    return x_t.new_empty(x_t.shape)


@torch.library.register_fake("sinmdm::denoise_step_out", lib=LIBRARY)
def _fake_out(*_):  # type: ignore[no-untyped-def]
    return None


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[2], inputs[4])
    ctx.model_dtype = inputs[1].dtype


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    coefficients, mask = ctx.saved_tensors
    x_to_x0, model_to_x0, of_x0, of_x, of_previous, of_noise = coefficients[:, :, None, None].unbind(1)
    to_x0 = of_x0 * grad
    to_known = None if mask is None else to_x0 * mask
    if mask is not None:
        to_x0 = to_x0 * (1 - mask)
    needs = ctx.needs_input_grad
    return (
        of_x * grad + x_to_x0 * to_x0,
        (model_to_x0 * to_x0).to(ctx.model_dtype),
        None,
        to_known if needs[3] else None,
        None,
        of_previous * grad if needs[5] else None,
        of_noise * grad if needs[6] else None,
        *[None] * 5,
    )


torch.library.register_autograd("sinmdm::denoise_step", _backward, setup_context=_setup_context, lib=LIBRARY)


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    t: int | Tensor,
    schedule: Schedule,
    *,
    t_prev: int | Tensor | None = None,
    prediction: str = "x0",
    variance: str = "fixed_small",
    eta: float | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    previous_x0: Tensor | None = None,
    t_last: int | Tensor | None = None,
    seed: int | None = None,
    sample: int | Tensor = 0,
    noise: Tensor | None = None,
    out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The state at timestep t_prev from that at t and the network's output, in one pass with the noise drawn inside.

    Without `eta` the ancestral step of DDPM (Ho et al. 2020, eq. 6 and 7; over a longer stride where t_prev < t - 1);
    with it DDIM's (Song et al. 2021, eq. 12); with `previous_x0` the second-order step of DPM-Solver++(2M) (Lu et al.
    2022, algorithm 2), whose first step is DDIM's with eta 0. The noise is `philox_normal`'s: row b draws from
    (seed, t[b], sample + b). Differentiable in every float tensor but the mask.

    Args:
        x_t: (B, frames, channels) float32 or float64, any strides.
        model_output: x_t's shape, any float dtype.
        t: timestep of x_t, 0 .. len(schedule) - 1, one int or (B,) integers.
        schedule: the noise schedule.
        t_prev: timestep of the result, below t; -1 is the clean state. Default t - 1.
        prediction: what the network gives: "x0", "epsilon" or "v".
        variance: of the ancestral step: "fixed_small" (the posterior's) or "fixed_large" (the stride's beta).
        eta: 0 .. 1, DDIM's share of fresh noise.
        known, mask: before the step, x0 <- known * mask + x0 * (1 - mask); known like x_t and finite everywhere, also
            where the mask is 0; mask in [0, 1], x_t's dtype, broadcasting to x_t.
        previous_x0: x0 of the step before, like x_t; `t_last` is its timestep, default t + (t - t_prev).
        seed: 0 .. 2^64 - 1. This or `noise` must be given where the step has noise.
        sample: 32-bit word of the first row, later rows counting up, or (B,) words.
        noise: standard normals like x_t to use instead of drawing.
        out: tensor like x_t to write into; may be x_t itself.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        The state at t_prev, like x_t (`out` where given).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call.
    """
    check_state("x_t", x_t)
    check_shape("model_output", model_output, tuple(x_t.shape), "(batch, frames, channels)")
    check_dtype("model_output", model_output, FLOAT_DTYPES)
    check_device("model_output", model_output, "x_t", x_t)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    if (known is None) != (mask is None):
        raise ValueError("known and mask must be given together")
    if known is not None and mask is not None:
        check_like("known", known, x_t)
        mask = _expanded_mask(mask, x_t)
    t_rows, previous_rows, last_rows = _steps(t, t_prev, t_last, schedule, x_t, previous_x0)
    noiseless = previous_x0 is not None or eta == 0
    if previous_x0 is not None:
        check_like("previous_x0", previous_x0, x_t)
        if eta:
            raise ValueError(f"eta must be None or 0 where previous_x0 is given, got {eta}")
    if noiseless:
        if noise is not None:
            raise ValueError("noise must not be given for a step without noise (eta 0, or previous_x0 given)")
    elif not (seed is None and noise is None and _ends(t_prev, t)):
        check_noise_source(seed, noise, x_t)

    coefficients = schedule.step_coefficients(
        t_rows, previous_rows, prediction=prediction, variance=variance, eta=eta, t_last=last_rows
    )
    if values_known(coefficients) and not bool(coefficients.isfinite().all()):
        raise ValueError(f"the schedule leaves no signal at t = {t} (alpha_bar 0), which {prediction!r} divides by")
    seed_word, step_words, sample_words = draw_words(seed, t, sample, x_t)
    draw = not noiseless and noise is None and not _ends(t_prev, t)
    arguments = (
        x_t, model_output, per_row(coefficients, x_t), known, mask, previous_x0, noise, draw, seed_word, step_words,
        sample_words, _dispatch.choose("denoise_step", backend, x_t),
    )  # fmt: skip
    if out is None:
        return torch.ops.sinmdm.denoise_step(*arguments)
    check_out(out, x_t, model_output, known, mask, previous_x0, noise)
    check_no_gradient_into_out(x_t, model_output, known, previous_x0, noise, out)
    torch.ops.sinmdm.denoise_step_out(*arguments, out)
    return out


def _ends(t_prev: int | Tensor | None, t: int | Tensor) -> bool:
    """Whether the step is known to reach the clean state in every row, and so has no noise."""
    return t_prev == -1 if isinstance(t_prev, int) else t_prev is None and isinstance(t, int) and t == 0


def _expanded_mask(mask: Tensor, x_t: Tensor) -> Tensor:
    check_dtype("mask", mask, (x_t.dtype,))
    check_device("mask", mask, "x_t", x_t)
    if mask.requires_grad:
        raise ValueError("mask has no gradient: pass mask.detach()")
    try:
        expanded = mask.expand(x_t.shape)
    except RuntimeError as error:
        raise ValueError(f"mask must broadcast to {tuple(x_t.shape)}, got {tuple(mask.shape)}") from error
    if values_known(mask):
        low, high = float(mask.min()), float(mask.max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask must lie in [0, 1], got values from {low} to {high}")
    return expanded


def _steps(
    t: int | Tensor,
    t_prev: int | Tensor | None,
    t_last: int | Tensor | None,
    schedule: Schedule,
    x_t: Tensor,
    previous_x0: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """t, t_prev and t_last as tensors on one device, checked against each other."""
    rows = timesteps("t", t, schedule, x_t, least=0)
    previous = rows - 1 if t_prev is None else timesteps("t_prev", t_prev, schedule, x_t, least=-1)
    last: Tensor | None = None
    if previous_x0 is not None:
        last = 2 * rows - previous if t_last is None else timesteps("t_last", t_last, schedule, x_t, least=0)
    elif t_last is not None:
        raise ValueError("t_last is the timestep of previous_x0, which is not given")
    device = rows.device if previous.device.type == "cpu" else previous.device
    rows, previous = rows.to(device), previous.to(device)
    if values_known(rows) and values_known(previous):
        if not bool((previous < rows).all()):
            raise ValueError(f"t_prev must be below t, got {t_prev!r} for t = {t!r}")
        if last is not None and not bool(((last > rows) & (last < len(schedule))).all()):
            raise ValueError(f"t_last must be above t and below {len(schedule)}, got {t_last!r} for t = {t!r}")
    return rows, previous, None if last is None else last.to(device)
