"""The noise of every backend: Philox4x32-10 and Box-Muller, in plain PyTorch. This file defines the stream.

Philox is the counter-based generator of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". A draw is a
pure function of (seed, step, sample, element), so it is the same in any batch, order, thread count and backend.
The logarithm and the sines are polynomials of our own (minimax fits, rounded to float32), the same in every backend,
because the libraries of different devices differ in the last bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

# ln(1 + f) = f - f^2/2 + f^3 * P(f) for sqrt(1/2) <= 1 + f < sqrt(2); relative error 6e-9.
LOG_POLYNOMIAL = (
    0.3333333134651184,
    -0.25000807642936707,
    0.200012668967247,
    -0.16623802483081818,
    0.14201374351978302,
    -0.13156017661094666,
    0.12761884927749634,
    -0.07644633203744888,
)
# sin(2 pi r) = r * S(r^2) and cos(2 pi r) = C(r^2) for |r| <= 1/8; relative errors 3e-9 and 6e-11.
SIN_POLYNOMIAL = (6.2831854820251465, -41.3416633605957, 81.59235382080078, -75.39356231689453)
COS_POLYNOMIAL = (1.0, -19.739208221435547, 64.9393081665039, -85.44229888916016, 59.202796936035156)
LN2 = 0.6931471805599453
SQRT_HALF = 0.7071067811865476


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four 32-bit words for each counter.

    counter: four int64 tensors that broadcast, each holding words 0..2^32-1, lowest word first; seed: the 64-bit key
    (its sign bit may be set). Returns four int64 tensors of words 0..2^32-1.
    """
    c0, c1, c2, c3 = counter
    key0, key1 = seed & MASK, (seed >> 32) & MASK
    for _ in range(ROUNDS):
        # An int64 product wraps modulo 2^64, which keeps all the bits of a 32 x 32 bit product.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        high0, low0 = (product0 >> 32) & MASK, product0 & MASK
        high1, low1 = (product1 >> 32) & MASK, product1 & MASK
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + KEY_INCREMENTS[0]) & MASK, (key1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def counter_of(group: Tensor, step: Tensor, sample: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The counter of the four elements 4 * group .. 4 * group + 3 of a sample's draw."""
    return group & MASK, group >> 32, step, sample


def uniform(word: Tensor) -> Tensor:
    """Float32 in (0, 1), never an end: ((word >> 9) + 1/2) * 2^-23."""
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 u in (0, 1)."""
    mantissa, exponent = torch.frexp(u)
    low = mantissa < SQRT_HALF
    f = torch.where(low, mantissa * 2, mantissa) - 1
    exponent = exponent - low.to(exponent.dtype)
    square = f * f
    return exponent.to(torch.float32) * LN2 + (f - 0.5 * square + square * f * _horner(LOG_POLYNOMIAL, f))


def cos_sin_turns(v: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) of 2 pi v for float32 v in (0, 1)."""
    quarter = torch.floor(4 * v + 0.5)
    r = v - 0.25 * quarter
    square = r * r
    sine, cosine = r * _horner(SIN_POLYNOMIAL, square), _horner(COS_POLYNOMIAL, square)
    quadrant = quarter.to(torch.int64) & 3
    odd = (quadrant & 1) == 1
    x, y = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    return torch.where((quadrant == 1) | (quadrant == 2), -x, x), torch.where(quadrant >= 2, -y, y)


def box_muller(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals, float32, from two words."""
    radius = torch.sqrt(-2.0 * log(uniform(word0)))
    cosine, sine = cos_sin_turns(uniform(word1))
    return radius * cosine, radius * sine


def philox_normal(
    shape: Sequence[int], seed: int, step: Tensor, sample: Tensor, frame: Tensor, device: torch.device
) -> Tensor:
    """Float32 standard normals of `shape` (rows, frames, channels); row b draws from (seed, step[b], sample[b]), and
    its first frame is number frame[b] of the stream."""
    rows, frames, channels = shape
    first = frame[:, None].to(device) * channels
    element = first + torch.arange(frames * channels, device=device, dtype=torch.int64)
    # Counters hold four elements each: those of the row's first to its last, and one more where it begins within one.
    group = first // 4 + torch.arange((frames * channels + 3) // 4 + 1, device=device, dtype=torch.int64)
    counter = counter_of(group, step[:, None].to(device), sample[:, None].to(device))
    w0, w1, w2, w3 = torch.broadcast_tensors(*philox4x32(counter, seed))
    normals = torch.stack([*box_muller(w0, w1), *box_muller(w2, w3)], -1).flatten(1)
    return normals.gather(1, element - first // 4 * 4).reshape(rows, frames, channels)
