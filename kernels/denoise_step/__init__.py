"""denoise_step: one reverse step of any sampler, in one pass."""

import math
from typing import Any

import torch
from torch import Tensor

from .. import _dispatch
from .._checks import (
    FLOAT_DTYPES,
    STATE_DTYPES,
    check_device,
    check_dtype,
    check_shape,
    names,
    signed_seed,
    values_known,
)
from .._library import LIBRARY, is_plain_call, native, no_forward_mode, note_write
from .._state import (
    check_apart,
    check_like,
    check_no_gradient_into_out,
    check_noise_source,
    check_out,
    check_state,
    draw_words,
    per_row,
    timesteps,
)
from ..schedule import LIMIT, PREDICTIONS, SCALE, STEP_COLUMNS, VARIANCES, Schedule, check_signal
from . import reference

_INPUTS = (
    "Tensor x_t, Tensor model_output, Tensor coefficients, Tensor? unconditional, Tensor? known, Tensor? mask,"
    " Tensor? previous_x0, Tensor? noise, bool clips, bool draw, int seed, Tensor step, Tensor sample, Tensor frame"
)
LIBRARY.define(f"denoise_step({_INPUTS}, bool return_x0, str backend) -> (Tensor x, Tensor x0)")
LIBRARY.define(f"denoise_step_out({_INPUTS}, str backend, Tensor(a!) out, Tensor(b!)? x0_out) -> ()")
LIBRARY.define(f"denoise_step_native({_INPUTS}, Tensor(a!) out, Tensor(b!)? x0_out) -> ()")


# An implementation writes the new state to `out`, and the x0 it was made from to `x0_out` where that is given.
def _reference(*inputs_and_outs):  # type: ignore[no-untyped-def]
    *inputs, out, x0_out = inputs_and_outs
    new, x0 = reference.denoise_step(*inputs)
    out.copy_(new)
    if x0_out is not None:
        x0_out.copy_(x0)


def _native(*inputs_and_outs):  # type: ignore[no-untyped-def]
    native("denoise_step_native")(*inputs_and_outs)
    for result in inputs_and_outs[-2:]:
        if result is not None:
            note_write(result)


def _triton(*inputs_and_outs):  # type: ignore[no-untyped-def]
    from . import triton  # only where it is called: the package needs torch alone

    triton.denoise_step(*inputs_and_outs)
    for result in inputs_and_outs[-2:]:
        if result is not None:
            note_write(result)


_dispatch.register("denoise_step", "reference", _reference, names(STATE_DTYPES))
_dispatch.register("denoise_step", "cpu", _native, ("float32",))
_dispatch.register("denoise_step", "triton", _triton, ("float32",))
_dispatch.register("denoise_step", "cuda", _native, ("float32",))


def _into_out(*arguments):  # type: ignore[no-untyped-def]
    *inputs, backend, out, x0_out = arguments
    _dispatch.body("denoise_step", backend)(*inputs, out, x0_out)


def _functional(*arguments):  # type: ignore[no-untyped-def]
    *inputs, return_x0, backend = arguments
    x_t = inputs[0]
    out, x0 = (torch.empty(x_t.shape if wanted else 0, dtype=x_t.dtype, device=x_t.device) for wanted in (1, return_x0))
    _into_out(*inputs, backend, out, x0 if return_x0 else None)
    return out, x0


