"""denoise_step in Triton: one program a tile of a row's elements, as kernels/philox/triton_tiles.py cuts them.

Every operand is read once and every result written once, each in its own dtype; arithmetic is in float32.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
import triton
import triton.language as tl
from torch import Tensor

from ..philox.triton_tiles import VARYING, draw_of, launch, load, normals_of, operand, place_of, store
from ..schedule import STEP_COLUMNS

_COLUMNS = tl.constexpr(len(STEP_COLUMNS))
(
    _X_TO_X0, _MODEL_TO_X0, _UNCONDITIONAL_TO_X0, _LIMIT, _SCALE, _OF_X0, _OF_RAW, _OF_X, _OF_PREVIOUS, _OF_NOISE,
) = (tl.constexpr(column) for column in range(len(STEP_COLUMNS)))  # fmt: skip


@triton.jit
def _clamp(x, limit):
    """x within +-limit; NaN of either stays one."""
    nan: tl.constexpr = tl.PropagateNan.ALL
    return tl.minimum(tl.maximum(x, -limit, propagate_nan=nan), limit, propagate_nan=nan)


@triton.jit(do_not_specialize=VARYING)
def _denoise_step(
    x_t, model_output, unconditional, known, mask, previous_x0, noise, coefficients, out, x0_out, draw, key0, key1,
    elements, channels, tiles, E: tl.constexpr, ALIGNED: tl.constexpr, CLIPS: tl.constexpr,
):  # fmt: skip
    """coefficients (rows, 10) contiguous. out and x0_out may each be one of the operands: all of these are read before
    anything is written. Any but x_t, model_output and out may be absent, and draw None."""
    place = place_of(draw, elements, channels, tiles, E, ALIGNED)
    row = coefficients + place.row * _COLUMNS
    x = load(x_t, place)
    raw = tl.load(row + _X_TO_X0) * x + tl.load(row + _MODEL_TO_X0) * load(model_output, place)
    if unconditional.pointer is not None:
        raw += tl.load(row + _UNCONDITIONAL_TO_X0) * load(unconditional, place)
    x0 = _clamp(raw, tl.load(row + _LIMIT)) * tl.load(row + _SCALE) if CLIPS else raw
    if known.pointer is not None:
        share = load(mask, place)
        x0 = load(known, place) * share + x0 * (1.0 - share)
    result = tl.load(row + _OF_X0) * x0 + tl.load(row + _OF_X) * x
    if CLIPS:
        of_raw = tl.load(row + _OF_RAW)  # where it is 0, raw may be infinite
        result += tl.where(of_raw == 0.0, 0.0, of_raw * raw)
    if previous_x0.pointer is not None:
        result += tl.load(row + _OF_PREVIOUS) * load(previous_x0, place)
    if draw is not None:
        result += tl.load(row + _OF_NOISE) * normals_of(draw, key0, key1, place, channels, E)
    elif noise.pointer is not None:
        result += tl.load(row + _OF_NOISE) * load(noise, place)
    if x0_out.pointer is not None:
        store(x0_out, place, x0)
    store(out, place, result)


def denoise_step(
    x_t: Tensor,
    model_output: Tensor,
    coefficients: Tensor,
    unconditional: Tensor | None,
    known: Tensor | None,
    mask: Tensor | None,
    previous_x0: Tensor | None,
    noise: Tensor | None,
    clips: bool,
    draw: bool,
    seed: int,
    step: Tensor,
    sample: Tensor,
    frame: Tensor,
    out: Tensor,
    x0_out: Tensor | None,
) -> None:
    """The state one step earlier into `out`, and its x0 into `x0_out` where given: reference.denoise_step."""
    operands = [operand(x) for x in (x_t, model_output, unconditional, known, mask, previous_x0, noise)]
    arguments = (*operands, coefficients, operand(out), operand(x0_out))
    launch(_denoise_step, out, arguments, draw_of(step, sample, frame) if draw else None, seed, CLIPS=clips)
