"""window_attention with the arguments of flash-attn 2 (Dao 2023), for self-attention."""

import torch
from torch import Tensor

from .._autocast import autocast
from .._checks import check_device, check_dtype, check_shape, values_known
from ._call import attend, check_operands


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    rel_bias: Tensor | None = None,
    return_lse: bool = False,
    seed: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Self-attention as flash_attn.flash_attn_func computes it, with a learnable bias beside.

    Query i sees the keys j with -left <= j - i <= right. Unlike the original this takes float32 and float64 too, any
    head_dim from 1 to 256, and the CPU; and its backward is deterministic whether `deterministic` is set or not.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, H_kv, D), H a multiple of H_kv. The original's T of keys may differ from the queries'; not here.
        dropout_p: probability of dropping a weight, in [0, 1); 0 in evaluation.
        softmax_scale: factor of the dot products; default 1 / sqrt(D).
        causal: right becomes 0.
        window_size: (left, right) in frames; -1: no limit on that side (as many frames as there are).
        softcap: 0 only.
        alibi_slopes: (H,), float32 or q's dtype: a bias of -slope |i - j|. The original's (B, H) is an error.
        deterministic: nothing to choose.
        return_attn_probs: False only.
        rel_bias: (H, left + right + 1), added to the scores; float32 or q's dtype. A side without limit counts T - 1.
        return_lse: also return the log of the softmax denominator, the original's softmax_lse.
        seed: names the dropout mask; default: drawn from torch's default CPU generator (torch.manual_seed).
        backend: as window_attention's.

    Returns:
        out (B, T, H, D) in q's dtype; with return_lse also lse (B, H, T), float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name.
    """
    q, k, v = autocast(q, k, v)
    if q.dim() != 4:
        raise ValueError(f"q must have shape (batch, frames, heads, head_dim), got {tuple(q.shape)}")
    if k.dim() == 4 and k.shape[1] != q.shape[1]:
        raise ValueError(f"k must have q's {q.shape[1]} frames (self-attention only), got {k.shape[1]}")
    check_operands({"q": q, "k": k, "v": v}, "(batch, frames, heads, head_dim)", -2, 1)
    _refuse(softcap, return_attn_probs)
    window, bias = _window_and_bias(window_size, causal, q.shape[1], rel_bias, alibi_slopes, q)
    out, lse = attend(
        q, k, v, bias, window=window, dropout_p=dropout_p, seed=seed, scale=softmax_scale, backend=backend
    )
    return (out, lse.transpose(1, 2)) if return_lse else out


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    rel_bias: Tensor | None = None,
    return_lse: bool = False,
    seed: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """flash_attn_func of qkv (B, T, 3, H, D), as flash_attn.flash_attn_qkvpacked_func; the three are viewed in place.

    Arguments, results and errors are flash_attn_func's.
    """
    if qkv.dim() != 5 or qkv.shape[2] != 3:
        raise ValueError(f"qkv must have shape (batch, frames, 3, heads, head_dim), got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(2)
    return flash_attn_func(
        q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs, rel_bias=rel_bias, return_lse=return_lse, seed=seed, backend=backend,
    )  # fmt: skip


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    rel_bias: Tensor | None = None,
    return_lse: bool = False,
    seed: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Self-attention within each of several packed sequences, as flash_attn.flash_attn_varlen_func computes it.

    Sequence b is the frames cu_seqlens_q[b] to cu_seqlens_q[b + 1] - 1 of the packed axis. They are padded to a batch
    of max_seqlen_q frames (one copy of q, k, v and out each), which is what this costs beyond window_attention.

    Args:
        q: (total, H, D), the sequences one after the other.
        k, v: (total, H_kv, D).
        cu_seqlens_q: (B + 1,) int32 or int64 on q's device, from 0 to total, never falling: where sequences begin.
        cu_seqlens_k: equal to cu_seqlens_q. On a device other than the CPU the values of both are not looked at.
        max_seqlen_q, max_seqlen_k: frames of the longest sequence, or more; equal. A side without limit counts
            max_seqlen_q - 1 frames in the width of rel_bias.
        block_table: None only.
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic, return_attn_probs,
        rel_bias, return_lse, seed, backend: as flash_attn_func's.

    Returns:
        out (total, H, D) in q's dtype; with return_lse also lse (H, total).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name.
    """
    q, k, v = autocast(q, k, v)
    if q.dim() != 3:
        raise ValueError(f"q must have shape (total, heads, head_dim), got {tuple(q.shape)}")
    total = q.shape[0]
    if k.dim() == 3 and k.shape[0] != total:
        raise ValueError(f"k must have q's {total} frames in all (self-attention only), got {k.shape[0]}")
    if total:
        check_operands({"q": q, "k": k, "v": v}, "(total, heads, head_dim)", -2, 0)
    _refuse(softcap, return_attn_probs)
    if block_table is not None:
        raise ValueError("block_table must be None: paged keys are not supported")
    _check_sequences(q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    frames = max(max_seqlen_q, 1)
    window, bias = _window_and_bias(window_size, causal, frames, rel_bias, alibi_slopes, q)

    batch = cu_seqlens_q.shape[0] - 1
    ends = cu_seqlens_q[1:].to(torch.int64)
    packed = torch.arange(total, device=q.device)
    row = torch.searchsorted(ends, packed, right=True)  # the sequence of each packed frame; empty ones are passed over
    place = row * frames + packed - cu_seqlens_q.to(torch.int64)[row]

    def padded(x: Tensor) -> Tensor:
        x = x.new_zeros(batch * frames, *x.shape[1:]).index_copy(0, place, x)
        return x.unflatten(0, (batch, frames))

    out, lse = attend(
        padded(q), padded(k), padded(v), bias, window=window, dropout_p=dropout_p, seed=seed, scale=softmax_scale,
        lengths=cu_seqlens_q.diff(), backend=backend,
    )  # fmt: skip
    out = out.flatten(0, 1).index_select(0, place)
    return (out, lse.flatten(0, 1).index_select(0, place).transpose(0, 1)) if return_lse else out


def _refuse(softcap: float, return_attn_probs: bool) -> None:
    """Raise for what the op cannot do."""
    if softcap != 0:
        raise ValueError(f"softcap must be 0, capped scores are not supported, got {softcap}")
    if return_attn_probs:
        raise ValueError("return_attn_probs must be False: weights are never stored (return_lse=True gives the lse)")


def _window_and_bias(
    window_size: tuple[int, int],
    causal: bool,
    frames: int,
    rel_bias: Tensor | None,
    alibi_slopes: Tensor | None,
    q: Tensor,
) -> tuple[tuple[int, int], Tensor | None]:
    """((left, right), bias (H, left + right + 1) or None) of a call on sequences of up to `frames` frames."""
    pair = tuple(window_size) if isinstance(window_size, tuple | list) else ()
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < -1 for side in pair):
        raise ValueError(f"window_size must be a pair (left, right) of ints >= -1, got {window_size!r}")
    left, right = (frames - 1 if side == -1 else side for side in pair)
    if causal:
        right = 0
    if rel_bias is None:  # what lies beyond the sequence does not exist; a bias given has the width as given
        left, right = min(left, frames - 1), min(right, frames - 1)
    if alibi_slopes is None:
        return (left, right), rel_bias
    heads = q.shape[-2]
    if alibi_slopes.dim() == 2:
        raise ValueError("alibi_slopes must have shape (heads,): slopes of each sequence's own are not supported")
    check_shape("alibi_slopes", alibi_slopes, (heads,), "(heads,)")
    check_dtype("alibi_slopes", alibi_slopes, (torch.float32, q.dtype))
    check_device("alibi_slopes", alibi_slopes, "q", q)
    alibi = -alibi_slopes[:, None] * torch.arange(-left, right + 1, device=q.device).abs()
    if rel_bias is None:
        return (left, right), alibi
    check_shape("rel_bias", rel_bias, (heads, left + right + 1), "(heads, columns)")
    return (left, right), rel_bias + alibi


