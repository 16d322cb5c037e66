"""qna_attention in Triton: one forward kernel; two backward kernels and one that adds up the bias gradient.

A program takes a tile of frames by heads, flattened to rows (frame, head) of head_dim channels: in memory the heads of
a frame lie side by side. It walks over the offsets of the window, one shifted load of the rows at each: the first is
from memory, all others are from the first cache. Rows share nothing, so that windows, strides and boundaries of any
kind are alike, and what a row does not see does not enter its arithmetic.

The backward first goes once more through the outputs, for the statistics of their softmax and delta = dO O, and then
through the keys: a key meets the outputs that see it under the mirrored window, and gathers what they give to it. The
bias gradient is summed there too: a program writes one number for each offset and head, and those are added up in a
fixed order. Nothing is atomic.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are tensors, numbers or constants of Triton's, for which Python has no types)
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..window_attention.triton_tiles import length_of, load_rows, store_rows
from .config import Config, padded, tile_config


@triton.jit
def _place(tiles, M: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    """(sequence, tile of M frames, first of G heads) of the program. Programs side by side share pages of memory."""
    groups: tl.constexpr = (H + G - 1) // G
    program = tl.program_id(0)
    return program // groups // tiles, program // groups % tiles, program % groups * G


@triton.jit
def _back(frame, by, n, CIRCULAR: tl.constexpr):
    """The frame `by` frames earlier: under "circular" modulo n, else perhaps before the first."""
    frame = frame - by
    if CIRCULAR:
        frame = frame % tl.maximum(n, 1)  # of the dividend's sign
        frame = tl.where(frame < 0, frame + n, frame)
    return frame


@triton.jit
def _next(frame, n, CIRCULAR: tl.constexpr):
    """The frame after."""
    frame += 1
    return tl.where(frame == n, 0, frame) if CIRCULAR else frame


@triton.jit
def _within(frame, limit):
    """0 <= frame < limit, in one comparison."""
    return frame.to(tl.uint32, bitcast=True) < limit.to(tl.uint32, bitcast=True)


@triton.jit
def _logits(scores, s_t, bias, frame, seen):
    """Of the keys at the frames, -inf where not seen. scores and bias are pointers of each row, bias at its column."""
    score = tl.load(scores + frame.to(tl.int64) * s_t, mask=seen, other=0.0).to(tl.float32)
    return tl.where(seen, score + tl.load(bias, mask=seen, other=0.0).to(tl.float32), float("-inf"))


@triton.jit
def _attend(scores, values, bias, s_t, v_t, i, n, present, left, size, D: tl.constexpr, DP: tl.constexpr,
            CIRCULAR: tl.constexpr):  # fmt: skip
    """(output (rows, DP), highest logit, 1 / sum of weights) of the rows' queries i. scores, values (rows, 1) and bias
    (at its first column) are pointers of each row; a row that sees nothing gives 0, 0, 1."""
    limit = tl.where(present, n, 0)
    highest = tl.full(i.shape, float("-inf"), tl.float32)
    frame = _back(i, left, n, CIRCULAR)
    for k in range(size):
        seen = _within(frame, limit)
        highest = tl.maximum(highest, _logits(scores, s_t, bias + k, frame, seen))
        frame = _next(frame, n, CIRCULAR)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    denominator = tl.zeros(i.shape, tl.float32)
    total = tl.zeros((i.shape[0], DP), tl.float32)
    frame = _back(i, left, n, CIRCULAR)
    for k in range(size):
        seen = _within(frame, limit)
        weight = tl.exp(_logits(scores, s_t, bias + k, frame, seen) - highest)
        denominator += weight
        total += weight[:, None] * load_rows(values, frame, seen, v_t, D, DP, True)
        frame = _next(frame, n, CIRCULAR)
    reciprocal = 1.0 / tl.where(denominator == 0, 1.0, denominator)
    return total * reciprocal[:, None], highest, reciprocal


@triton.jit(do_not_specialize=["frames", "outputs", "tiles", "left", "size"])
def _forward(
    scores, values, bias, lengths, out, grad_out, highest, reciprocal, delta,
    s_b, s_t, s_h, v_b, v_t, v_h, do_b, do_t, do_h, bias_h, frames, outputs, tiles, left, size,
    STRIDE: tl.constexpr, M: tl.constexpr, G: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    CIRCULAR: tl.constexpr,
):  # fmt: skip
    """One program M outputs of G heads, as M G rows. Strides are of batch, frames and heads; results are contiguous.

    out (B, outputs, H, D) is written; or where it is None, what the backward needs of each output: highest, reciprocal
    and delta = rowsum(dO O), each (B, outputs, H) float32.
    """
    b, tile, first_head = _place(tiles, M, G, H)
    batch = b.to(tl.int64)
    n = length_of(lengths, b, frames, lengths is not None)
    row = tl.arange(0, M * G)
    t, h = tile * M + row // G, first_head + row % G
    inside = (t < outputs) & (h < H)
    i = tl.where(inside, t, 0) * STRIDE
    present = inside & (i < n)
    head = h.to(tl.int64)
    value_rows = values + batch * v_b + (head * v_h)[:, None]
    total, high, inverse = _attend(
        scores + batch * s_b + head * s_h, value_rows, bias + head * bias_h, s_t, v_t, i, n, present, left, size,
        D, DP, CIRCULAR,
    )  # fmt: skip
    if out is not None:
        store_rows(out + batch * outputs * H * D + (head * D)[:, None], t, inside, H * D, total, D, DP)
    else:
        do = load_rows(grad_out + batch * do_b + (head * do_h)[:, None], t, present, do_t, D, DP, True)
        at = (batch * outputs + t) * H + h
        tl.store(highest + at, high, mask=inside)
        tl.store(reciprocal + at, inverse, mask=inside)
        tl.store(delta + at, tl.sum(do * total, 1), mask=inside)


@triton.jit(do_not_specialize=["frames", "outputs", "tiles", "back", "first", "last", "chunks"])
def _backward(
    scores, values, bias, lengths, grad_out, highest, reciprocal, delta, dscores, dvalues, partial,
    s_b, s_t, s_h, v_b, v_t, v_h, do_b, do_t, do_h, bias_h, frames, outputs, tiles, back, first, last, chunks,
    STRIDE: tl.constexpr, M: tl.constexpr, G: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    CIRCULAR: tl.constexpr,
):  # fmt: skip
    """One program M keys of G heads, as M G rows, from the outputs that see them under the bias columns [first, last).
    The last column comes first, of query j - back; then column by column the next query.

    Written are dscores (B, T, H) and dvalues (B, T, H, D) of the keys, unless these are None; and unless partial is,
    the program's sums of the bias gradient, into partial (H, last - first, chunks): a chunk is a tile of a sequence.
    """
    b, tile, first_head = _place(tiles, M, G, H)
    batch = b.to(tl.int64)
    n = length_of(lengths, b, frames, lengths is not None)
    row = tl.arange(0, M * G)
    j, h = tile * M + row // G, first_head + row % G
    present = (j < n) & (h < H)
    head = h.to(tl.int64)
    bias += head * bias_h
    do_rows = grad_out + batch * do_b + (head * do_h)[:, None]
    value = load_rows(values + batch * v_b + (head * v_h)[:, None], j, present, v_t, D, DP, True)
    score = tl.load(scores + batch * s_b + head * s_h + j.to(tl.int64) * s_t, mask=present, other=0.0).to(tl.float32)
    dvalue = tl.zeros((M * G, DP), tl.float32)
    dscore = tl.zeros((M * G,), tl.float32)
    limit = tl.where(present, n, 0)
    i = _back(j, back, n, CIRCULAR)
    for step in range(last - first):
        seen = _within(i, limit) & (i % STRIDE == 0)
        t = i // STRIDE
        at = (batch * outputs + t) * H + h
        logit = score + tl.load(bias + (last - 1 - step), mask=seen, other=0.0).to(tl.float32)
        weight = tl.exp(logit - tl.load(highest + at, mask=seen, other=0.0))
        weight = tl.where(seen, weight * tl.load(reciprocal + at, mask=seen, other=0.0), 0.0)
        do = load_rows(do_rows, t, seen, do_t, D, DP, True)
        dweight = tl.sum(do * value, 1)
        dlogit = tl.where(seen, weight * (dweight - tl.load(delta + at, mask=seen, other=0.0)), 0.0)
        if dvalues is not None:
            dvalue += weight[:, None] * do
            dscore += dlogit
        if partial is not None:
            g = first_head + tl.arange(0, G)
            place = (g.to(tl.int64) * (last - first) + (last - first - 1 - step)) * chunks + (batch * tiles + tile)
            tl.store(partial + place, tl.sum(tl.reshape(dlogit, (M, G)), 0), mask=g < H)
        i = _next(i, n, CIRCULAR)
    if dvalues is not None:
        inside = (j < frames) & (h < H)
        tl.store(dscores + (batch * frames + j) * H + h, dscore.to(dscores.dtype.element_ty), mask=inside)
        store_rows(dvalues + batch * frames * H * D + (head * D)[:, None], j, inside, H * D, dvalue, D, DP)


@triton.jit(do_not_specialize=["chunks", "columns"])
def _add_partial(partial, dbias, chunks, columns, dbias_h, N: tl.constexpr):
    """One program one number of dbias, of column program_id(0) and head program_id(1): the sum of its chunks, N at a
    time. partial (H, columns, chunks) is contiguous."""
    column, h = tl.program_id(0), tl.program_id(1)
    partial += (h.to(tl.int64) * columns + column) * chunks
    sums = tl.zeros((N,), tl.float32)
    for begin in range(0, chunks, N):
        chunk = begin + tl.arange(0, N)
        sums += tl.load(partial + chunk, mask=chunk < chunks, other=0.0)
    tl.store(dbias + h * dbias_h + column, tl.sum(sums, 0).to(dbias.dtype.element_ty))


CHUNKS = 4096  # that _add_partial takes at a time: 32 numbers a thread, all on their way together


@dataclass(frozen=True)
class _Plan:
    """A call as the kernels take it: what is left of its window, and how it is cut.

    cut: bias columns before the first that any query meets, where the window is wider than the sequence.
    outputs: of a sequence. forward, backward: the kernels' constants and launch options.
    """

    cut: int
    left: int
    right: int
    outputs: int
    config: Config
    forward: dict
    backward: dict

    @property
    def columns(self) -> int:
        return self.left + self.right + 1

    def tiles(self, frames: int) -> int:
        return triton.cdiv(frames, self.config.frames)

    def grid(self, batch: int, frames: int, heads: int) -> tuple[int]:
        """Programs for so many outputs or keys of each sequence."""
        return (batch * self.tiles(frames) * triton.cdiv(heads, self.config.heads),)


def _plan(values: Tensor, left: int, right: int, stride: int, boundary: str) -> _Plan:
    frames, heads, dim = values.shape[1:]
    cut = 0
    if boundary == "clip":
        cut = max(0, left - (frames - 1))
        left, right = left - cut, min(right, frames - 1)
    stride = min(stride, frames)
    config = tile_config(heads, dim, values.element_size())
    constants = {
        "STRIDE": stride, "M": config.frames, "G": config.heads, "H": heads,
        "D": dim, "DP": padded(dim), "CIRCULAR": boundary == "circular",
        "enable_fp_fusion": True,  # said, for Triton's default changes
    }  # fmt: skip
    forward, backward = (constants | {"num_warps": warps} for warps in (config.forward_warps, config.backward_warps))
    return _Plan(cut, left, right, triton.cdiv(frames, stride), config, forward, backward)


def _unit(x: Tensor) -> Tensor:
    """x (B, T, H, D) itself where its last stride is 1 (or D is), else a copy."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _operands(
    plan: _Plan, scores: Tensor, values: Tensor, rel_bias: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs as the kernels read them, the bias from the first column that any query meets."""
    bias = rel_bias.contiguous()[:, plan.cut :]
    return scores, _unit(values), bias, None if lengths is None else lengths.contiguous()


def _strides(scores: Tensor, values: Tensor, bias: Tensor, grad_out: Tensor | None = None) -> tuple[int, ...]:
    of_grad = (0, 0, 0) if grad_out is None else grad_out.stride()[:3]
    return *scores.stride(), *values.stride()[:3], *of_grad, bias.stride(0)


def qna_attention(
    scores: Tensor,
    values: Tensor,
    rel_bias: Tensor,
    lengths: Tensor | None,
    left: int,
    right: int,
    stride: int,
    boundary: str,
) -> Tensor:
    """(B, ceil(T / stride), H, D) in values' dtype: reference.qna_attention."""
    batch, frames, heads, dim = values.shape
    plan = _plan(values, left, right, stride, boundary)
    out = values.new_empty(batch, plan.outputs, heads, dim)
    if not batch:
        return out
    operands = _operands(plan, scores, values, rel_bias, lengths)
    with torch.cuda.device_of(values):
        _forward[plan.grid(batch, plan.outputs, heads)](
            *operands, out, None, None, None, None, *_strides(*operands[:3]), frames, plan.outputs,
            plan.tiles(plan.outputs), plan.left, plan.columns, **plan.forward,
        )  # fmt: skip
    return out


