"""window_attention in Triton: one forward kernel, one backward kernel, one that adds up the bias gradient.

A program takes a tile of M frames and walks over tiles of N frames of the other side. Tiles of queries (M) against
slots (N) give the output, dq and the bias gradient; tiles of keys (M) against queries (N) give dk and dv. The slots of
a tile of queries from i0 start at i0 - reach, so that the bias of the n-th one is the same Toeplitz matrix for every
i0. So is that of its gradient: it is added up over many tiles in registers, summed along its diagonals once, written as
one row of sums a program, and those rows are added up in a fixed order. Nothing is atomic.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
import torch
import triton
import triton.language as tl
from torch import Tensor

from .config import Config, backward_config, forward_config, padded_head_dim, spans, walk
from .triton_tiles import (
    dropout_factor,
    frames_of,
    length_of,
    load_rows,
    product_of,
    scores_of,
    sees,
    slot_tiles_of,
    store_rows,
)


@triton.jit
def _attend(q, k, v, bias, i0, b, h, n, left, size, reach, column0, k_stride, v_stride, scale, key0, key1, limit,
            keep_scale, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BOUNDARY: tl.constexpr,
            HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr, UPCAST: tl.constexpr, CLEAN: tl.constexpr):  # fmt: skip
    """Softmax over the slots, one tile of them after the other: total (M, DP), highest score (M), denominator (M)."""
    i = (i0 + tl.arange(0, M))[:, None]
    highest = tl.full((M,), float("-inf"), tl.float32)
    denominator = tl.zeros((M,), tl.float32)
    total = tl.zeros((M, DP), tl.float32)
    first, last = slot_tiles_of(i0, n, left, size, reach, M, N, BOUNDARY)
    for tile in range(first, last):
        slots = i0 - reach + tile * N + tl.arange(0, N)
        p = slots[None, :]
        seen = sees(i, p, n, left, size, BOUNDARY)
        frame, present = frames_of(slots, n, left, size, BOUNDARY)
        k_tile = load_rows(k, frame, present, k_stride, D, DP, UPCAST)
        scores = scores_of(
            tl.dot(q, tl.trans(k_tile), input_precision="ieee"), i, p, seen, bias, reach, scale, HAS_BIAS
        )
        higher = tl.maximum(highest, tl.max(scores, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet: exp(-inf) = 0, not exp(nan)
        weights = tl.exp(scores - shift[:, None])
        rescale = tl.exp(highest - shift)
        highest = higher
        denominator = denominator * rescale + tl.sum(weights, 1)
        if DROPOUT:
            weights *= dropout_factor(p - i + (reach + column0), i, h, b, key0, key1, limit, keep_scale)
        v_tile = load_rows(v, frame, present, v_stride, D, DP, UPCAST)
        total = total * rescale[:, None] + product_of(weights, v_tile, seen, v, frame, present, v_stride, D, CLEAN)
    return total, highest, denominator


@triton.jit(do_not_specialize=["frames", "left", "size", "reach", "column0", "key0", "key1", "limit", "tiles"])
def _forward(
    q, k, v, bias, lengths, out, lse,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, bias_h,
    frames, heads, group, left, size, reach, column0, scale, key0, key1, limit, keep_scale, tiles,
    M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BOUNDARY: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, DROPOUT: tl.constexpr, UPCAST: tl.constexpr,
    CLEAN: tl.constexpr,
):  # fmt: skip
    """One program a tile of M queries of one head and sequence. The heads come first: side by side in memory, they
    share its pages. out (B, T, H, D) and lse (B, T, H) are contiguous; strides are of batch, frames and heads."""
    program = tl.program_id(0)
    h = program % heads
    i0 = program // heads % tiles * M
    b = program // heads // tiles
    row = b.to(tl.int64)
    n = length_of(lengths, b, frames, HAS_LENGTHS)
    i = i0 + tl.arange(0, M)
    q += row * q_b + h.to(tl.int64) * q_h
    k += row * k_b + (h // group).to(tl.int64) * k_h
    v += row * v_b + (h // group).to(tl.int64) * v_h
    bias += h * bias_h + column0
    q_tile = load_rows(q, i, i < n, q_t, D, DP, UPCAST)
    total, highest, denominator = _attend(
        q_tile, k, v, bias, i0, b, h, n, left, size, reach, column0, k_t, v_t, scale, key0, key1, limit, keep_scale,
        M, N, D, DP, BOUNDARY, HAS_BIAS, DROPOUT, UPCAST, CLEAN,
    )  # fmt: skip
    result = total / tl.where(denominator == 0, 1.0, denominator)[:, None]  # 0 where a query sees nothing
    store_rows(out + (row * frames * heads + h) * D, i, i < frames, heads * D, result, D, DP)
    tl.store(lse + (row * frames + i) * heads + h, highest + tl.log(denominator), mask=i < frames)


@triton.jit
def _delta(do_tile, out, grad_lse, delta, i, present, heads, h, D: tl.constexpr, DP: tl.constexpr,
           HAS_GRAD_LSE: tl.constexpr, STORED: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """(rows,) delta = rowsum(P dP) - dlse of the queries i: as it was stored, or else with rowsum(dO O) for its sum."""
    at = i.to(tl.int64) * heads + h
    if STORED:
        value = tl.load(delta + at, mask=present, other=0.0)
    else:
        out_tile = load_rows(out + h * D, i, present, heads * D, D, DP, UPCAST)
        value = tl.sum(do_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
        if HAS_GRAD_LSE:
            value -= tl.load(grad_lse + at, mask=present, other=0.0)
    return value


@triton.jit
def _log_denominator(lse, at, present):
    """(rows,) lse, 0 where a query sees nothing: all its scores are -inf, and so its weights become 0."""
    value = tl.load(lse + at, mask=present, other=0.0)
    return tl.where(value == float("-inf"), 0.0, value)


@triton.jit
def _of_queries(q, do, lse, delta, bias_sum, k, v, bias, i0, b, h, n, left, size, reach, column0, first, last, k_stride,
                v_stride, scale, key0, key1, limit, keep_scale, M: tl.constexpr, N: tl.constexpr, D: tl.constexpr,
                DP: tl.constexpr, BOUNDARY: tl.constexpr, HAS_BIAS: tl.constexpr, DROPOUT: tl.constexpr,
                DQ: tl.constexpr, DBIAS: tl.constexpr, DELTA: tl.constexpr, UPCAST: tl.constexpr,
                CLEAN: tl.constexpr):  # fmt: skip
    """Of the queries from i0 over the tiles of slots [first, last): dq / scale (M, DP), bias_sum (M, N) with their dS
    added, and delta (M,), as it is given or, with DELTA, with rowsum(P dP) added."""
    i = (i0 + tl.arange(0, M))[:, None]
    dq = tl.zeros((M, DP), tl.float32)
    for tile in range(first, last):
        slots = i0 - reach + tile * N + tl.arange(0, N)
        p = slots[None, :]
        seen = sees(i, p, n, left, size, BOUNDARY)
        frame, present = frames_of(slots, n, left, size, BOUNDARY)
        k_tile = load_rows(k, frame, present, k_stride, D, DP, UPCAST)
        v_tile = load_rows(v, frame, present, v_stride, D, DP, UPCAST)
        scores = scores_of(
            tl.dot(q, tl.trans(k_tile), input_precision="ieee"), i, p, seen, bias, reach, scale, HAS_BIAS
        )
        dweights = tl.dot(do, tl.trans(v_tile), input_precision="ieee")
        if DROPOUT:
            dweights *= dropout_factor(p - i + (reach + column0), i, h, b, key0, key1, limit, keep_scale)
        weights = tl.exp(scores - lse[:, None])
        if DELTA:
            delta += tl.sum(tl.where(seen, weights * dweights, 0.0), 1)
        dscores = tl.where(seen, weights * (dweights - delta[:, None]), 0.0)
        if DBIAS:
            bias_sum += dscores
        if DQ:
            dq += product_of(dscores, k_tile, seen, k, frame, present, k_stride, D, CLEAN)
    return dq, bias_sum, delta


@triton.jit
def _of_keys(q, k_tile, v_tile, bias, out, lse, grad_out, grad_lse, delta, j0, b, kv_head, n, frames, heads, left,
             size, reach, column0, q_t, q_h, do_t, do_h, bias_h, scale, key0, key1, limit, keep_scale, group,
             M: tl.constexpr, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BOUNDARY: tl.constexpr,
             HAS_BIAS: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, DROPOUT: tl.constexpr, STORED: tl.constexpr,
             UPCAST: tl.constexpr, CLEAN: tl.constexpr):  # fmt: skip
    """dk / scale and dv (M, DP) of the keys from j0. Scores are transposed: (M keys, N queries)."""
    dk = tl.zeros((M, DP), tl.float32)
    dv = tl.zeros((M, DP), tl.float32)
    last_key = tl.minimum(j0 + M, n) - 1
    if BOUNDARY == "circular":  # a frame lies in every slot that is a whole number of loops away
        period = tl.maximum(n, 1)
        loops_back, loops_on = (left + period - 1) // period, (size - 1 - left + period - 1) // period
    else:
        loops_back, loops_on = 0, 0
    for member in range(group):
        h = kv_head * group + member
        q_head = q + h.to(tl.int64) * q_h
        do_head = grad_out + h.to(tl.int64) * do_h
        for loop in range(-loops_back, loops_on + 1):
            slots = j0 + loop * n + tl.arange(0, M)
            low, high = j0 + loop * n, last_key + loop * n
            first, last = tl.maximum(low - (size - 1 - left), 0), tl.minimum(high + left + 1, n)
            if BOUNDARY == "shift":  # the window stands still at both ends, and more queries see the keys there
                first = tl.where(low < size, 0, first)
                last = tl.where(high >= n - size, n, last)
            last = tl.where(j0 < n, last, 0)
            for i0 in range(first, last, N):
                queries = i0 + tl.arange(0, N)
                i, p = queries[None, :], slots[:, None]
                present = queries < n
                # A key beyond the last one lies, under "circular", in a slot that is another frame's.
                seen = sees(i, p, n, left, size, BOUNDARY) & (p <= high)
                q_tile = load_rows(q_head, queries, present, q_t, D, DP, UPCAST)
                do_tile = load_rows(do_head, queries, present, do_t, D, DP, UPCAST)
                at = queries.to(tl.int64) * heads + h
                row_delta = _delta(do_tile, out, grad_lse, delta, queries, present, heads, h, D, DP, HAS_GRAD_LSE,
                                   STORED, UPCAST)  # fmt: skip
                products = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee")
                scores = scores_of(products, i, p, seen, bias + h * bias_h, reach, scale, HAS_BIAS)
                weights = tl.where(seen, tl.exp(scores - _log_denominator(lse, at, present)[None, :]), 0.0)
                dweights = tl.dot(v_tile, tl.trans(do_tile), input_precision="ieee")
                if DROPOUT:
                    factor = dropout_factor(p - i + (reach + column0), i, h, b, key0, key1, limit, keep_scale)
                    dropped = tl.where(seen, weights * factor, 0.0)
                    dweights *= factor
                else:
                    dropped = weights
                dv += product_of(dropped, do_tile, seen, do_head, queries, present, do_t, D, CLEAN)
                dscores = tl.where(seen, weights * (dweights - row_delta[None, :]), 0.0)
                dk += product_of(dscores, q_tile, seen, q_head, queries, present, q_t, D, CLEAN)
    return dk, dv


@triton.jit(
    do_not_specialize=["frames", "left", "size", "reach", "column0", "key0", "key1", "limit", "tiles", "total", "chunk"]
)
def _backward(
    q, k, v, bias, lengths, out, lse, grad_out, grad_lse, delta, dq, dk, dv, partial,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h, do_b, do_t, do_h, bias_h,
    frames, heads, group, left, size, reach, column0, scale, key0, key1, limit, keep_scale, tiles, total, chunk,
    slot_tiles,
    M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BOUNDARY: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_LENGTHS: tl.constexpr, HAS_GRAD_LSE: tl.constexpr, DROPOUT: tl.constexpr,
    STORED: tl.constexpr, DQ: tl.constexpr, DBIAS: tl.constexpr, DKV: tl.constexpr, UPCAST: tl.constexpr,
    CLEAN: tl.constexpr,
):  # fmt: skip
    """Program (chunk of tiles, tile of slots, head) walks over `chunk` of the `total` tiles of the batch.

    DQ: writes dq of its queries. DBIAS: sums the bias gradient over its walk, for one tile of slots of each tile of
    queries (there is only one where DQ and DBIAS go together), into partial (chunk, tile of slots, head, E). DKV:
    writes dk and dv of its keys; its heads are then those of the keys (the same, where it goes together with DQ). All
    three at once read everything from memory once, and neighbours' rows from the second cache. STORED: DQ stores delta
    as rowsum(P dP) - dlse, and the others, launched after it, read it; otherwise each takes rowsum(dO O), which suffers
    from the rounding of O.
    """
    program = tl.program_id(0)
    grid_heads = heads if DQ or DBIAS else heads // group
    h = program % grid_heads
    slot_tile = program // grid_heads % slot_tiles
    begin = program // grid_heads // slot_tiles * chunk
    bias += column0
    bias_sum = tl.zeros((M, N), tl.float32)
    for tile in range(begin, tl.minimum(begin + chunk, total)):
        b = tile // tiles
        row = b.to(tl.int64)
        i0 = tile % tiles * M
        n = length_of(lengths, b, frames, HAS_LENGTHS)
        i = i0 + tl.arange(0, M)
        kv_head = h // group if DQ or DBIAS else h
        q_row, k_row, v_row, do_row = q + row * q_b, k + row * k_b, v + row * v_b, grad_out + row * do_b
        out_row = out + row * frames * heads * D
        lse_row, grad_lse_row = lse + row * frames * heads, grad_lse + row * frames * heads
        delta_row = delta + row * frames * heads
        if DQ or DBIAS:
            q_tile = load_rows(q_row + h.to(tl.int64) * q_h, i, i < n, q_t, D, DP, UPCAST)
            do_tile = load_rows(do_row + h.to(tl.int64) * do_h, i, i < n, do_t, D, DP, UPCAST)
            at = i.to(tl.int64) * heads + h
            log_denominator = _log_denominator(lse_row, at, i < n)
            first, last = slot_tiles_of(i0, n, left, size, reach, M, N, BOUNDARY)
            if DBIAS:
                first, last = tl.maximum(first, slot_tile), tl.minimum(last, slot_tile + 1)
            k_head, v_head = k_row + kv_head.to(tl.int64) * k_h, v_row + kv_head.to(tl.int64) * v_h
            if STORED and DQ:
                row_delta = tl.zeros((M,), tl.float32)
                if HAS_GRAD_LSE:
                    row_delta -= tl.load(grad_lse_row + at, mask=i < n, other=0.0)
                _, _, row_delta = _of_queries(
                    q_tile, do_tile, log_denominator, row_delta, bias_sum, k_head, v_head, bias + h * bias_h, i0, b, h,
                    n, left, size, reach, column0, first, last, k_t, v_t, scale, key0, key1, limit, keep_scale,
                    M, N, D, DP, BOUNDARY, HAS_BIAS, DROPOUT, False, False, True, UPCAST, CLEAN,
                )  # fmt: skip
                tl.store(delta_row + at, row_delta, mask=i < n)
            else:
                row_delta = _delta(do_tile, out_row, grad_lse_row, delta_row, i, i < n, heads, h, D, DP, HAS_GRAD_LSE,
                                   STORED, UPCAST)  # fmt: skip
            gradient, bias_sum, _ = _of_queries(
                q_tile, do_tile, log_denominator, row_delta, bias_sum, k_head, v_head, bias + h * bias_h, i0, b, h, n,
                left, size, reach, column0, first, last, k_t, v_t, scale, key0, key1, limit, keep_scale,
                M, N, D, DP, BOUNDARY, HAS_BIAS, DROPOUT, DQ, DBIAS, False, UPCAST, CLEAN,
            )  # fmt: skip
            if DQ:
                store_rows(dq + (row * frames * heads + h) * D, i, i < frames, heads * D, gradient * scale, D, DP)
        if DKV:
            kv_heads = heads // group
            k_tile = load_rows(k_row + kv_head.to(tl.int64) * k_h, i, i < n, k_t, D, DP, UPCAST)
            v_tile = load_rows(v_row + kv_head.to(tl.int64) * v_h, i, i < n, v_t, D, DP, UPCAST)
            k_gradient, v_gradient = _of_keys(
                q_row, k_tile, v_tile, bias, out_row, lse_row, do_row, grad_lse_row, delta_row, i0, b, kv_head, n,
                frames, heads, left, size, reach, column0, q_t, q_h, do_t, do_h, bias_h, scale, key0, key1, limit,
                keep_scale, group,
                M, N, D, DP, BOUNDARY, HAS_BIAS, HAS_GRAD_LSE, DROPOUT, STORED, UPCAST, CLEAN,
            )  # fmt: skip
            offset = (row * frames * kv_heads + kv_head) * D
            store_rows(dk + offset, i, i < frames, kv_heads * D, k_gradient * scale, D, DP)
            store_rows(dv + offset, i, i < frames, kv_heads * D, v_gradient, D, DP)
    if DBIAS:
        # Element e of the sums is column slot_tile N - origin + e: the diagonal p - i = e - origin of the tile. With a
        # single tile of slots no column lies left of its first slot; otherwise diagonals begin M - 1 columns before.
        origin: tl.constexpr = 0 if E == N else M - 1
        c = tl.arange(0, E)[None, :] - origin + tl.arange(0, M)[:, None]
        inside = (c >= 0) & (c < N)
        skewed = tl.gather(bias_sum, tl.where(inside, c, 0), 1)
        sums = tl.sum(tl.where(inside, skewed, 0.0), 0)
        tl.store(partial + program.to(tl.int64) * E + tl.arange(0, E), sums)


@triton.jit(do_not_specialize=["chunks", "slot_tiles", "columns"])
def _add_partial(
    partial, dbias, chunks, slot_tiles, columns, dbias_h,
    M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program COLUMNS columns of one head: their sums of all chunks and tiles of slots, ROWS chunks at a time."""
    h, heads = tl.program_id(1), tl.num_programs(1)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    origin: tl.constexpr = 0 if E == N else M - 1
    first = tl.maximum(tl.program_id(0) * COLUMNS + origin - E + N, 0) // N
    last = tl.minimum((tl.program_id(0) * COLUMNS + COLUMNS - 1 + origin) // N + 1, slot_tiles)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for slot_tile in range(first, last):
        e = column - slot_tile * N + origin
        for begin in range(0, chunks, ROWS):
            chunk = begin + tl.arange(0, ROWS)
            at = ((chunk.to(tl.int64) * slot_tiles + slot_tile) * heads + h)[:, None] * E + e[None, :]
            present = (chunk < chunks)[:, None] & ((e >= 0) & (e < E) & (column < columns))[None, :]
            sums += tl.load(partial + at, mask=present, other=0.0)
    total = tl.sum(sums, 0)
    tl.store(dbias + h * dbias_h + column, total.to(dbias.dtype.element_ty), mask=column < columns)


AMD = torch.version.hip is not None  # whose registers are others: config.py
BLOCK = {"ROWS": 16, "COLUMNS": 64}  # of _add_partial: 1024 numbers at a time, four a thread


def _unit(x: Tensor) -> Tensor:
    """x (B, T, H, D) itself where its last stride is 1 (or D is), else a copy."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _signed(word: int) -> int:
    """A 32-bit word as the int32 of the same bits, so that every value is one and the same type to Triton."""
    return word - 2**32 if word >= 2**31 else word


def _geometry(
    frames: int, left: int, right: int, boundary: str, dropout_p: float, seed: int, heads: int, group: int, scale: float
) -> tuple[dict, dict, int]:
    """(run-time arguments, constants, bias columns that any query meets) of the kernels that the passes share."""
    beyond = 0
    if boundary == "clip":  # no query meets the columns of a window that is wider than the sequence
        beyond = max(0, left - (frames - 1))
        left, right = left - beyond, min(right, frames - 1)
    size = left + right + 1
    reach, columns = (size - 1, 2 * size - 1) if boundary == "shift" else (left, size)
    threshold = round(dropout_p * 2**32)  # kept are the words from here on; at most 2^32, which no word has
    arguments = {
        "frames": frames, "heads": heads, "group": group, "left": left, "size": size, "reach": reach,
        "column0": beyond, "scale": scale, "key0": _signed(seed & 0xFFFFFFFF), "key1": _signed(seed >> 32 & 0xFFFFFFFF),
        "limit": _signed(max(threshold - 1, 0)), "keep_scale": 1 / (1 - dropout_p),
    }  # fmt: skip
    constants = {
        "BOUNDARY": boundary, "DROPOUT": threshold > 0, "UPCAST": triton.knobs.runtime.interpret,
    }  # fmt: skip
    return arguments, constants, columns


def _options(config: Config) -> dict:
    # Fused multiply-adds are said, for Triton's default changes.
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_bias: Tensor | None,
    lengths: Tensor | None,
    left: int,
    right: int,
    scale: float,
    boundary: str,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """out (B, T, H, D) in q's dtype and lse (B, T, H) float32: reference.window_attention."""
    batch, frames, heads, dim = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    if not batch:
        return out, lse
    q, k, v = _unit(q), _unit(k), _unit(v)
    bias = None if rel_bias is None else rel_bias.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    arguments, constants, columns = _geometry(
        frames, left, right, boundary, dropout_p, seed, heads, heads // k.shape[2], scale
    )
    config = forward_config(columns, dim, q.element_size())
    tiles = triton.cdiv(frames, config.rows)
    with torch.cuda.device_of(q):
        _forward[(tiles * batch * heads,)](
            q, k, v, q if bias is None else bias, q if lengths is None else lengths, out, lse,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], 0 if bias is None else bias.stride(0),
            **arguments, tiles=tiles, M=config.rows, N=config.others, D=dim, DP=padded_head_dim(dim),
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, CLEAN=config.clean, **constants,
            **_options(config),
        )  # fmt: skip
    return out, lse


