"""What the Triton kernels of philox_normal, q_sample and denoise_step do with one tile: places, loads, stores, noise.

A tile is E elements of one row (element = frame * channels + channel), one after the other, and a program's own. Where
noise is drawn a tile begins with a counter, so that the four normals of a counter are computed once: tile n of a row
whose first element is number `first` of the stream holds the counters from first // 4 + n * E / 4 on, and begins
first % 4 elements before element n * E. What then lies before the row or behind it is masked.

Operands are read and written once each, whatever the alignment. A packed one, whose rows are each one run of memory, is
addressed by element, and the compiler sees neighbours lie side by side; any other by frame and channel.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import reference

# Nothing here was timed on a GPU. Each of 128 threads has two counters: what a program does once (64-bit offsets,
# coefficients) is then a small part of its instructions, whose number comes near to what a GPU can issue while memory
# brings the operands; and the registers of four would leave fewer loads in flight.
TILE, WARPS = 1024, 4

_LOG = tl.constexpr(reference.LOG_POLYNOMIAL)
_SIN, _COS = tl.constexpr(reference.SIN_POLYNOMIAL), tl.constexpr(reference.COS_POLYNOMIAL)
_LN2 = tl.constexpr(reference.LN2)
_ONE, _SQRT_HALF = tl.constexpr(0x3F800000), tl.constexpr(0x3F3504F3)  # the bits of the float32


class Operand(NamedTuple):
    """A (rows, frames, channels) tensor, or None, and its strides; those of frames and channels are None where it is
    packed. Kernels ask whether `pointer` is None: Triton 3.6 cannot compare a tuple that holds one."""

    pointer: Any
    row: Any
    frame: Any
    channel: Any


class Draw(NamedTuple):
    """What names the noise beside the seed: (rows,) int64 each of step, sample and first frame. The seed comes as two
    int32 of its bits and by itself: in a tuple Triton would make a constant of a 1, do_not_specialize or not."""

    step: Any
    sample: Any
    frame: Any


class Place(NamedTuple):
    """Where a tile lies: its row, its number there and its first element; and (E,) the elements' places in it, their
    frames and channels, and whether they are the row's. Rows, first elements and frames are of 64 bits."""

    row: Any
    tile: Any
    begin: Any
    lane: Any
    frame: Any
    channel: Any
    inside: Any