LIBRARY.impl("denoise_step", _functional, "CompositeExplicitAutograd")
LIBRARY.impl("denoise_step_out", _into_out, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::denoise_step", lib=LIBRARY)
def _fake(x_t, *arguments):  # type: ignore[no-untyped-def]
    return_x0 = arguments[-2]
    return x_t.new_empty(x_t.shape), x_t.new_empty(x_t.shape if return_x0 else 0)


@torch.library.register_fake("sinmdm::denoise_step_out", lib=LIBRARY)
def _fake_out(*_):  # type: ignore[no-untyped-def]
    return None


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x_t, model_output, coefficients, unconditional, _, mask, *_ = inputs
    ctx.clips, ctx.returned_x0 = inputs[8], inputs[-2]
    ctx.dtypes = model_output.dtype, None if unconditional is None else unconditional.dtype
    # Where x0 is clipped, the gradient asks which elements were.
    states = (x_t, model_output, unconditional) if ctx.clips else (None, None, None)
    ctx.save_for_backward(coefficients, mask, *states)


def _backward(ctx, grad, grad_x0):  # type: ignore[no-untyped-def]
    coefficients, mask, *states = ctx.saved_tensors
    column = dict(zip(STEP_COLUMNS, coefficients[:, :, None, None].unbind(1), strict=True))
    to_x0 = column["of_x0"] * grad
    if ctx.returned_x0:
        to_x0 = to_x0 + grad_x0
    to_known = None
    if mask is not None:
        to_known, to_x0 = to_x0 * mask, to_x0 * (1 - mask)
    to_raw = to_x0
    if ctx.clips:
        x_t, model_output, unconditional = states
        inside = reference.raw_x0(x_t, model_output, coefficients, unconditional).abs() <= column["limit"]
        to_raw = torch.where(inside, to_x0 * column["scale"], 0) + column["of_raw"] * grad
    needs = ctx.needs_input_grad
    model_dtype, unconditional_dtype = ctx.dtypes
    return (
        column["of_x"] * grad + column["x_to_x0"] * to_raw,
        (column["model_to_x0"] * to_raw).to(model_dtype),
        None,
        (column["unconditional_to_x0"] * to_raw).to(unconditional_dtype) if needs[3] else None,
        to_known if needs[4] else None,
        None,
        column["of_previous"] * grad if needs[6] else None,
        column["of_noise"] * grad if needs[7] else None,
        *[None] * 8,
    )


torch.library.register_autograd("sinmdm::denoise_step", _backward, setup_context=_setup_context, lib=LIBRARY)


def affine_step(
    x_t: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    *,
    unconditional: Tensor | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    previous_x0: Tensor | None = None,
    noise: Tensor | None = None,
    clips: bool = True,
    seed: int | None = None,
    step: int | Tensor = 0,
    sample: int | Tensor = 0,
    frame: int | Tensor = 0,
    return_x0: bool = False,
    out: Tensor | None = None,
    x0_out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The step that `denoise_step` makes, given as coefficients: for samplers that have computed theirs beforehand.

    Args:
        x_t, model_output, unconditional, known, mask, previous_x0, noise, sample, frame, return_x0, out, x0_out,
            backend: as `denoise_step`.
        coefficients: (1, 10) or (B, 10), in the order of `sinmdm.kernels.schedule.STEP_COLUMNS`, as
            `coefficients_between` gives them. Not differentiable.
        clips: whether the columns limit, scale and of_raw are looked at; without, x0 is neither clipped nor scaled.
        seed: 0 .. 2^64 - 1: draw the noise. Where neither it nor `noise` is given the step has none, whatever its
            coefficient.
        step: 32-bit word naming the draw, or (B,) of them.
        mask: that its values lie in [0, 1] is the caller's promise here.

    Returns:
        The new state, like x_t (`out` where given); with return_x0 or x0_out also the x0 that it was made from.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call.
    """
    check_state("x_t", x_t)
    shape = tuple(x_t.shape)
    _check_predictions(x_t, model_output, unconditional)
    if (known is None) != (mask is None):
        raise ValueError("known and mask must be given together")
    if known is not None and mask is not None:
        check_like("known", known, x_t)
        mask = _expanded_mask(mask, x_t)
    if previous_x0 is not None:
        check_like("previous_x0", previous_x0, x_t)
    if seed is not None or noise is not None:
        check_noise_source(seed, noise, x_t)
    if coefficients.dim() != 2 or coefficients.shape[0] not in (1, shape[0]) or coefficients.shape[1] != 10:
        raise ValueError(
            f"coefficients must have shape (1 or batch, 10) = ({shape[0]}, 10), got {tuple(coefficients.shape)}"
        )
    if coefficients.requires_grad:
        raise ValueError("coefficients has no gradient: pass coefficients.detach()")
    no_forward_mode("denoise_step", x_t, model_output, unconditional, known, previous_x0, noise)
    tensors = (unconditional, known, mask, previous_x0, noise)
    inputs = (
        x_t, model_output, per_row(coefficients, x_t), *tensors, clips, seed is not None,
        *draw_words(seed, step, sample, frame, x_t),
    )  # fmt: skip
    chosen = _dispatch.choose("denoise_step", backend, x_t)
    return_x0 = return_x0 or x0_out is not None
    plain = is_plain_call(x_t, model_output, *tensors)
    if out is None and x0_out is None:
        op = _functional if plain else torch.ops.sinmdm.denoise_step
        new, x0 = op(*inputs, return_x0, chosen)
        return (new, x0) if return_x0 else new
    check_no_gradient_into_out(x_t, model_output, *tensors, out, x0_out)
    for name, result in (("out", out), ("x0_out", x0_out)):
        check_out(name, result, x_t, model_output, *tensors)
    check_apart("out", out, "x0_out", x0_out)
    new = torch.empty(shape, dtype=x_t.dtype, device=x_t.device) if out is None else out
    x0 = torch.empty(shape, dtype=x_t.dtype, device=x_t.device) if return_x0 and x0_out is None else x0_out
    if plain and is_plain_call(new, x0):
        _into_out(*inputs, chosen, new, x0)
    else:
        torch.ops.sinmdm.denoise_step_out(*inputs, chosen, new, x0)
    return new if x0 is None else (new, x0)


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
    unconditional: Tensor | None = None,
    guidance: float | None = None,
    clip: float | None = None,
    dynamic_threshold: float | None = None,
    clipped_direction: bool = True,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    previous_x0: Tensor | None = None,
    t_last: int | Tensor | None = None,
    seed: int | None = None,
    sample: int | Tensor = 0,
    frame: int | Tensor = 0,
    noise: Tensor | None = None,
    return_x0: bool = False,
    out: Tensor | None = None,
    x0_out: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
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
        unconditional, guidance: classifier-free guidance (Ho and Salimans 2022): a second prediction like model_output
            and the weight w of w * model_output + (1 - w) * unconditional.
        clip: bound of |x0|, above 0.
        dynamic_threshold: 0 .. 1, bound |x0| of each sample by this quantile of it, at least 1 and at most `clip`, and
            divide by the bound (Saharia et al. 2022, section 2.3). Reads the predictions twice; no gradient.
        clipped_direction: whether the noise that DDIM finds in x_t is that of the clipped x0 or of the raw one.
        known, mask: before the step, x0 <- known * mask + x0 * (1 - mask); known like x_t and finite everywhere, also
            where the mask is 0; mask in [0, 1], x_t's dtype, broadcasting to x_t.
        previous_x0: x0 of the step before, like x_t; `t_last` is its timestep, default t + (t - t_prev).
        seed: 0 .. 2^64 - 1. This or `noise` must be given where the step has noise.
        sample: 32-bit word of the first row, later rows counting up, or (B,) words.
        frame: number of x_t's first frame, 0 .. 2^40 - 1, or (B,) of them: a piece of a longer sequence then gets
            that sequence's noise.
        noise: standard normals like x_t to use instead of drawing.
        return_x0: also return the x0 that the step was made from, clipped and blended.
        out: tensor like x_t to write into; may be x_t itself.
        x0_out: tensor like x_t to write x0 into, which is then returned too; may be previous_x0 itself.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        The state at t_prev, like x_t (`out` where given); with return_x0 or x0_out (state, x0).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call.
    """
    check_state("x_t", x_t)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    if variance not in VARIANCES:
        raise ValueError(f"variance must be one of {', '.join(VARIANCES)}, got {variance!r}")
    if eta is not None and not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 to 1, got {eta}")
    if (unconditional is None) != (guidance is None):
        raise ValueError("unconditional and guidance must be given together")
    if guidance is not None and not math.isfinite(guidance):
        raise ValueError(f"guidance must be finite, got {guidance}")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    noiseless = previous_x0 is not None or eta == 0
    if previous_x0 is not None and eta:
        raise ValueError(f"eta must be None or 0 where previous_x0 is given, got {eta}")
    if mask is not None:
        check_mask(mask)
    if previous_x0 is None and t_last is not None:
        raise ValueError("t_last is the timestep of previous_x0, which is not given")
    if noiseless:
        if noise is not None:
            raise ValueError("noise must not be given for a step without noise (eta 0, or previous_x0 given)")
    elif not (seed is None and noise is None and _ends(t_prev, t)):
        check_noise_source(seed, noise, x_t)
    draw = not noiseless and noise is None and not _ends(t_prev, t)
    if seed is not None:
        signed_seed(seed)  # an error also where it is not used

    options: dict[str, Any] = {
        "prediction": prediction, "variance": variance, "eta": eta, "guidance": guidance, "clip": clip,
        "clipped_direction": clipped_direction,
    }  # fmt: skip
    coefficients = _coefficients(t, t_prev, t_last, schedule, x_t, previous_x0 is not None, options)
    if dynamic_threshold is not None:
        coefficients = thresholded(coefficients, dynamic_threshold, x_t, model_output, unconditional)
    return affine_step(
        x_t, model_output, coefficients, unconditional=unconditional, known=known, mask=mask,
        previous_x0=previous_x0, noise=noise,
        clips=clip is not None or dynamic_threshold is not None or not clipped_direction,
        seed=seed if draw else None, step=t, sample=sample, frame=frame, return_x0=return_x0, out=out, x0_out=x0_out,
        backend=backend,
    )  # fmt: skip


def _check_predictions(x_t: Tensor, model_output: Tensor, unconditional: Tensor | None) -> None:
    for name, prediction in (("model_output", model_output), ("unconditional", unconditional)):
        if prediction is None and name == "unconditional":
            continue
        if not isinstance(prediction, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(prediction).__name__}")
        check_shape(name, prediction, tuple(x_t.shape), "(batch, frames, channels)")
        check_dtype(name, prediction, FLOAT_DTYPES)
        check_device(name, prediction, "x_t", x_t)


def _ends(t_prev: int | Tensor | None, t: int | Tensor) -> bool:
    """Whether the step is known to reach the clean state in every row, and so has no noise."""
    return t_prev == -1 if isinstance(t_prev, int) else t_prev is None and isinstance(t, int) and t == 0


def check_mask(mask: Tensor) -> None:
    """Raise where values of a mask are known and lie outside [0, 1]."""
    if values_known(mask):
        low, high = float(mask.detach().min()), float(mask.detach().max())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"mask must lie in [0, 1], got values from {low} to {high}")


def _expanded_mask(mask: Tensor, x_t: Tensor) -> Tensor:
    check_dtype("mask", mask, (x_t.dtype,))
    check_device("mask", mask, "x_t", x_t)
    if mask.requires_grad:
        raise ValueError("mask has no gradient: pass mask.detach()")
    try:
        return mask.expand(x_t.shape)
    except RuntimeError as error:
        raise ValueError(f"mask must broadcast to {tuple(x_t.shape)}, got {tuple(mask.shape)}") from error


def _coefficients(
    t: int | Tensor,
    t_prev: int | Tensor | None,
    t_last: int | Tensor | None,
    schedule: Schedule,
    x_t: Tensor,
    second_order: bool,
    options: dict[str, Any],
) -> Tensor:
    """(1 or B, 10) coefficients of the step, in the state's dtype, its timesteps checked against each other."""
    if not any(isinstance(x, Tensor | bool) for x in (t, t_prev, t_last)):
        return _row(t, t_prev, t_last, schedule, x_t.dtype, second_order, options)  # type: ignore[arg-type]
    rows = timesteps("t", t, schedule, x_t, least=0)
    previous = rows - 1 if t_prev is None else timesteps("t_prev", t_prev, schedule, x_t, least=-1)
    last: Tensor | None = None
    if second_order:
        last = 2 * rows - previous if t_last is None else timesteps("t_last", t_last, schedule, x_t, least=0)
    device = rows.device if previous.device.type == "cpu" else previous.device
    rows, previous = rows.to(device), previous.to(device)
    if values_known(rows) and values_known(previous):
        if not bool((previous < rows).all()):
            raise ValueError(f"t_prev must be below t, got {t_prev!r} for t = {t!r}")
        if last is not None and not bool(((last > rows) & (last < len(schedule))).all()):
            raise ValueError(f"t_last must be above t and below {len(schedule)}, got {t_last!r} for t = {t!r}")
    last = None if last is None else last.to(device)
    coefficients = schedule.step_coefficients(rows, previous, t_last=last, **options)
    if values_known(coefficients):
        check_signal(coefficients, t, options["prediction"])
    return coefficients.to(x_t.dtype)


def _row(
    t: int, t_prev: int | None, t_last: int | None, schedule: Schedule, dtype: torch.dtype, second_order: bool,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    """`_coefficients` of timesteps that are ints, without a tensor to look at."""
    total = len(schedule)
    for name, value, least in (("t", t, 0), ("t_prev", t_prev, -1), ("t_last", t_last, 0)):
        if value is not None and not (isinstance(value, int) and least <= value < total):
            raise ValueError(f"{name} must be from {least} to {total - 1}, got {value!r}")
    previous = t - 1 if t_prev is None else t_prev
    if previous >= t:
        raise ValueError(f"t_prev must be below t, got {t_prev} for t = {t}")
    last = (2 * t - previous if t_last is None else t_last) if second_order else None
    if last is not None and not t < last < total:
        raise ValueError(f"t_last must be above t and below {total}, got {last} for t = {t}")
    if torch.compiler.is_compiling():
        steps = torch.tensor([t]), torch.tensor([previous])
        lasts = None if last is None else torch.tensor([last])
        return schedule.step_coefficients(*steps, t_last=lasts, **options).to(dtype)
    return schedule._step_row(t, previous, last, dtype, **options)


@torch.no_grad()
def thresholded(
    coefficients: Tensor, ratio: float, x_t: Tensor, model_output: Tensor, unconditional: Tensor | None
) -> Tensor:
    """(B, 10) coefficients with each sample's own limit, and the scale that divides by it: dynamic thresholding.

    coefficients: (1 or B, 10), whose own limit is the largest. The other arguments are as `denoise_step`'s.
    Raises: ValueError where `ratio` or model_output's shape is not as there.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"dynamic_threshold must be from 0 to 1, got {ratio}")
    _check_predictions(x_t, model_output, unconditional)
    coefficients = per_row(coefficients, x_t).clone()
    size = reference.raw_x0(x_t, model_output, coefficients, unconditional).abs().flatten(1)
    if size.shape[1] == 0:
        return coefficients
    size = size.clamp(max=torch.finfo(size.dtype).max)  # between two infinities the interpolation below gives NaN
    # torch.quantile takes no more than 2^24 elements.
    place = ratio * (size.shape[1] - 1)
    low = math.floor(place)
    bound = size.kthvalue(low + 1, 1).values
    if place > low:
        bound = torch.lerp(bound, size.kthvalue(low + 2, 1).values, place - low)
    bound = torch.minimum(bound.clamp(min=1), coefficients[:, LIMIT].clamp(min=1))
    coefficients[:, LIMIT], coefficients[:, SCALE] = bound, 1 / bound
    return coefficients
