"""What the dialects share: checks that speak of the caller's own layout, and a seed for dropout where none is given."""

from typing import Any

import torch
from torch import Tensor

from .._checks import FLOAT_DTYPES, check_device, check_dtype, check_shape
from ..window_attention import window_attention


def check_operands(tensors: dict[str, Tensor], layout: str, heads_axis: int, frames_axis: int) -> None:
    """Raise unless the three tensors (query, key, value, by the caller's names) are a self-attention's operands.

    All are laid out as `layout`, key and value may have fewer heads. Shapes are checked here, and not by the op alone,
    so that the error shows the layout that the caller knows.
    """
    (query_name, query), (key_name, key), (value_name, value) = tensors.items()
    check_dtype(query_name, query, FLOAT_DTYPES)
    for name, tensor in ((key_name, key), (value_name, value)):
        check_dtype(name, tensor, (query.dtype,))
        check_device(name, tensor, query_name, query)
        shape = list(query.shape)
        if key.dim() == query.dim():
            shape[heads_axis] = key.shape[heads_axis]
        check_shape(name, tensor, tuple(shape), layout)
    heads, kv_heads = query.shape[heads_axis], key.shape[heads_axis]
    if heads < 1 or query.shape[frames_axis] < 1:
        raise ValueError(f"{query_name} must have at least one frame and one head, got {tuple(query.shape)}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{query_name}'s heads must be a multiple of {key_name}'s, got {heads} and {kv_heads}")
    if not 1 <= query.shape[-1] <= 256:
        raise ValueError(f"head_dim ({query_name}'s last size) must be from 1 to 256, got {query.shape[-1]}")


def drawn_seed() -> int:
    """A seed from torch's default CPU generator: torch.manual_seed sets it, and no GPU is waited for."""
    seed = int(torch.randint(1, 2**63 - 1, (), device="cpu").item())
    torch._check(seed >= 1)  # what a compiler, for which the number is a symbol, would otherwise have to ask
    torch._check(seed < 2**63)
    return seed


def attend(
    q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None, *, dropout_p: float, seed: int | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """(out, lse) of window_attention, its dropout seed drawn where it needs one and none is given."""
    if dropout_p > 0 and seed is None:
        seed = drawn_seed()
    return window_attention(q, k, v, rel_bias, dropout_p=dropout_p, seed=seed, return_lse=True, **options)