@triton.jit
def place_of(draw, elements, channels, tiles, E: tl.constexpr, ALIGNED: tl.constexpr):
    """This program's tile. ALIGNED: no noise is drawn, or every row begins with a counter."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = (tl.program_id(0) % tiles).to(tl.int64)
    begin = tile * E
    if not ALIGNED:
        begin -= tl.load(draw.frame + row) * channels & 3
    lane = tl.arange(0, E)
    inside = lane < tl.minimum(elements - begin, E).to(tl.int32)
    if not ALIGNED:
        inside &= lane >= tl.maximum(-begin, 0).to(tl.int32)
    # One division of 64 bits a program, and of 32 an element: E more than a channel of 31 bits needs the 32nd. What
    # lies before the row comes out as nonsense, and is masked.
    short: tl.constexpr = tl.uint32 if channels.dtype == tl.int32 else tl.int64
    base = tl.maximum(begin, 0)
    since = (base % channels + begin - base + lane).to(short)
    width = channels.to(short)
    return Place(row, tile, begin, lane, base // channels + since // width, since % width, inside)


@triton.jit
def _pointers(operand, place):
    pointer = operand.pointer + place.row * operand.row
    if operand.frame is None:
        return pointer + place.begin + place.lane
    else:
        return pointer + place.frame * operand.frame + place.channel.to(tl.int64) * operand.channel


@triton.jit
def load(operand, place):
    """(E,) float32 of an operand. Converted at once, for the interpreter computes bfloat16 wrongly."""
    return tl.load(_pointers(operand, place), mask=place.inside, other=0.0).to(tl.float32)


@triton.jit
def store(operand, place, value):
    """Write (E,) float32."""
    tl.store(_pointers(operand, place), value, mask=place.inside)


@triton.jit
def _horner(COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr, x):
    value = COEFFICIENTS[DEGREE]
    for n in tl.static_range(DEGREE):
        value = value * x + COEFFICIENTS[DEGREE - 1 - n]
    return value


@triton.jit
def uniform(word):
    """As reference.uniform, exactly."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def _log(u):
    """As csrc/philox.h: adding the distance from sqrt(1/2) to 1 carries into the exponent where the mantissa is above
    sqrt(2)."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = ((bits + (_ONE - _SQRT_HALF)) >> 23) - 127
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    return exponent.to(tl.float32) * _LN2 + (f - 0.5 * square + square * f * _horner(_LOG, 7, f))


@triton.jit
def _cos_sin_turns(v):
    quarter = (4.0 * v + 0.5).to(tl.int32)
    r = v - 0.25 * quarter.to(tl.float32)
    square = r * r
    sine, cosine = r * _horner(_SIN, 3, square), _horner(_COS, 4, square)
    quadrant = quarter & 3
    odd = (quadrant & 1) == 1
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -x, x), tl.where(quadrant >= 2, -y, y)


@triton.jit
def box_muller(word0, word1):
    """Two standard normals of two words, as reference.box_muller."""
    radius = tl.sqrt_rn(-2.0 * _log(uniform(word0)))
    cosine, sine = _cos_sin_turns(uniform(word1))
    return radius * cosine, radius * sine


@triton.jit
def words_of(group, step, sample, key0, key1):
    """Four uint32 words of each counter `group` (int64), as reference.philox4x32 of reference.counter_of."""
    none = (group * 0).to(tl.uint32)
    return tl.random.philox_impl(
        group.to(tl.uint32), (group >> 32).to(tl.uint32), none + step.to(tl.uint32), none + sample.to(tl.uint32),
        none + key0.to(tl.uint32, bitcast=True), none + key1.to(tl.uint32, bitcast=True),
    )  # fmt: skip


@triton.jit
def normals_of(draw, key0, key1, place, channels, E: tl.constexpr):
    """(E,) the standard normals of a tile that begins with a counter."""
    first = tl.load(draw.frame + place.row) * channels
    group = (first >> 2) + place.tile * (E // 4) + tl.arange(0, E // 4)
    step, sample = tl.load(draw.step + place.row), tl.load(draw.sample + place.row)
    w0, w1, w2, w3 = words_of(group, step, sample, key0, key1)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))


def operand(x: Tensor | None) -> Operand:
    """A (rows, frames, channels) tensor, or none, as the kernels take it."""
    if x is None:
        return Operand(None, None, None, None)
    _, frames, channels = x.shape
    row, frame, channel = x.stride()
    packed = (channel == 1 or channels == 1) and (frame == channels or frames == 1)
    return Operand(x, row, None if packed else frame, None if packed else channel)


def draw_of(step: Tensor, sample: Tensor, frame: Tensor) -> Draw:
    """(rows,) words each, of any stride, as the kernels take them."""
    return Draw(step.contiguous(), sample.contiguous(), frame.contiguous())


def keys_of(seed: int) -> tuple[int, int]:
    """The lower and the higher word of a 64-bit seed, as int32: every value is one and the same type to Triton."""
    low, high = ((seed >> shift) + 2**31 & 0xFFFFFFFF for shift in (0, 32))
    return low - 2**31, high - 2**31


# Arguments that no kernel is specialized for: their values differ from call to call.
VARYING = ("key0", "key1", "channels", "tiles")


def launch(kernel: Any, out: Tensor, arguments: tuple, draw: Draw | None, seed: int, **constants: bool) -> None:
    """Run `kernel` over all tiles of `out` (rows, frames, channels), its arguments followed by those that all share."""
    rows, frames, channels = out.shape
    elements = frames * channels
    if rows * elements == 0:
        return
    aligned = draw is None or channels % 4 == 0
    tiles = triton.cdiv(elements if aligned else elements + 3, TILE)
    with torch.cuda.device_of(out):
        # Fused multiply-adds are said, for Triton's default changes.
        kernel[(rows * tiles,)](
            *arguments, draw, *keys_of(seed), elements, channels, tiles, E=TILE, ALIGNED=aligned, **constants,
            num_warps=WARPS, enable_fp_fusion=True,
        )  # fmt: skip