def qna_attention_backward(
    grad_out: Tensor,
    scores: Tensor,
    values: Tensor,
    rel_bias: Tensor,
    lengths: Tensor | None,
    left: int,
    right: int,
    stride: int,
    boundary: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scores, values and rel_bias: reference.qna_attention_backward."""
    batch, frames, heads = scores.shape
    plan = _plan(values, left, right, stride, boundary)
    dscores, dvalues = scores.new_empty(scores.shape), values.new_empty(values.shape)
    dbias = torch.empty_like(rel_bias, memory_format=torch.contiguous_format)
    if plan.columns < rel_bias.shape[1] or not batch:
        dbias.zero_()  # also the columns that no query meets
    if not batch:
        return dscores, dvalues, dbias
    operands = _operands(plan, scores, values, rel_bias, lengths)
    grad_out = _unit(grad_out)
    strides = _strides(*operands[:3], grad_out)
    statistics = values.new_empty(3, batch, plan.outputs, heads, dtype=torch.float32)
    tiles = plan.tiles(frames)
    # The sums of the programs hold no more numbers than values does: the bias gradient of the widest windows is taken a
    # few columns at a time.
    most = max(1, values.numel() // (batch * tiles * heads))
    partial = statistics.new_empty(heads * min(most, plan.columns) * batch * tiles)

    def through_keys(first: int, last: int, gradients: tuple[Tensor | None, Tensor | None], sums: bool) -> None:
        _backward[plan.grid(batch, frames, heads)](
            *operands, grad_out, *statistics, *gradients, partial if sums else None, *strides, frames, plan.outputs,
            tiles, plan.right - (plan.columns - last), first, last, batch * tiles, **plan.backward,
        )  # fmt: skip

    with torch.cuda.device_of(values):
        _forward[plan.grid(batch, plan.outputs, heads)](
            *operands, None, grad_out, *statistics, *strides, frames, plan.outputs, plan.tiles(plan.outputs),
            plan.left, plan.columns, **plan.forward,
        )  # fmt: skip
        together = plan.columns <= most
        if not together:
            through_keys(0, plan.columns, (dscores, dvalues), False)
        for first in range(0, plan.columns, most):
            last = min(first + most, plan.columns)
            through_keys(first, last, (dscores, dvalues) if together else (None, None), True)
            _add_partial[(last - first, heads)](
                partial, dbias[:, plan.cut + first :], batch * tiles, last - first, dbias.stride(0), N=CHUNKS,
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
    return dscores, dvalues, dbias
