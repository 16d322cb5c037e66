"""Sliding-window attention with a learnable relative position bias, in plain PyTorch: the definition.

Beltagy et al. 2020 (sliding window), Shaw et al. 2018 and Raffel et al. 2020 (relative position bias). Half types are
computed in float32. An infinity or NaN has its effect on the queries that see it and on nothing else: what a pair that
is not visible would give is left out, not multiplied by 0. A score of +inf makes its query NaN, lse included.
"""

import torch
from torch import Tensor

from .._window import Tile, Window, pairs_visible, sum_visible
from ..philox.reference import philox4x32


def _computed(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the dtype of the computation: float32, or float64 where the input is."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [tensor.to(dtype) for tensor in tensors]


def _dropout_factor(
    window: Window, tile: Tile, shape: tuple[int, ...], dropout_p: float, seed: int, dtype: torch.dtype
) -> Tensor:
    """(B, H, M, P): 1 / (1 - p) where the weight is kept, 0 where it is dropped.

    The keep bit of bias column o is word o mod 4 of the Philox counter (o div 4, query, head, batch).
    """
    batch, heads = shape[:2]
    device = tile.columns.device
    group = torch.arange(-(-window.columns // 4), device=device)
    query = torch.arange(tile.queries.start, tile.queries.stop, device=device)[:, None]
    head = torch.arange(heads, device=device)[:, None, None]
    row = torch.arange(batch, device=device)[:, None, None, None]
    words = torch.stack(torch.broadcast_tensors(*philox4x32((group, query, head, row), seed)), -1).flatten(-2)
    index = tile.columns.clamp(0, window.columns - 1).expand(shape)
    kept = words.gather(-1, index) >= round(dropout_p * 2**32)
    return kept.to(dtype) / (1 - dropout_p)


def _scores(q: Tensor, k: Tensor, rel_bias: Tensor | None, scale: float, window: Window, tile: Tile) -> Tensor:
    """(B, H, M, P) scores of a tile, -inf where the pair is not visible."""
    products = q[:, :, tile.queries] @ k[:, :, tile.slots].transpose(-1, -2)
    bias = products.new_zeros(()) if rel_bias is None else window.bias_of(tile, rel_bias.to(products.dtype))
    return torch.add(bias, products, alpha=scale).masked_fill_(~pairs_visible(tile), -torch.inf)


def _by_head(window: Window, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (B, H, T, D) and k, v (B, H, slots, D) in the dtype of the computation, heads repeated, padding erased."""
    q, k, v = (window.erase_padding(x) for x in _computed(q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = (window.to_slots(x).repeat_interleave(group, 2) for x in (k, v))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


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
    """out (B, T, H, D) in q's dtype and lse (B, T, H), the log of the softmax denominator, in float32 or float64."""
    window = Window(left, right, boundary, q.shape[1], lengths, q.device)
    queries, keys, values = _by_head(window, q, k, v)
    out = torch.zeros_like(queries)
    lse = queries.new_full(queries.shape[:3], -torch.inf)
    for tile in window.tiles():
        scores = _scores(queries, keys, rel_bias, scale, window, tile)
        highest = scores.detach().amax(-1, keepdim=True)  # a constant, which cancels: no gradient passes through it
        weights = scores.sub_(highest.masked_fill(highest == -torch.inf, 0)).exp_()
        total = weights.sum(-1, keepdim=True)  # 0 where a query is padded, and sees nothing
        lse[:, :, tile.queries] = (highest + total.log()).squeeze(-1)
        if dropout_p:
            weights = weights * _dropout_factor(window, tile, weights.shape, dropout_p, seed, weights.dtype)
        seen = sum_visible(weights, values[:, :, tile.slots], pairs_visible(tile))
        out[:, :, tile.queries] = seen / total.masked_fill(total == 0, 1)
    return out.transpose(1, 2).to(q.dtype).contiguous(), lse.transpose(1, 2).contiguous()


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
    """Gradients of q, k, v and rel_bias (empty unless `bias_grad`).

    With P the weights and dP = dO V^T: dS = P (dP - delta), delta = rowsum(P dP) - dlse; dQ = scale dS K,
    dK = scale dS^T Q, dV = P^T dO, and the bias gets the sums of dS along its diagonals (Dao et al. 2022, appendix B).
    rowsum(P dP) is rowsum(dO O), which a kernel may take instead; here it does not suffer from out's rounding.
    """
    window = Window(left, right, boundary, q.shape[1], lengths, q.device)
    queries, keys, values = _by_head(window, q, k, v)
    dout = window.erase_padding(*_computed(grad_out)).transpose(1, 2)
    lse = lse.masked_fill(lse == -torch.inf, 0).transpose(1, 2)  # a query that sees nothing: its weights become 0
    dlse = None if grad_lse is None else window.erase_padding(grad_lse).transpose(1, 2)
    dq, dk, dv = torch.zeros_like(queries), torch.zeros_like(keys), torch.zeros_like(values)
    dbias = queries.new_zeros(q.shape[2], window.columns) if bias_grad else queries.new_empty(0)
    for tile in window.tiles():
        visible = pairs_visible(tile)
        scores = _scores(queries, keys, rel_bias, scale, window, tile)
        weights = scores.sub_(lse[:, :, tile.queries, None]).exp_().masked_fill_(~visible, 0)
        dweights = dout[:, :, tile.queries] @ values[:, :, tile.slots].transpose(-1, -2)
        dweights.masked_fill_(~visible, 0)
        dropped = weights
        if dropout_p:
            factor = _dropout_factor(window, tile, weights.shape, dropout_p, seed, weights.dtype)
            dropped, dweights = weights * factor, dweights * factor
        delta = (weights * dweights).sum(-1, keepdim=True)
        if dlse is not None:
            delta = delta - dlse[:, :, tile.queries, None]
        dscores = dweights.sub_(delta).mul_(weights).masked_fill_(~visible, 0)
        dq[:, :, tile.queries] = scale * sum_visible(dscores, keys[:, :, tile.slots], visible)
        dscores_t, dropped_t, visible_t = (x.transpose(-1, -2) for x in (dscores, dropped, visible))
        dk[:, :, tile.slots] += scale * sum_visible(dscores_t, queries[:, :, tile.queries], visible_t)
        dv[:, :, tile.slots] += sum_visible(dropped_t, dout[:, :, tile.queries], visible_t)
        if bias_grad:
            window.add_diagonals(tile, dscores.sum(0), dbias)

    def to_frames(gradient: Tensor) -> Tensor:
        gradient = window.from_slots(gradient.transpose(1, 2))
        return gradient.unflatten(2, (k.shape[2], -1)).sum(3).to(k.dtype)

    dbias_dtype = rel_bias.dtype if rel_bias is not None else dbias.dtype
    return dq.transpose(1, 2).to(q.dtype).contiguous(), to_frames(dk), to_frames(dv), dbias.to(dbias_dtype)
