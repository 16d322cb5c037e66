"""How the Triton kernels of qna_attention are cut: tile sizes and launch options by the shape of a call.

Nothing here was timed on a GPU. The numbers follow from counting: bytes that a thread keeps in flight, registers
(tests/kernels/qna_attention/triton_resources.json holds the compiler's count, and a spill there fails a test), and the
frames that neighbouring tiles load twice.
"""

from dataclasses import dataclass

LINE = 256  # bytes of a frame that are loaded side by side, where its heads have as many: two lines of the first cache
MOST_HEADS = 8
TILE = 8192  # bytes: 32 frames of that. A window of K frames loads K - 1 more, which the neighbour has loaded as well
LEAST_FRAMES = 16  # of wider heads, in larger tiles, for else these would be mostly what the neighbour loads
MOST_ROWS = 256  # of narrow heads: each row has a score, a bias and a weight to itself, however short it is
# Bytes of a thread: four loads of 16, or two. With four it has a quarter less to do beside them; but in the backward so
# many registers that 12 warps fit a multiprocessor, and not 24.
FORWARD_THREAD, BACKWARD_THREAD = 64, 32


@dataclass(frozen=True)
class Config:
    """A tile of `frames` by `heads`, both powers of two, and Triton's launch option num_warps for either direction.

    frames: outputs in the forward, keys in the backward.
    """

    frames: int
    heads: int
    forward_warps: int
    backward_warps: int


def padded(size: int) -> int:
    """The power of two that holds `size`: tl.arange wants one."""
    return 1 << (size - 1).bit_length()


def tile_config(heads: int, head_dim: int, itemsize: int) -> Config:
    """For frames of `heads` heads of head_dim channels of itemsize bytes."""
    head = padded(head_dim) * itemsize
    together = min(padded(heads), MOST_HEADS, max(1, LINE // head))
    row = together * head
    frames = max(LEAST_FRAMES, min(MOST_ROWS // together, TILE // row))
    warps = (max(4, frames * row // (32 * thread)) for thread in (FORWARD_THREAD, BACKWARD_THREAD))
    return Config(frames, together, *warps)