def window_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_bias: Tensor | None,
    lengths: Tensor | None,
    out: Tensor,
    lse: Tensor,
    left: int,
    right: int,
    scale: float,
    boundary: str,
    dropout_p: float,
    seed: int,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and rel_bias (empty unless `bias_grad`): reference.window_attention_backward."""
    batch, frames, heads, dim = q.shape
    group = heads // k.shape[2]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    arguments, constants, columns = _geometry(frames, left, right, boundary, dropout_p, seed, heads, group, scale)
    dbias = lse.new_empty(0)
    if bias_grad and rel_bias is not None:
        dbias = torch.empty_like(rel_bias, memory_format=torch.contiguous_format)
        if columns < rel_bias.shape[1] or not batch:
            dbias.zero_()  # also the columns that no query meets
    if not batch:
        return dq, dk, dv, dbias
    grad_out, q, k, v = _unit(grad_out), _unit(q), _unit(k), _unit(v)
    out, lse = out.contiguous(), lse.contiguous()
    bias = None if rel_bias is None else rel_bias.contiguous()
    lengths = None if lengths is None else lengths.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    # float32 is held to its rounding, and there arithmetic counts and not memory; half types round more than O does.
    stored = q.dtype == torch.float32
    delta = torch.empty_like(lse) if stored else lse
    config = backward_config(columns, dim, q.element_size(), AMD)
    tiles = triton.cdiv(frames, config.rows)
    one_slot_tile = spans(config, columns)
    slot_tiles = 1 if one_slot_tile else triton.cdiv(config.rows + columns - 1, config.others)
    width = config.others if one_slot_tile else triton.next_power_of_2(config.rows + config.others)

    def launch(dq_too: bool, dbias_too: bool, dkv_too: bool) -> tuple[Tensor, int]:
        per_chunk = slot_tiles if dbias_too else 1
        chunk = walk(tiles * batch, heads, per_chunk, width, frames * batch) if dbias_too else 1
        chunks = triton.cdiv(tiles * batch, chunk)
        partial = lse.new_empty(chunks * per_chunk * heads * width) if dbias_too else lse
        programs = chunks * per_chunk * (heads if dq_too or dbias_too else heads // group)
        _backward[(programs,)](
            q, k, v, q if bias is None else bias, q if lengths is None else lengths, out, lse, grad_out,
            lse if grad_lse is None else grad_lse, delta, dq, dk, dv, partial,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad_out.stride()[:3],
            0 if bias is None else bias.stride(0), **arguments, tiles=tiles, total=tiles * batch, chunk=chunk,
            slot_tiles=per_chunk, M=config.rows, N=config.others, E=width, D=dim, DP=padded_head_dim(dim),
            HAS_BIAS=bias is not None, HAS_LENGTHS=lengths is not None, HAS_GRAD_LSE=grad_lse is not None,
            STORED=stored, DQ=dq_too, DBIAS=dbias_too, DKV=dkv_too, CLEAN=config.clean, **constants, **_options(config),
        )  # fmt: skip
        return partial, chunks

    with torch.cuda.device_of(q):
        # Key heads that several query heads share have programs of their own, which go through all of these.
        together = group == 1 and not stored
        partial, chunks = launch(True, bias_grad and one_slot_tile, together)
        if not together:
            launch(False, False, True)
        if bias_grad:
            if not one_slot_tile:
                partial, chunks = launch(False, True, False)
            _add_partial[(triton.cdiv(columns, BLOCK["COLUMNS"]), heads)](
                partial, dbias[:, arguments["column0"]:], chunks, slot_tiles, columns, dbias.stride(0),
                M=config.rows, N=config.others, E=width, **BLOCK, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return dq, dk, dv, dbias
