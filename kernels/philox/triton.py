"""philox_normal in Triton: one program a tile of a row's elements, as triton_tiles.py cuts them."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
import triton
import triton.language as tl
from torch import Tensor

from .triton_tiles import VARYING, draw_of, launch, normals_of, operand, place_of, store


@triton.jit(do_not_specialize=VARYING)
def _philox_normal(out, draw, key0, key1, elements, channels, tiles, E: tl.constexpr, ALIGNED: tl.constexpr):
    """A program writes a tile of normals, 4 bytes an element, and reads next to nothing."""
    place = place_of(draw, elements, channels, tiles, E, ALIGNED)
    store(out, place, normals_of(draw, key0, key1, place, channels, E))


def philox_normal(seed: int, step: Tensor, sample: Tensor, frame: Tensor, out: Tensor) -> None:
    """Fill `out` (rows, frames, channels) as reference.philox_normal."""
    launch(_philox_normal, out, (operand(out),), draw_of(step, sample, frame), seed)
