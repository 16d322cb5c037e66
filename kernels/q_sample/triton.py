"""q_sample in Triton: one program a tile of a row's elements, as kernels/philox/triton_tiles.py cuts them.

An element moves 8 bytes, 4 more for a noise that is given and 4 for one that is returned.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
import triton
import triton.language as tl
from torch import Tensor

from ..philox.triton_tiles import VARYING, draw_of, launch, load, normals_of, operand, place_of, store


@triton.jit(do_not_specialize=VARYING)
def _q_sample(
    x0, noise, coefficients, out, noise_out, draw, key0, key1, elements, channels, tiles, E: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """coefficients (rows, 2) contiguous. x0 and out may be one tensor. noise and noise_out may be absent, and draw is
    None where noise is given."""
    place = place_of(draw, elements, channels, tiles, E, ALIGNED)
    z = normals_of(draw, key0, key1, place, channels, E) if noise.pointer is None else load(noise, place)
    signal, sigma = tl.load(coefficients + place.row * 2), tl.load(coefficients + place.row * 2 + 1)
    x_t = signal * load(x0, place) + sigma * z
    if noise_out.pointer is not None:
        store(noise_out, place, z)
    store(out, place, x_t)


def q_sample(
    x0: Tensor,
    coefficients: Tensor,
    noise: Tensor | None,
    seed: int,
    step: Tensor,
    sample: Tensor,
    frame: Tensor,
    out: Tensor,
    noise_out: Tensor | None,
) -> None:
    """x_t into `out`, and the noise into `noise_out` where that is given: reference.q_sample."""
    arguments = (operand(x0), operand(noise), coefficients, operand(out), operand(noise_out))
    launch(_q_sample, out, arguments, draw_of(step, sample, frame) if noise is None else None, seed)
