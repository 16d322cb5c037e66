"""window_attention: sliding-window attention with a learnable relative position bias."""

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import _dispatch
from .._autocast import autocast, outside_autocast
from .._checks import (
    FLOAT_DTYPES,
    check_boundary,
    check_device,
    check_dtype,
    check_lengths,
    check_shape,
    names,
    signed_seed,
    window_pair,
)
from .._library import LIBRARY, is_plain_call, native, no_forward_mode, no_second_derivative
from .._window import BOUNDARIES
from . import reference

_OPTIONS = "int left, int right, float scale, str boundary, float dropout_p, SymInt seed"  # a graph may draw the seed
# The boundary by its number in BOUNDARIES: through the stable ABI every string leaks (torch 2.13), and what is left of
# it splits the heap between two tensors.
_NATIVE_OPTIONS = "int left, int right, float scale, int boundary, float dropout_p, int seed"
_BOUNDARY, _BACKWARD_BOUNDARY = 8, 12  # where it is among the arguments
LIBRARY.define(
    f"window_attention(Tensor q, Tensor k, Tensor v, Tensor? rel_bias, Tensor? lengths, {_OPTIONS}, str backend)"
    " -> (Tensor out, Tensor lse)"
)
LIBRARY.define(
    "window_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor? rel_bias,"
    f" Tensor? lengths, Tensor out, Tensor lse, {_OPTIONS}, bool bias_grad, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "window_attention_native(Tensor q, Tensor k, Tensor v, Tensor? rel_bias, Tensor? lengths,"
    f" {_NATIVE_OPTIONS}) -> (Tensor, Tensor)"
)
LIBRARY.define(
    "window_attention_backward_native(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v,"
    f" Tensor? rel_bias, Tensor? lengths, Tensor out, Tensor lse, {_NATIVE_OPTIONS}, bool bias_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)

for _name, _reference in (
    ("window_attention", reference.window_attention),
    ("window_attention_backward", reference.window_attention_backward),
):
    _dispatch.register(_name, "reference", outside_autocast(_reference), names(FLOAT_DTYPES))


def _numbered(arguments, place):  # type: ignore[no-untyped-def]
    return *arguments[:place], BOUNDARIES.index(arguments[place]), *arguments[place + 1 :]


def _native(*arguments):  # type: ignore[no-untyped-def]
    return native("window_attention_native")(*_numbered(arguments, _BOUNDARY))


def _native_backward(*arguments):  # type: ignore[no-untyped-def]
    *gradients, dbias = native("window_attention_backward_native")(*_numbered(arguments, _BACKWARD_BOUNDARY))
    rel_bias = arguments[5]
    return *gradients, dbias if rel_bias is None else dbias.to(rel_bias.dtype)


_GPU_DTYPES = ("float16", "bfloat16", "float32")
for _backend, _dtypes in (("cpu", names(FLOAT_DTYPES)), ("cuda", _GPU_DTYPES)):
    _dispatch.register("window_attention", _backend, _native, _dtypes)
    _dispatch.register("window_attention_backward", _backend, _native_backward, _dtypes)


def _triton(*arguments):  # type: ignore[no-untyped-def]
    from . import triton  # only where it is called: the package needs torch alone

    return triton.window_attention(*arguments)


def _triton_backward(*arguments):  # type: ignore[no-untyped-def]
    from . import triton

    return triton.window_attention_backward(*arguments)


_dispatch.register("window_attention", "triton", _triton, _GPU_DTYPES)
_dispatch.register("window_attention_backward", "triton", _triton_backward, _GPU_DTYPES)


def _forward(q, k, v, rel_bias, lengths, left, right, scale, boundary, dropout_p, seed, backend):  # type: ignore[no-untyped-def]
    body = _dispatch.body("window_attention", backend)
    return body(q, k, v, rel_bias, lengths, left, right, scale, boundary, dropout_p, seed)


def _backward(*arguments):  # type: ignore[no-untyped-def]
    *rest, backend = arguments
    return _dispatch.body("window_attention_backward", backend)(*rest)


LIBRARY.impl("window_attention", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("window_attention_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::window_attention", lib=LIBRARY)
def _forward_fake(q, k, v, *_):  # type: ignore[no-untyped-def]
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(q.shape), lse


@torch.library.register_fake("sinmdm::window_attention_backward", lib=LIBRARY)
def _backward_fake(  # type: ignore[no-untyped-def]
    grad_out,
    grad_lse,
    q,
    k,
    v,
    rel_bias,
    lengths,
    out,
    lse,
    left,
    right,
    scale,
    boundary,
    dropout_p,
    seed,
    bias_grad,
    *_,
):
    dbias = rel_bias.new_empty(rel_bias.shape) if bias_grad else (lse if rel_bias is None else rel_bias).new_empty(0)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, rel_bias, lengths, *ctx.options, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, rel_bias, lengths, *output)
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx, grad_out, grad_lse):  # type: ignore[no-untyped-def]
    q, k, v, rel_bias, lengths, out, lse = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(out)
    bias_grad = rel_bias is not None and ctx.needs_input_grad[3]
    dq, dk, dv, dbias = torch.ops.sinmdm.window_attention_backward(
        grad_out, grad_lse, q, k, v, rel_bias, lengths, out, lse, *ctx.options, bias_grad, ctx.backend
    )
    return dq, dk, dv, dbias if bias_grad else None, None, *[None] * (len(ctx.options) + 1)


torch.library.register_autograd(
    "sinmdm::window_attention", _autograd_backward, setup_context=_setup_context, lib=LIBRARY
)
no_second_derivative("window_attention")


@overload
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None = None, *, return_lse: Literal[False] = ..., **options: Any
) -> Tensor: ...
@overload
def window_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor | None = None, *, return_lse: Literal[True], **options: Any
) -> tuple[Tensor, Tensor]: ...
def window_attention(  # type: ignore[misc]  # the overloads name only what the result depends on
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_bias: Tensor | None = None,
    *,
    window: int | tuple[int, int],
    scale: float | None = None,
    boundary: str = "clip",
    lengths: Tensor | None = None,
    dropout_p: float = 0.0,
    seed: int | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention in which query i sees the keys j with -left <= j - i <= right, under a learnable bias of j - i.

    out_i = sum_j softmax_j(scale * q_i . k_j + rel_bias[h, j - i + left]) v_j. Differentiable once in q, k, v, rel_bias
    and through lse; deterministic. Half types are accumulated in float32. Under autocast the inputs are cast first.

    Args:
        q: (B, T, H, D), float16, bfloat16, float32 or float64; 1 <= D <= 256, T >= 1.
        k, v: (B, T, H_kv, D), q's dtype; H a multiple of H_kv (grouped queries).
        rel_bias: (H, K) with K = left + right + 1, or (H, 2K - 1) under "shift"; float32 or q's dtype; or None.
        window: (left, right), or one int for both; causal is (w, 0). May be wider than T.
        scale: factor of the dot products; default 1 / sqrt(D).
        boundary: "clip": keys outside the sequence do not exist. "circular": frames wrap round, modulo lengths[b]; a
            window wider than the sequence meets frames again, each offset one term. "shift": the window slides inward
            at the ends so that each query has K keys, from clamp(i - left, 0, n - K); its bias column is
            j - i + left + right, and a sequence shorter than K is an error.
        lengths: (B,) int, the real frames of right-padded sequences; padded queries give 0, padded keys do not exist.
        dropout_p: probability, in [0, 1), of dropping an attention weight; the kept ones are scaled by 1 / (1 - p).
        seed: 0 .. 2^64 - 1, names the dropout mask; needed where dropout_p > 0.
        return_lse: also return the natural log of each query's softmax denominator.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        out (B, T, H, D) in q's dtype; with return_lse also lse (B, T, H), float32 (float64 for float64), -inf for
        padded queries.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call. RuntimeError: a second or a forward-mode derivative is asked for.
    """
    if q.dim() != 4:
        raise ValueError(f"q must have shape (batch, frames, heads, head_dim), got {tuple(q.shape)}")
    q, k, v = autocast(q, k, v)
    batch, frames, heads, head_dim = q.shape
    if not 1 <= head_dim <= 256:
        raise ValueError(f"head_dim (q's last size) must be from 1 to 256, got {head_dim}")
    if frames < 1 or heads < 1:
        raise ValueError(f"q must have at least one frame and one head, got {tuple(q.shape)}")
    check_dtype("q", q, FLOAT_DTYPES)
    for name, tensor in (("k", k), ("v", v)):
        check_dtype(name, tensor, (q.dtype,))
        check_device(name, tensor, "q", q)
        kv_heads = k.shape[2] if k.dim() == 4 else 0
        check_shape(name, tensor, (batch, frames, kv_heads, head_dim), "(batch, frames, kv_heads, head_dim)")
    if k.shape[2] < 1 or heads % k.shape[2]:
        raise ValueError(f"q's heads must be a multiple of k's, got {heads} and {k.shape[2]}")
    left, right = window_pair(window)
    check_boundary(boundary, BOUNDARIES)
    size = left + right + 1
    least = size if boundary == "shift" else 0
    if frames < least:
        raise ValueError(f"boundary 'shift' needs at least left + right + 1 = {size} frames, got {frames}")
    check_lengths(lengths, q, frames, least)
    if rel_bias is not None:
        columns = 2 * size - 1 if boundary == "shift" else size
        check_shape("rel_bias", rel_bias, (heads, columns), "(heads, columns)")
        check_dtype("rel_bias", rel_bias, (q.dtype,) if q.dtype == torch.float32 else (q.dtype, torch.float32))
        check_device("rel_bias", rel_bias, "q", q)
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be in [0, 1), got {dropout_p}")
    if dropout_p > 0 and seed is None:
        raise ValueError("seed must be given where dropout_p > 0")
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    if not -math.inf < scale < math.inf:
        raise ValueError(f"scale must be finite, got {scale}")
    no_forward_mode("window_attention", q, k, v, rel_bias)
    arguments = (
        q, k, v, rel_bias, lengths, left, right, scale, boundary, float(dropout_p), signed_seed(seed or 0),
        _dispatch.choose("window_attention", backend, q, columns=size),
    )  # fmt: skip
    plain = is_plain_call(q, k, v, rel_bias, lengths)
    out, lse = _forward(*arguments) if plain else torch.ops.sinmdm.window_attention(*arguments)
    return (out, lse) if return_lse else out
