"""Layers around window_attention: a plain one, and one with the names and weights of nn.MultiheadAttention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import dialects
from .layers import Linear

BOUNDARIES = ("clip", "circular", "shift")


def window_sides(window: int | tuple[int, int]) -> tuple[int, int]:
    """(left, right) of a window given as a pair or as one number for both sides."""
    pair = (window, window) if isinstance(window, int) else tuple(window)
    if len(pair) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 0 for side in pair):
        raise ValueError(f"window must be an int >= 0 or a pair (left, right) of them, got {window!r}")
    return pair


def _bias_columns(window: tuple[int, int], boundary: str) -> int:
    """Width of the relative bias: K = left + right + 1, or 2K - 1 under "shift"."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}, got {boundary!r}")
    size = sum(window) + 1
    return 2 * size - 1 if boundary == "shift" else size


def _check_sizes(names: tuple[str, str], width: int, heads: int, dropout: float) -> None:
    """Raise unless `width` divides into `heads` heads and `dropout` is a probability below 1."""
    if heads < 1 or width < 1 or width % heads or width // heads > 256:
        raise ValueError(
            f"{names[0]} must be a multiple of {names[1]}, 1 to 256 times it, and that at least 1, "
            f"got {width} and {heads}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")


class WindowAttention(nn.Module):
    """Multi-head self-attention under a window of frames, with a learnable bias of the distance, between projections.

    In training, the mask of the attention dropout is drawn under a seed from torch's default CPU generator, so that
    torch.manual_seed makes it repeatable on every backend and no GPU is waited for. (A CUDA graph replays the seed that
    it was captured with.)

    Args:
        d_model: width of the input and the output, a multiple of `heads`; d_model / heads is at most 256.
        heads: attention heads.
        window: (left, right) frames seen before and after a frame, or one int for both.
        kv_heads: heads of keys and values, a divisor of `heads`; default: as many.
        boundary: what lies beyond the ends, as window_attention's: "clip", "circular" or "shift".
        bias: whether the projections have a bias.
        rel_bias: whether there is a relative position bias, `rel_bias` (heads, K) or (heads, 2K - 1) under "shift",
            K = left + right + 1; it starts at zero.
        dropout: probability of dropping an attention weight, in training.

    State: qkv.weight ((heads + 2 kv_heads) * head_dim, d_model), qkv.bias, rel_bias, out.weight, out.bias.
    """

    rel_bias: nn.Parameter | None

    def __init__(
        self,
        d_model: int,
        heads: int,
        window: int | tuple[int, int],
        *,
        kv_heads: int | None = None,
        boundary: str = "clip",
        bias: bool = True,
        rel_bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(("d_model", "heads"), d_model, heads, dropout)
        kv_heads = heads if kv_heads is None else kv_heads
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"kv_heads must be a divisor of heads = {heads}, got {kv_heads}")
        self.window, self.boundary, self.dropout = window_sides(window), boundary, dropout
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, d_model // heads
        columns = _bias_columns(self.window, boundary)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.qkv = Linear(d_model, (heads + 2 * kv_heads) * self.head_dim, bias=bias, **made)
        self.register_parameter("rel_bias", nn.Parameter(torch.zeros(heads, columns, **made)) if rel_bias else None)
        self.out = Linear(d_model, d_model, bias=bias, **made)

    def forward(self, x: Tensor, lengths: Tensor | None = None, *, boundary: str | None = None) -> Tensor:
        """x (B, T, d_model), lengths (B,) int real frames of padded sequences or None; to x's shape.

        `boundary` is for this call, "clip" or "circular" in a layer made with either: they share the bias. Padded
        frames give the output projection's bias.
        """
        boundary = self.boundary if boundary is None else boundary
        if boundary != self.boundary and "shift" in (boundary, self.boundary):
            raise ValueError(f"boundary must be clip or circular in a layer made with these, got {boundary!r}")
        if x.dim() != 3:
            raise ValueError(f"x must have shape (batch, frames, d_model), got {tuple(x.shape)}")
        heads = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, self.head_dim))
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 2)
        attended = dialects.scaled_dot_product_window_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.rel_bias, window=self.window,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=True, boundary=boundary, lengths=lengths,
        )  # fmt: skip
        return self.out(attended.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return (
            f"heads={self.heads}, kv_heads={self.kv_heads}, window={self.window}, boundary={self.boundary!r}, "
            f"dropout={self.dropout}"
        )


class WindowMultiheadAttention(nn.Module):
    """nn.MultiheadAttention whose queries see a window of frames: the same arguments, weights and initialisation.

    With `rel_bias=False` the state_dict is nn.MultiheadAttention's; otherwise it has rel_bias (heads, columns) beside,
    which starts at zero, where the two agree in all frames that the window reaches. Loading another's weights then
    needs strict=False, or `from_multihead`.

    It differs from the original in that it is for self-attention only, makes no attention weights (need_weights is
    False by default), takes no attn_mask, wants padding on the right, and gives padded frames out_proj's bias. Dropout
    is WindowAttention's.

    Args:
        embed_dim, num_heads, dropout, bias, batch_first, device, dtype: as nn.MultiheadAttention's.
        add_bias_kv, add_zero_attn, kdim, vdim: False, False, None or embed_dim, as there is self-attention only.
        window, boundary, rel_bias: as WindowAttention's.

    Raises:
        ValueError: an argument that is not as above, by name.
    """

    # nn.TransformerEncoderLayer takes weights out of its attention and computes full attention with them, in inference,
    # unless this says no.
    _qkv_same_embed_dim = False

    in_proj_bias: nn.Parameter | None
    rel_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        window: int | tuple[int, int],
        boundary: str = "clip",
        rel_bias: bool = True,
    ) -> None:
        super().__init__()
        _check_sizes(("embed_dim", "num_heads"), embed_dim, num_heads, dropout)
        for name, given in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            if given:
                raise ValueError(f"{name} must be False: a window has no key outside the sequence")
        for name, size in (("kdim", kdim), ("vdim", vdim)):
            if size not in (None, embed_dim):
                raise ValueError(f"{name} must be embed_dim = {embed_dim} (self-attention only), got {size}")
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kdim = self.vdim = embed_dim
        self.dropout, self.batch_first = dropout, batch_first
        self.window, self.boundary = window_sides(window), boundary
        columns = _bias_columns(self.window, boundary)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **made))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.zeros(3 * embed_dim, **made)) if bias else None)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **made)
        self.register_parameter("rel_bias", nn.Parameter(torch.zeros(num_heads, columns, **made)) if rel_bias else None)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_multihead(
        cls, mha: nn.MultiheadAttention, window: int | tuple[int, int], *, boundary: str = "clip", rel_bias: bool = True
    ) -> WindowMultiheadAttention:
        """A copy of `mha`, its weights, dtype, device and mode, under a window; a rel_bias of zeros if asked for."""
        if not mha._qkv_same_embed_dim:
            raise ValueError("mha must have kdim and vdim equal to embed_dim (self-attention only)")
        made = cls(
            mha.embed_dim,
            mha.num_heads,
            mha.dropout,
            mha.in_proj_bias is not None,
            mha.bias_k is not None,
            mha.add_zero_attn,
            batch_first=mha.batch_first,
            device=mha.in_proj_weight.device,
            dtype=mha.in_proj_weight.dtype,
            window=window,
            boundary=boundary,
            rel_bias=rel_bias,
        )
        made.load_state_dict(mha.state_dict(), strict=False)  # its keys are ours but for rel_bias, as the tests say
        for name, parameter in mha.named_parameters():
            made.get_parameter(name).requires_grad_(parameter.requires_grad)
        return made.train(mha.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """(out, None): out in query's shape.

        Args:
            query: (T, B, E), (B, T, E) with batch_first, or (T, E).
            key, value: query itself.
            key_padding_mask: (B, T), or (T,) for (T, E): True (or -inf in a float mask, else 0) for padding, which must
                be on the right. That is looked at on the CPU only; elsewhere the number of padded frames counts, as
                looking would make the host wait.
            need_weights: False only.
            attn_mask: None only.
            average_attn_weights: without meaning here.
            is_causal: hide the frames after the query; no attn_mask is needed for it. With boundary "clip" only.

        Raises:
            TypeError, ValueError: an argument that is not as above, by name.
        """
        if need_weights:
            raise ValueError("need_weights must be False: attention weights are never stored")
        if attn_mask is not None:
            raise ValueError(
                "attn_mask must be None: the window is the mask (is_causal hides the frames after a query)"
            )
        if key is not query or value is not query:
            raise ValueError("key and value must be query itself (self-attention only)")
        if query.dim() not in (2, 3) or query.shape[-1] != self.embed_dim:
            raise ValueError(
                f"query must have shape (frames, batch, {self.embed_dim}), batch first or without it, "
                f"got {tuple(query.shape)}"
            )
        x = query if self.batch_first or query.dim() == 2 else query.transpose(0, 1)
        lengths = None
        if key_padding_mask is not None:
            if key_padding_mask.shape != x.shape[:-1]:
                raise ValueError(
                    f"key_padding_mask must have shape (batch, frames) = {tuple(x.shape[:-1])}, "
                    f"got {tuple(key_padding_mask.shape)}"
                )
            lengths = _lengths(key_padding_mask)
        bias: Tensor | None = self.rel_bias
        if is_causal and bias is not None:
            bias = bias[:, : self.window[0] + 1]  # those of the keys that are left
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = (heads.transpose(-3, -2) for heads in qkv.unbind(-3))
        attended = dialects.scaled_dot_product_window_attention(
            q, k, v, bias, window=self.window, dropout_p=self.dropout if self.training else 0.0, is_causal=is_causal,
            boundary=self.boundary, lengths=lengths,
        )  # fmt: skip
        out = self.out_proj(attended.transpose(-3, -2).flatten(-2))
        return out if x is query else out.transpose(0, 1), None

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, window={self.window}, "
            f"boundary={self.boundary!r}, dropout={self.dropout}, batch_first={self.batch_first}"
        )


def _lengths(key_padding_mask: Tensor) -> Tensor:
    """(...) int64, the real frames that a mask (..., T) of right padding leaves."""
    if key_padding_mask.dtype == torch.bool:
        real = ~key_padding_mask
    elif key_padding_mask.is_floating_point():
        real = key_padding_mask == 0
    else:
        raise TypeError(f"key_padding_mask must be bool or float, got {key_padding_mask.dtype}")
    lengths = real.sum(-1)
    if key_padding_mask.device.type == "cpu" and not torch.compiler.is_compiling():
        if key_padding_mask.is_floating_point() and not bool((real | (key_padding_mask == -torch.inf)).all()):
            raise ValueError("key_padding_mask must hold 0 and -inf only: weights of frames are not supported")
        if not torch.equal(real, torch.arange(real.shape[-1]) < lengths[..., None]):
            raise ValueError("key_padding_mask must mask the end of a sequence only (padding on the right)")
    return lengths