def _check_sequences(
    q: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int
) -> None:
    """Raise unless the sequences of queries and of keys are the same, and those of a packed axis of q's length."""
    for name, tensor in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if tensor.dim() != 1 or tensor.shape[0] < 1:
            raise ValueError(f"{name} must have shape (batch + 1,), got {tuple(tensor.shape)}")
        check_dtype(name, tensor, (torch.int32, torch.int64))
        check_device(name, tensor, "q", q)
    if isinstance(max_seqlen_q, bool) or not isinstance(max_seqlen_q, int) or max_seqlen_q < 0:
        raise ValueError(f"max_seqlen_q must be an int >= 0, got {max_seqlen_q!r}")
    if max_seqlen_q != max_seqlen_k:
        raise ValueError(
            f"max_seqlen_k must equal max_seqlen_q (self-attention only), got {max_seqlen_k} and {max_seqlen_q}"
        )
    check_shape("cu_seqlens_k", cu_seqlens_k, cu_seqlens_q.shape, "(batch + 1,)")
    if not values_known(cu_seqlens_q):
        return
    if cu_seqlens_k is not cu_seqlens_q and not torch.equal(cu_seqlens_k.long(), cu_seqlens_q.long()):
        raise ValueError("cu_seqlens_k must equal cu_seqlens_q (self-attention only)")
    lengths = cu_seqlens_q.diff()
    first, last = int(cu_seqlens_q[0]), int(cu_seqlens_q[-1])
    if first != 0 or last != q.shape[0] or bool((lengths < 0).any()):
        raise ValueError(f"cu_seqlens_q must rise from 0 to q's {q.shape[0]} frames, got {first} to {last}")
    longest = int(lengths.max()) if len(lengths) else 0
    if longest > max_seqlen_q:
        raise ValueError(f"max_seqlen_q must be at least the longest sequence's {longest} frames, got {max_seqlen_q}")
