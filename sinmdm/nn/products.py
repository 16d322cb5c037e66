"""The products of the networks, on motions whose channels come last, by the fastest library for them.

On a CPU that is oneDNN, by rows in chunks. torch's F.linear goes to MKL in float32, which on AMD's processors gives
less than half of what oneDNN does, and a weight gradient over all rows at once not more; what the products of a chunk
make stays in the caches for what needs it next. bench/NOTES.md has the figures. On other devices, in other dtypes and
under torch.compile all this is plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..remembering import remembered

ACTIVATIONS = (None, "gelu")
_ONEDNN = torch.backends.mkldnn.is_available()
if _ONEDNN:
    _LINEAR = torch.ops.mkldnn._linear_pointwise.default
    _LINEAR_PLUS = torch.ops.mkldnn._linear_pointwise.binary
_DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
if _ONEDNN and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
    _DTYPES = (torch.float32,)
CHUNK = 2560  # rows
FEW = 256  # rows that are fewer are not worth a convolution's set-up


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + bias) + residual, (..., out). Under autocast as F.linear.

    Args:
        x: (..., in).
        weight: (out, in), or a 1x1 convolution's (out, in, 1) or (out, in, 1, 1).
        bias: (out,) or None.
        activation: None or "gelu", that of the error function.
        residual: (..., out) or None.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    dtype = computed_in(x)
    if not _by_onednn(x, dtype, weight):
        y = F.linear(x, weight.flatten(1), bias)
        if activation is not None:
            y = F.gelu(y)
    elif differentiated(x, weight, bias):
        y = _Linear.apply(_rows(x, dtype), weight.flatten(1), bias)
        y = y.view(*x.shape[:-1], len(weight))
        if activation is not None:
            y = F.gelu(y)
    else:
        w, b = _cast(weight, dtype).flatten(1), None if bias is None else _cast(bias, dtype)
        x = x.to(dtype)
        if activation is None and residual is not None and residual.dtype == dtype and not differentiated(residual):
            return _LINEAR_PLUS(x, residual.contiguous(), w, b, "add")
        y = _product(x, w, b, activation)
    return y if residual is None else y + residual


def mlp(x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """linear(linear(x, weight1, bias1, activation="gelu"), weight2, bias2).

    Args:
        x: (..., in).
        weight1, bias1: (hidden, in) and (hidden,), weights as those of `linear`.
        weight2, bias2: (out, hidden) and (out,).
    """
    dtype = computed_in(x)
    if not (_by_onednn(x, dtype, weight1) and differentiated(x, weight1, bias1, weight2, bias2)):
        return linear(linear(x, weight1, bias1, activation="gelu"), weight2, bias2)
    y = _Mlp.apply(_rows(x, dtype), weight1.flatten(1), bias1, weight2.flatten(1), bias2)
    return y.view(*x.shape[:-1], len(weight2))


def conv3(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int = 1, padding_mode: str = "zeros") -> Tensor:
    """Convolution of three frames (and three rows where there are rows), padded by one on each side.

    Args:
        x: (B, frames, in), or (B, rows, frames, in).
        weight: (out, in, 3), or (out, in, 3, 3).
        bias: (out,) or None.
        stride: 1 or 2, of frames and rows.
        padding_mode: "zeros", "reflect", "replicate" or "circular".

    Returns:
        (B, ceil(frames / stride), out), or (B, ceil(rows / stride), ceil(frames / stride), out); contiguous.
    """
    # As images whose channels lie last in memory: there, and only there, a convolution takes the layout as it is.
    flat = weight.dim() == 3
    dtype = computed_in(x)
    if (
        flat
        and stride == 1
        and padding_mode == "zeros"
        and _by_onednn(x, dtype, weight)
        and differentiated(x, weight, bias)
    ):
        return _Conv3.apply(x.to(dtype), weight, bias)
    if flat:
        x, weight = x.unsqueeze(1), weight.unsqueeze(2)
    x, rows = x.movedim(-1, 1), 0 if flat else 1
    padding = (rows, 1)
    if padding_mode != "zeros":
        x, padding = F.pad(x, (1, 1, rows, rows), mode=padding_mode), (0, 0)
    y = F.conv2d(x, weight, bias, (1 if flat else stride, stride), padding).movedim(1, -1)
    return (y.squeeze(1) if flat else y).contiguous()


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype of a product of x: its own, or autocast's."""
    return torch.get_autocast_dtype(x.device.type) if _autocasts(x) else x.dtype


def _autocasts(x: Tensor) -> bool:
    device = x.device.type
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return enabled and x.dtype != torch.float64


