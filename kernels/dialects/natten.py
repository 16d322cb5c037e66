"""window_attention with the arguments of NATTEN's na1d (Hassani et al. 2023, neighborhood attention)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._autocast import autocast
from ._call import attend, check_operands


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    dilation: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] | None = False,
    scale: float | None = None,
    *,
    rpb: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Neighborhood attention as natten.na1d computes it, with the relative position bias that it had before 0.20.

    Frames that are `dilation` apart form a sequence of their own. In it a query sees kernel_size keys, from
    kernel_size // 2 before it; at the ends the window slides inward, so that there are always as many. A causal query
    sees itself and the kernel_size - 1 keys before it, fewer at the start.

    Args:
        query: (B, T, H, D).
        key, value: (B, T, H_kv, D), H a multiple of H_kv.
        kernel_size: from 2, odd or even; kernel_size * dilation at most T.
        stride: 1 only.
        dilation: from 1. Above 1, or where it does not divide T, the tensors are copied once.
        is_causal: hide the keys after the query.
        scale: factor of the dot products; default 1 / sqrt(D).
        rpb: (H, 2 * kernel_size - 1), float32 or query's dtype, differentiable: a key m steps (of `dilation` frames)
            after the query gets rpb[h, m + kernel_size - 1]. As in NATTEN not with is_causal.
        return_lse: also return the log of the softmax denominator.
        backend: one of sinmdm.kernels.backends(); NATTEN's names mean nothing here.

    Sizes may be given as NATTEN takes them too: a sequence of one.

    Returns:
        out (B, T, H, D) in query's dtype; with return_lse also lse (B, T, H), float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name.
    """
    query, key, value = autocast(query, key, value)
    if query.dim() != 4:
        raise ValueError(f"query must have shape (batch, frames, heads, head_dim), got {tuple(query.shape)}")
    check_operands({"query": query, "key": key, "value": value}, "(batch, frames, heads, head_dim)", -2, 1)
    size, step = _size("kernel_size", kernel_size, 2), _size("dilation", dilation, 1)
    if _size("stride", stride, 1) != 1:
        raise ValueError(f"stride must be 1, got {stride!r}")
    (causal,) = is_causal if isinstance(is_causal, Sequence) and len(is_causal) == 1 else (is_causal,)
    if causal not in (None, False, True):
        raise ValueError(f"is_causal must be a bool, got {is_causal!r}")
    batch, frames, heads, _ = query.shape
    if size * step > frames:
        raise ValueError(f"kernel_size * dilation must be at most the {frames} frames, got {size} * {step}")
    if causal:
        if rpb is not None:
            raise ValueError("rpb must be None with is_causal, as in NATTEN")
        window, boundary = (size - 1, 0), "clip"
    else:
        window, boundary = (size // 2, size - 1 - size // 2), "shift"
    if rpb is not None and tuple(rpb.shape) != (heads, 2 * size - 1):
        raise ValueError(
            f"rpb must have shape (heads, 2 * kernel_size - 1) = {(heads, 2 * size - 1)}, got {tuple(rpb.shape)}"
        )
    lengths = None
    if step > 1:
        longest = -(-frames // step)
        query, key, value = (_fold(x, step, longest) for x in (query, key, value))
        if frames % step:
            phase = torch.arange(step, device=query.device)
            lengths = torch.where(phase < frames % step, longest, longest - 1).repeat(batch)
    out, lse = attend(
        query, key, value, rpb, window=window, dropout_p=0.0, seed=None, scale=scale, boundary=boundary,
        lengths=lengths, backend=backend,
    )  # fmt: skip
    if step > 1:
        out, lse = (_unfold(x, step, frames) for x in (out, lse))
    return (out, lse) if return_lse else out


def _fold(x: Tensor, step: int, longest: int) -> Tensor:
    """(B, T, H, D) -> (B * step, longest, H, D): frame t becomes frame t // step of row t % step, zeros behind."""
    missing = longest * step - x.shape[1]
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    return x.unflatten(1, (longest, step)).transpose(1, 2).flatten(0, 1)


def _unfold(x: Tensor, step: int, frames: int) -> Tensor:
    """(B * step, longest, ...) -> (B, T, ...): what `_fold` did, undone."""
    x = x.unflatten(0, (x.shape[0] // step, step)).transpose(1, 2).flatten(1, 2)
    return x[:, :frames]


def _size(name: str, value: int | Sequence[int], least: int) -> int:
    """An int given as such or as a sequence of one."""
    one = value[0] if isinstance(value, Sequence) and len(value) == 1 else value
    if isinstance(one, bool) or not isinstance(one, int) or one < least:
        raise ValueError(f"{name} must be an int >= {least}, got {value!r}")
    return one
