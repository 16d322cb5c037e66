"""How the Triton kernels of window_attention are cut: tile sizes and launch options by the shape of a call.

Nothing here was timed on a GPU. The thresholds follow from counting: the slots that a tile of queries sees, registers
(tests/kernels/window_attention/triton_resources.json holds the compiler's count, and a spill there fails a test) and
the bytes that neighbouring tiles load twice.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """`rows` frames of a program's own tile, walked over in tiles of `others` frames of the other side.

    rows: queries in the forward and for the gradients of queries and bias; keys for the gradients of keys and values.
    others: keys for queries, queries for keys.
    warps, stages: Triton's launch options num_warps and num_stages.
    clean: whether operands are looked through for infinities and NaN before a product, or only where a product has one.
        Looking first wants each operand in registers, and so rules out that it is loaded ahead (stages > 1), but it
        saves the registers of a second product.
    """

    rows: int
    others: int
    warps: int
    stages: int
    clean: bool


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a tile is wide: tl.arange wants one, and tl.dot at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def spans(config: Config, columns: int) -> bool:
    """Whether one tile of slots holds everything that a tile of queries sees under `columns` bias columns."""
    return config.rows + columns - 1 <= config.others


def forward_config(columns: int, head_dim: int, itemsize: int) -> Config:
    """For the forward, of the bias columns a query may see, head_dim and the bytes of an element."""
    dim = padded_head_dim(head_dim)
    if itemsize == 4:
        # float32 products are multiplied out by FMA: small tiles, spread over many threads, keep operands and sums in
        # registers.
        return Config(16, 32, 8, 1, True)
    if dim > 128:
        return Config(16, 32, 4, 1, True)
    if columns <= 33:
        # 16 + 16 and less: 32 queries see at most 64 slots, two tiles, and half of the products count. Memory is the
        # limit, and three programs fit a multiprocessor; with one tile of 64 slots, two.
        return Config(32, 32, 4, 1, False)
    # Wider, 64 queries share the loads of their slots, and the next slots load while these are multiplied.
    return Config(64, 32, 8, 2 if dim <= 64 else 1, False)


def backward_config(columns: int, head_dim: int, itemsize: int, amd: bool) -> Config:
    """For the backward; independent of which gradients are wanted, so that leaving one out changes no other's bits."""
    dim = padded_head_dim(head_dim)
    if itemsize == 4:
        # Wider heads in smaller tiles: at head_dim 256, twice this wants 100 KiB of shared memory, and some have 99.
        return Config(16, 32 if dim <= 64 else 16, 8, 1, False)
    if dim > 64:
        return Config(16, 32, 8, 1, True)
    # Up to 33 columns one tile of 64 slots holds all that 32 queries see, and one launch gives every gradient. That
    # tile spills on gfx942, and everywhere where a head is narrower; half of it does not.
    narrow = Config(16, 64, 4, 1, False) if amd or dim < 64 else Config(32, 64, 8, 1, True)
    return narrow if spans(narrow, columns) else Config(32, 32, 4, 1, True)


# Tiles that a program walks over before it writes its sums of the bias gradient: enough that skewing them to the
# diagonals (about one product's work) is paid once for eight times seven products.
WALK = 8
# ... but fewer where the programs would not fill a device: 132 multiprocessors (H100) with 4 programs each.
PROGRAMS = 4 * 132


def walk(tiles: int, heads: int, programs_a_chunk: int, width: int, frames: int) -> int:
    """How many of a head's `tiles` (over the batch) a program sums the bias gradient of.

    A program writes `width` sums, and one chunk of tiles has `programs_a_chunk` programs a head; together they must
    not hold more than one number for each of the `frames` (over the batch) of a head, unless there is a single chunk.
    """
    most_chunks = max(1, frames // (programs_a_chunk * width))
    wanted = min(WALK, max(1, tiles * heads * programs_a_chunk // PROGRAMS))
    return max(wanted, -(-tiles // most_chunks))
