"""What the Triton kernels of window_attention do with one tile: loads, visibility, scores, dropout, products.

Shapes: M rows against N of the other side; DP is head_dim D padded to a power of two. Slots, columns and boundaries are
as kernels/_window.py defines them, with one change: under "circular" slot p is frame p mod n and may be negative, so
that for every boundary query i meets slot p under column p - i + reach. `reach` is how far back a query may look:
`left`, or left + right under "shift". `size` is left + right + 1, `n` the real frames of the sequence.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
import triton
import triton.language as tl


@triton.jit
def load_rows(base, frame, present, stride, D: tl.constexpr, DP: tl.constexpr, UPCAST: tl.constexpr):
    """(rows, DP) of a matrix (frames, D): rows `frame` where present, else 0. Offsets are of 64 bits."""
    d = tl.arange(0, DP)
    mask = present[:, None] if D == DP else present[:, None] & (d < D)[None, :]
    x = tl.load(base + frame.to(tl.int64)[:, None] * stride + d[None, :], mask=mask, other=0.0)
    return x.to(tl.float32) if UPCAST else x  # the interpreter computes bfloat16 wrongly, without a word


@triton.jit
def store_rows(base, frame, present, stride, x, D: tl.constexpr, DP: tl.constexpr):
    """The reverse of _load."""
    d = tl.arange(0, DP)
    mask = present[:, None] if D == DP else present[:, None] & (d < D)[None, :]
    tl.store(base + frame.to(tl.int64)[:, None] * stride + d[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def length_of(lengths, b, frames, HAS_LENGTHS: tl.constexpr):
    """Real frames of sequence b. On a GPU the values are the caller's promise; a broken one must not read elsewhere."""
    if HAS_LENGTHS:
        return tl.minimum(tl.maximum(tl.load(lengths + b).to(tl.int32), 0), frames)
    else:
        return frames


@triton.jit
def first_slot(i, n, left, size):
    """The first slot that query i sees under "shift"."""
    return tl.maximum(tl.minimum(i - left, n - size), 0)


@triton.jit
def frames_of(p, n, left, size, BOUNDARY: tl.constexpr):
    """The frames that lie in the slots p, and whether there is one (that any query sees)."""
    if BOUNDARY == "circular":
        period = tl.maximum(n, 1)
        lift = (left + period - 1) // period * period  # makes every slot positive, for which % is the modulus
        return (p + lift) % period, (p >= -left) & (p < n + size)
    else:
        return p, (p >= 0) & (p < n)


@triton.jit
def sees(i, p, n, left, size, BOUNDARY: tl.constexpr):
    """Whether query i sees slot p; the two broadcast."""
    if BOUNDARY == "shift":
        start = first_slot(i, n, left, size)
        return (i < n) & (p >= start) & (p < start + size)
    else:
        offset = p - i + left
        seen = (i < n) & (offset >= 0) & (offset < size)
        return seen & (p >= 0) & (p < n) if BOUNDARY == "clip" else seen


@triton.jit
def scores_of(products, i, p, seen, bias, reach, scale, HAS_BIAS: tl.constexpr):
    """Scores of a tile, -inf where not seen. The bias is loaded anew for each tile: its lines stay in the first cache,
    and there is a register more for each score."""
    scores = products * scale
    if HAS_BIAS:
        scores += tl.load(bias + (p - i + reach), mask=seen, other=0.0).to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def dropout_factor(column, i, h, b, key0, key1, limit, keep_scale):
    """Factor of each weight (of the shape of `column`; i broadcasts): 0 where word `column` mod 4 of its counter is at
    most `limit`. Words and keys come as int32 with the bits of the unsigned ones."""
    none = column * 0
    w0, w1, w2, w3 = tl.random.philox_impl(
        (column >> 2).to(tl.uint32, bitcast=True), (none + i).to(tl.uint32, bitcast=True),
        (none + h).to(tl.uint32, bitcast=True), (none + b).to(tl.uint32, bitcast=True),
        (none + key0).to(tl.uint32, bitcast=True), (none + key1).to(tl.uint32, bitcast=True),
    )  # fmt: skip
    which = column & 3
    word = tl.where(which < 2, tl.where(which == 0, w0, w1), tl.where(which == 2, w2, w3))
    return tl.where(word > (none + limit).to(tl.uint32, bitcast=True), keep_scale, 0.0)


@triton.jit
def product_of(weights, x, seen, base, frame, present, stride, D: tl.constexpr, CLEAN: tl.constexpr):
    """weights (M, N) @ x (N, DP), where the weights are 0 unless `seen` (M, N); an element of x, loaded as the other
    arguments say, that is not finite reaches the rows that see it and no other.

    CLEAN: such elements are always left out of the product, which costs a look at each; otherwise the product is taken
    as it comes, and a second time without them where it is not finite.
    """
    wild = ~(tl.abs(x.to(tl.float32)) < float("inf"))
    d = tl.arange(0, x.shape[1])
    if CLEAN:
        product = tl.dot(weights.to(x.dtype), tl.where(wild, 0.0, x), input_precision="ieee")
        repair = tl.max(tl.max(wild.to(tl.int32), 1), 0) > 0
    else:
        product = tl.dot(weights.to(x.dtype), x, input_precision="ieee")
        repair = tl.sum(tl.sum(product * 0.0, 1), 0) != 0.0  # 0 times anything finite is 0
    if repair:
        if not CLEAN:
            # Loaded anew rather than set to 0 in place: that would be done in the layout of a product's operand, which
            # holds each element several times over.
            pointers = base + frame.to(tl.int64)[:, None] * stride + d[None, :]
            mask = present[:, None] & (d < D)[None, :]
            finite = tl.abs(tl.load(pointers, mask=mask, other=0.0).to(tl.float32)) < float("inf")
            clean = tl.load(pointers, mask=mask & finite, other=0.0).to(x.dtype)
            product = tl.dot(weights.to(x.dtype), clean, input_precision="ieee")
        row = tl.arange(0, x.shape[0])
        for n in range(tl.max(tl.where(present, row + 1, 0), 0)):  # of rare use: one row of x at a time
            this = row == n
            at = tl.sum(tl.where(this & present, frame, 0), 0).to(tl.int64)
            values = tl.load(base + at * stride + d, mask=d < D, other=0.0).to(tl.float32)
            weight = tl.sum(tl.where(this[None, :], weights, 0.0), 1)
            affected = tl.sum((this[None, :] & seen).to(tl.int32), 1) > 0
            concerned = affected[:, None] & ~(tl.abs(values) < float("inf"))[None, :]
            product += tl.where(concerned, weight[:, None] * values[None, :], 0.0)
    return product


@triton.jit
def slot_tiles_of(i0, n, left, size, reach, M: tl.constexpr, N: tl.constexpr, BOUNDARY: tl.constexpr):
    """[first, last) tiles of slots, the n-th from slot i0 - reach + n N, of which the queries from i0 see any."""
    end = tl.minimum(i0 + M, n)
    if BOUNDARY == "clip":
        low, high = tl.maximum(i0 - left, 0), tl.minimum(end - left - 1 + size, n)
    elif BOUNDARY == "circular":
        low, high = i0 - left, end - left - 1 + size
    else:
        low, high = first_slot(i0, n, left, size), first_slot(end - 1, n, left, size) + size
    base = i0 - reach
    return (low - base) // N, tl.where(i0 < n, (high - base + N - 1) // N, 0)
