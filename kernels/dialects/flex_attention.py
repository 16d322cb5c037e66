"""A score_mod and a mask_mod that give torch's FlexAttention the function of window_attention."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import check_boundary, check_dtype, values_known, window_pair
from .._window import BOUNDARIES

Modification = Callable[..., Tensor]


def flex_mods(
    rel_bias: Tensor | None,
    *,
    window: int | tuple[int, int],
    frames: int | None = None,
    lengths: Tensor | None = None,
    boundary: str = "clip",
) -> tuple[Modification | None, Modification]:
    """(score_mod, mask_mod) with which FlexAttention computes what window_attention does, to compare the two.

        score_mod, mask_mod = flex_mods(rel_bias, window=16)
        block_mask = create_block_mask(mask_mod, None, None, T, T, device=q.device)
        out = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask)  # q, k, v (B, H, T, D)

    With `lengths` the block mask's batch is B. Padding must then hold finite numbers (FlexAttention multiplies it by
    zero weights; window_attention does not look at it).

    Args:
        rel_bias: (H, K), K = left + right + 1, or (H, 2K - 1) under "shift", any float dtype; None: score_mod is None.
        window: (left, right) in frames, or one int for both.
        frames: T; needed under "circular" and "shift" where lengths are not given.
        lengths: (B,) int, the real frames of right-padded sequences.
        boundary: as window_attention's. Under "circular" a query may meet each frame once only, as FlexAttention
            has one score a pair: a window wider than the sequence is an error (on the CPU for lengths too; elsewhere
            their values are not looked at).

    Returns:
        score_mod(score, b, h, q_idx, kv_idx) and mask_mod(b, h, q_idx, kv_idx).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name.
    """
    left, right = window_pair(window)
    check_boundary(boundary, BOUNDARIES)
    size = left + right + 1
    columns = 2 * size - 1 if boundary == "shift" else size
    if rel_bias is not None and (rel_bias.dim() != 2 or rel_bias.shape[1] != columns):
        raise ValueError(f"rel_bias must have shape (heads, {columns}), got {tuple(rel_bias.shape)}")
    if lengths is not None:
        check_dtype("lengths", lengths, (torch.int32, torch.int64))
        if lengths.dim() != 1:
            raise ValueError(f"lengths must have shape (batch,), got {tuple(lengths.shape)}")
    if boundary != "clip":
        if lengths is None and frames is None:
            raise ValueError(f"frames must be given under boundary {boundary!r} without lengths")
        name, shortest = "frames", frames
        if lengths is not None:
            name, shortest = "lengths", int(lengths.min()) if values_known(lengths) else None
        if shortest is not None and shortest < size:
            raise ValueError(
                f"{name} must be at least left + right + 1 = {size} under boundary {boundary!r}, got {shortest}"
            )

    def real(b: Tensor) -> Any:
        return frames if lengths is None else lengths[b]

    def column(b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        offset = kv_idx - q_idx + left
        if boundary == "circular":
            return offset % real(b)
        return offset + right if boundary == "shift" else offset

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if boundary == "shift":
            last = torch.zeros_like(q_idx) + real(b) - size
            start = torch.minimum(q_idx - left, last).clamp(min=0)
            visible = (kv_idx >= start) & (kv_idx < start + size)
        else:
            offset = column(b, q_idx, kv_idx)
            visible = (offset >= 0) & (offset < size)
        if lengths is not None:
            visible = visible & (q_idx < lengths[b]) & (kv_idx < lengths[b])
        return visible

    if rel_bias is None:
        return None, mask_mod
    bias = rel_bias

    def score_mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return score + bias[h, column(b, q_idx, kv_idx).clamp(0, columns - 1)]

    return score_mod, mask_mod
