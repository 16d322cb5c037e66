"""How the Triton kernels of qna_attention are cut: tile sizes and launch options by the shape of a call.

Nothing here was timed on a GPU. The numbers follow from counting: bytes that a thread moves and keeps in flight,
registers (tests/kernels/qna_attention/triton_resources.json holds the compiler's count, and a spill there fails a
test), and the frames that neighbouring tiles load twice.
"""

from dataclasses import dataclass

MOST_HEADS = 8  # with FRAMES, 256 rows
FRAMES = 32  # a window of K frames loads K - 1 more: from the second cache, for the neighbour has them as well
MOST_ROWS = 256  # each has a score, a bias, a sum of weights: two a thread, however short the rows
LINE = 256  # bytes of a frame that lie side by side: two lines of the first cache
THREAD = 64  # bytes of a thread: four loads of 16, enough in flight to hide memory at eight warps a scheduler
UNROLLED = 8  # offsets of a window: one after the other without a loop, so that the loads of all go out together


@dataclass(frozen=True)
class Config:
    """A tile of `frames` frames by `heads` heads by a head's channels.

    frames: outputs in the forward, keys in the backward; a power of two, as `heads` is.
    warps: Triton's launch option num_warps.
    """

    frames: int
    heads: int
    warps: int


def padded(size: int) -> int:
    """The power of two that holds `size`: tl.arange wants one."""
    return 1 << (size - 1).bit_length()


def tile_config(heads: int, head_dim: int, itemsize: int) -> Config:
    """For `heads` heads of head_dim channels of itemsize bytes."""
    head = padded(head_dim) * itemsize
    together = min(padded(heads), MOST_HEADS, max(1, LINE // head))
    row = together * head
    frames = max(FRAMES, min(MOST_ROWS // together, FRAMES * LINE // row))
    return Config(frames, together, max(4, frames * row // (32 * THREAD)))


def unrolled(columns: int) -> int:
    """How many offsets of a window of `columns` are written out without a loop."""
    return columns if columns <= UNROLLED else 4