def _by_onednn(x: Tensor, dtype: torch.dtype, weight: Tensor) -> bool:
    return (
        not torch.compiler.is_compiling()  # first: what follows cannot all be compiled
        and _ONEDNN
        and x.device.type == "cpu"
        and dtype in _DTYPES
        and (weight.dtype == dtype or _autocasts(x))  # else F.linear says what is wrong
        and x.numel() > 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether a gradient may be asked of what is made of these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _cast(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """A parameter in another dtype, for use without gradients."""
    if parameter.dtype == dtype:
        return parameter
    return remembered(dtype, [parameter], lambda: parameter.detach().to(dtype))


def _rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).reshape(-1, x.shape[-1])


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """activation(x W^T + bias) by oneDNN, which takes weights of any strides."""
    name, algorithm = ("none", "") if activation is None else (activation, "none")
    return _LINEAR(x, weight, bias, name, [], algorithm)


def _add_weight_gradient(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """total (out, in) += grad^T x, of grad (rows, out) and x (rows, in)."""
    if x.dtype == torch.bfloat16 or len(x) < FEW:
        total += grad.t() @ x
    else:  # which oneDNN has as the weight gradient of a convolution; as a product it would copy a transpose first
        of_grad, of_x = (_images(y.view(1, len(y), -1)) for y in (grad, x))
        total += _convolution_gradient(of_grad, of_x, total[:, :, None, None], 0, 1)[:, :, 0, 0]


def _convolution_gradient(grad: Tensor, x: Tensor, weight: Tensor, padding: int, which: int) -> Tensor:
    """Gradient of the input (0) or of the weight (1) of a convolution over the last axis with stride 1."""
    wanted = [which == 0, which == 1, False]
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [1, 1], [0, padding], [1, 1], False, [0, 0], 1, wanted
    )[which]


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of the tensors (rows, ...), about CHUNK at a time."""
    parts = max(1, round(len(tensors[0]) / CHUNK))
    return zip(*(x.tensor_split(parts) for x in tensors), strict=True)


class _Linear(torch.autograd.Function):
    """x (rows, in) is in the dtype of the product, weight and bias in their own; gradients are in that of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return _product(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dx = _product(grad, weight.to(x.dtype).t()) if ctx.needs_input_grad[0] else None
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        dbias = weight.new_zeros(len(weight), dtype=torch.float32) if ctx.biased else None
        for g, part in _chunks(grad, x):
            _add_weight_gradient(dweight, g, part)
            if dbias is not None:
                dbias += g.sum(0)
        return dx, dweight.to(weight.dtype), None if dbias is None else dbias.to(weight.dtype)


class _Mlp(torch.autograd.Function):
    """As _Linear. Of the hidden layer, the widest of a network's tensors, only what enters the activation is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
        w1, b1, w2, b2 = (p.to(x.dtype) for p in (weight1, bias1, weight2, bias2))
        hidden, out = [], []
        for (part,) in _chunks(x):
            hidden.append(_product(part, w1, b1))
            out.append(_product(F.gelu(hidden[-1]), w2, b2))
        ctx.save_for_backward(x, weight1, bias1, weight2, bias2, *hidden)
        return torch.cat(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *parameters = ctx.saved_tensors[:5]
        by_input, by_hidden = (parameters[i].to(x.dtype).t() for i in (0, 2))
        dweight1, dbias1, dweight2, dbias2 = totals = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
        dx = []
        for hidden, (g, part) in zip(ctx.saved_tensors[5:], _chunks(grad.contiguous(), x), strict=True):
            _add_weight_gradient(dweight2, g, F.gelu(hidden))
            dbias2 += g.sum(0)
            dhidden = _product(g, by_hidden)
            torch.ops.aten.gelu_backward.grad_input(dhidden, hidden, grad_input=dhidden)
            _add_weight_gradient(dweight1, dhidden, part)
            dbias1 += dhidden.sum(0)
            dx.append(_product(dhidden, by_input))
        return torch.cat(dx), *(total.to(p.dtype) for total, p in zip(totals, parameters, strict=True))


class _Conv3(torch.autograd.Function):
    """conv3 of x (B, frames, in), zeros around it, stride 1. The weight gradient takes some motions at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        w, b = weight.to(x.dtype).unsqueeze(2), None if bias is None else bias.to(x.dtype)
        return F.conv2d(_images(x), w, b, padding=(0, 1)).movedim(1, -1).squeeze(1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, w = grad.contiguous(), weight.to(x.dtype).unsqueeze(2)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _convolution_gradient(_images(grad), _images(x), w, 1, 0).movedim(1, -1).squeeze(1)
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        dbias = weight.new_zeros(len(weight), dtype=torch.float32) if ctx.biased else None
        parts = min(len(x), max(1, round(x.shape[0] * x.shape[1] / CHUNK)))
        for g, part in zip(grad.tensor_split(parts), x.tensor_split(parts), strict=True):
            dweight += _convolution_gradient(_images(g), _images(part), w, 1, 1).squeeze(2)
            if dbias is not None:
                dbias += g.sum((0, 1))
        return dx, dweight.to(weight.dtype), None if dbias is None else dbias.to(weight.dtype)


def _images(x: Tensor) -> Tensor:
    """(B, frames, channels) as (B, channels, 1, frames), channels last in memory."""
    return x.unsqueeze(1).movedim(-1, 1)
