"""Learned-query local attention, in plain PyTorch: the definition.

Arar et al. 2022, "Learned queries for efficient local attention" (QnA): the query is shared by all frames, so that a
key's score does not depend on who looks at it, and only a relative bias tells the positions of a window apart. Half
types are computed in float32. An infinity or NaN has its effect on the outputs that see it and on nothing else; a score
of +inf makes an output NaN.
"""

import torch
from torch import Tensor

from .._window import Tile, Window, pairs_visible, sum_visible


def _weights(window: Window, tile: Tile, scores: Tensor, rel_bias: Tensor) -> Tensor:
    """(B, H, M, P) softmax weights of a tile, zero where not visible; scores (B, H, slots)."""
    visible = pairs_visible(tile)
    logits = scores[:, :, None, tile.slots] + window.bias_of(tile, rel_bias.to(scores.dtype))
    logits = logits.masked_fill(~visible, -torch.inf)
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest.masked_fill(highest == -torch.inf, 0)).exp()
    total = weights.sum(-1, keepdim=True)  # 0 where an output is padded, and sees nothing
    return (weights / total.masked_fill(total == 0, 1)).masked_fill(~visible, 0)


def _by_head(window: Window, scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """scores (B, H, slots) and values (B, H, slots, D) in the dtype of the computation, padding erased."""
    dtype = torch.promote_types(values.dtype, torch.float32)
    scores, values = (window.to_slots(window.erase_padding(x.to(dtype))).transpose(1, 2) for x in (scores, values))
    return scores, values


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
    """(B, ceil(T / stride), H, D) in values' dtype."""
    window = Window(left, right, boundary, values.shape[1], lengths, values.device)
    by_head, vectors = _by_head(window, scores, values)
    out = vectors.new_zeros(*vectors.shape[:2], -(-values.shape[1] // stride), values.shape[3])
    for tile in window.tiles(stride):
        weights = _weights(window, tile, by_head, rel_bias)
        out[:, :, tile.queries] = sum_visible(weights, vectors[:, :, tile.slots], pairs_visible(tile))
    return out.transpose(1, 2).to(values.dtype).contiguous()


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
    """Gradients of scores, values and rel_bias: with P the weights and dP = dO V^T, the logits get
    dL = P (dP - rowsum(P dP)), of which a score takes its column sums and the bias its diagonal sums."""
    window = Window(left, right, boundary, values.shape[1], lengths, values.device)
    by_head, vectors = _by_head(window, scores, values)
    dout = grad_out.to(vectors.dtype).transpose(1, 2)
    dscores, dvalues = torch.zeros_like(by_head), torch.zeros_like(vectors)
    dbias = vectors.new_zeros(rel_bias.shape)
    for tile in window.tiles(stride):
        weights = _weights(window, tile, by_head, rel_bias)
        # A padded query's gradient may be anything, NaN too; its weights are zero, and so must its share be.
        visible = pairs_visible(tile)
        dtile = dout[:, :, tile.queries].masked_fill(~visible.any(-1, keepdim=True), 0)
        dweights = (dtile @ vectors[:, :, tile.slots].transpose(-1, -2)).masked_fill_(~visible, 0)
        dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        dlogits.masked_fill_(~visible, 0)
        dscores[:, :, tile.slots] += dlogits.sum(2)
        dvalues[:, :, tile.slots] += sum_visible(weights.transpose(-1, -2), dtile, visible.transpose(-1, -2))
        window.add_diagonals(tile, dlogits.sum(0), dbias, stride)
    dscores, dvalues = (window.from_slots(x.transpose(1, 2)).contiguous() for x in (dscores, dvalues))
    return dscores.to(scores.dtype), dvalues.to(values.dtype), dbias.to(rel_bias.dtype)
