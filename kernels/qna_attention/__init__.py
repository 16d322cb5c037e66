"""qna_attention: local attention whose query is learned and shared by all frames."""

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
    window_pair,
)
from .._library import LIBRARY, differentiable, is_plain_call, native, no_forward_mode
from . import reference

BOUNDARIES = ("clip", "circular")  # by number as in kernels/_window.py
_OPTIONS = "int left, int right, int stride, str boundary"
LIBRARY.define(
    f"qna_attention(Tensor scores, Tensor values, Tensor rel_bias, Tensor? lengths, {_OPTIONS}, str backend) -> Tensor"
)
LIBRARY.define(
    "qna_attention_backward(Tensor grad_out, Tensor scores, Tensor values, Tensor rel_bias, Tensor? lengths,"
    f" {_OPTIONS}, str backend) -> (Tensor, Tensor, Tensor)"
)
# The boundary by its number: see window_attention.
_NATIVE_OPTIONS = "int left, int right, int stride, int boundary"
LIBRARY.define(
    f"qna_attention_native(Tensor scores, Tensor values, Tensor rel_bias, Tensor? lengths, {_NATIVE_OPTIONS}) -> Tensor"
)
LIBRARY.define(
    "qna_attention_backward_native(Tensor grad_out, Tensor scores, Tensor values, Tensor rel_bias, Tensor? lengths,"
    f" {_NATIVE_OPTIONS}) -> (Tensor, Tensor, Tensor)"
)

for _name, _reference in (
    ("qna_attention", reference.qna_attention),
    ("qna_attention_backward", reference.qna_attention_backward),
):
    _dispatch.register(_name, "reference", outside_autocast(_reference), names(FLOAT_DTYPES))


def _native(*arguments):  # type: ignore[no-untyped-def]
    *rest, boundary = arguments
    return native("qna_attention_native")(*rest, BOUNDARIES.index(boundary))


def _native_backward(*arguments):  # type: ignore[no-untyped-def]
    *rest, boundary = arguments
    *gradients, dbias = native("qna_attention_backward_native")(*rest, BOUNDARIES.index(boundary))
    return *gradients, dbias.to(arguments[3].dtype)


_dispatch.register("qna_attention", "cpu", _native, names(FLOAT_DTYPES))
_dispatch.register("qna_attention_backward", "cpu", _native_backward, names(FLOAT_DTYPES))
_dispatch.register("qna_attention", "cuda", _native, names(FLOAT_DTYPES))
_dispatch.register("qna_attention_backward", "cuda", _native_backward, names(FLOAT_DTYPES))


def _triton(*arguments):  # type: ignore[no-untyped-def]
    from . import triton  # only where it is called: the package needs torch alone

    return triton.qna_attention(*arguments)


def _triton_backward(*arguments):  # type: ignore[no-untyped-def]
    from . import triton

    return triton.qna_attention_backward(*arguments)


_dispatch.register("qna_attention", "triton", _triton, ("float16", "bfloat16", "float32"))
_dispatch.register("qna_attention_backward", "triton", _triton_backward, ("float16", "bfloat16", "float32"))


def _forward(*arguments):  # type: ignore[no-untyped-def]
    *rest, backend = arguments
    return _dispatch.body("qna_attention", backend)(*rest)


def _backward(*arguments):  # type: ignore[no-untyped-def]
    *rest, backend = arguments
    return _dispatch.body("qna_attention_backward", backend)(*rest)


LIBRARY.impl("qna_attention", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("qna_attention_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::qna_attention", lib=LIBRARY)
def _forward_fake(scores, values, rel_bias, lengths, left, right, stride, *_):  # type: ignore[no-untyped-def]
    batch, frames, heads, head_dim = values.shape
    return values.new_empty(batch, (frames + stride - 1) // stride, heads, head_dim)


@torch.library.register_fake("sinmdm::qna_attention_backward", lib=LIBRARY)
def _backward_fake(grad_out, scores, values, rel_bias, *_):  # type: ignore[no-untyped-def]
    return scores.new_empty(scores.shape), values.new_empty(values.shape), rel_bias.new_empty(rel_bias.shape)


_Eager = differentiable("qna_attention", _forward, _backward, tensors=4)


def qna_attention(
    scores: Tensor,
    values: Tensor,
    rel_bias: Tensor,
    *,
    window: int | tuple[int, int],
    stride: int = 1,
    boundary: str = "clip",
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Learned-query local attention: out_i = sum_j softmax_j(scores_j + rel_bias[h, j - i + left]) values_j.

    The sum runs over the keys j with -left <= j - i <= right. The window's maximum is subtracted, so that no score
    overflows. Differentiable once in scores, values and rel_bias; deterministic. Half types are accumulated in
    float32. Source: Arar et al. 2022 (QnA), section 3; Raab et al. 2024 (SinMDM), section 4.

    Args:
        scores: (B, T, H), float16, bfloat16, float32 or float64: a frame's key times the learned query.
        values: (B, T, H, D), scores' dtype; 1 <= D <= 256, T >= 1.
        rel_bias: (H, K), K = left + right + 1; float32 or values' dtype.
        window: (left, right), or one int for both; an even K is allowed.
        stride: output t sits at frame stride * t.
        boundary: "clip" (keys outside the sequence do not exist) or "circular" (frames wrap round, modulo lengths[b]).
        lengths: (B,) int, the real frames of right-padded sequences; outputs at padded frames are 0.
        backend: force one of sinmdm.kernels.backends().

    Returns:
        (B, ceil(T / stride), H, D) in values' dtype.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call. RuntimeError: a second derivative is asked for.
    """
    scores, values = autocast(scores, values)
    if values.dim() != 4:
        raise ValueError(f"values must have shape (batch, frames, heads, head_dim), got {tuple(values.shape)}")
    frames, heads, head_dim = values.shape[1:]
    if frames < 1 or heads < 1 or not 1 <= head_dim <= 256:
        raise ValueError(f"values needs a frame, a head and a head_dim from 1 to 256, got {tuple(values.shape)}")
    check_dtype("values", values, FLOAT_DTYPES)
    check_dtype("scores", scores, (values.dtype,))
    check_device("scores", scores, "values", values)
    check_shape("scores", scores, tuple(values.shape[:3]), "(batch, frames, heads)")
    left, right = window_pair(window)
    check_boundary(boundary, BOUNDARIES)
    if isinstance(stride, bool) or not isinstance(stride, int) or not 1 <= stride < 2**31:
        raise ValueError(f"stride must be an int >= 1 and < 2**31, got {stride!r}")
    check_lengths(lengths, values, frames)
    check_shape("rel_bias", rel_bias, (heads, left + right + 1), "(heads, left + right + 1)")
    check_dtype(
        "rel_bias", rel_bias, (values.dtype,) if values.dtype == torch.float32 else (values.dtype, torch.float32)
    )
    check_device("rel_bias", rel_bias, "values", values)
    no_forward_mode("qna_attention", scores, values, rel_bias)
    backend = _dispatch.choose("qna_attention", backend, values, columns=left + right + 1)
    inputs = scores, values, rel_bias, lengths, left, right, stride, boundary, backend
    if is_plain_call(*inputs[:4]):
        return _forward(*inputs)
    if is_plain_call(*inputs[:4], differentiated=True):
        return _Eager.apply(*inputs)
    return torch.ops.sinmdm.qna_attention(*inputs)
