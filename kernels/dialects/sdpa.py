"""window_attention with the layout and the arguments of torch.nn.functional.scaled_dot_product_attention."""

from torch import Tensor

from .._autocast import autocast
from .._checks import check_shape, window_pair
from ._call import attend, check_operands


def scaled_dot_product_window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_bias: Tensor | None = None,
    *,
    window: int | tuple[int, int],
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    boundary: str = "clip",
    lengths: Tensor | None = None,
    seed: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Self-attention under a window, as torch.nn.functional.scaled_dot_product_attention is called.

    It equals that function with the dense attn_mask (heads, T, T) that holds rel_bias[h, j - i + left] where
    -left <= j - i <= right and -inf elsewhere, and never makes it. Tensors are viewed, not copied, up to four
    dimensions (and beyond where their leading ones are contiguous).

    Args:
        query: (..., H, T, D), any number of leading batch dimensions, also none; see window_attention for the rest.
        key, value: (..., H, T, D), or (..., H_kv, T, D) with enable_gqa.
        rel_bias: as window_attention's; (H, left + 1) under is_causal.
        window: (left, right) in frames, or one int for both.
        dropout_p: probability of dropping a weight, in [0, 1); as in the original it does not ask whether a module is
            training.
        is_causal: hide the keys after the query: right becomes 0. With boundary "clip" only.
        scale: factor of the dot products; default 1 / sqrt(D).
        enable_gqa: let key and value have fewer heads, query head h using key head h // (H / H_kv).
        boundary, backend: as window_attention's.
        lengths: int, of the leading dimensions' shape ((B,) for four dimensions): real frames of padded sequences.
        seed: names the dropout mask; default: drawn from torch's default CPU generator (torch.manual_seed).

    Returns:
        (..., H, T, D) in query's dtype, a transposed view of memory laid out as (..., T, H, D).

    Raises:
        TypeError, ValueError: an argument that is not as above, by name.
    """
    query, key, value = autocast(query, key, value)
    if query.dim() < 3:
        raise ValueError(f"query must have shape (..., heads, frames, head_dim), got {tuple(query.shape)}")
    check_operands({"query": query, "key": key, "value": value}, "(..., heads, frames, head_dim)", -3, -2)
    if not enable_gqa and key.shape[-3] != query.shape[-3]:
        raise ValueError(
            f"key has {key.shape[-3]} heads and query {query.shape[-3]}: grouped heads need enable_gqa=True"
        )
    left, right = window_pair(window)
    if is_causal:
        if boundary != "clip":
            raise ValueError(f"is_causal needs boundary 'clip', got {boundary!r}")
        right = 0
    leading = query.shape[:-3]
    if lengths is not None:
        check_shape("lengths", lengths, leading, "(batch, ...)")
        lengths = lengths.reshape(leading.numel())
    operands: tuple[Tensor, ...] = (query, key, value)
    if len(leading) != 1:
        operands = tuple(x.reshape(leading.numel(), *x.shape[-3:]) for x in operands)
    q, k, v = (x.transpose(1, 2) for x in operands)
    out, _ = attend(
        q, k, v, rel_bias, window=(left, right), dropout_p=dropout_p, seed=seed, scale=scale, boundary=boundary,
        lengths=lengths, backend=backend,
    )  # fmt: skip
    out = out.transpose(1, 2)
    return out if len(leading) == 1 else out.reshape(query.shape)
