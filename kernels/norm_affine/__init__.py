"""norm_affine: layer or group norm, a scale and shift of each motion's own, and SiLU, in one pass."""

import math

import torch
from torch import Tensor

from .. import _dispatch
from .._autocast import outside_autocast
from .._checks import FLOAT_DTYPES, check_device, check_dtype, names
from .._library import LIBRARY, differentiable, is_plain_call, native, no_forward_mode
from . import reference

ACTIVATIONS = (None, "silu")
_OPTIONS = "int groups, float eps, bool silu"
_TENSORS = "Tensor x, Tensor gain, Tensor offset"
LIBRARY.define(f"norm_affine({_TENSORS}, {_OPTIONS}, str backend) -> Tensor")
LIBRARY.define(
    f"norm_affine_backward(Tensor grad_out, {_TENSORS}, {_OPTIONS}, str backend) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(f"norm_affine_native({_TENSORS}, {_OPTIONS}) -> Tensor")
LIBRARY.define(f"norm_affine_backward_native(Tensor grad_out, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")

for _name, _reference in (
    ("norm_affine", reference.norm_affine),
    ("norm_affine_backward", reference.norm_affine_backward),
):
    _dispatch.register(_name, "reference", outside_autocast(_reference), names(FLOAT_DTYPES))


def _rows(x: Tensor, tensor: Tensor) -> Tensor:
    """(B or 1, C) in the dtype of the computation, each row without gaps."""
    tensor = tensor.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def _native(x, gain, offset, groups, eps, silu):  # type: ignore[no-untyped-def]
    return native("norm_affine_native")(x.contiguous(), _rows(x, gain), _rows(x, offset), groups, eps, silu)


def _native_backward(grad_out, x, gain, offset, groups, eps, silu):  # type: ignore[no-untyped-def]
    dx, *partial = native("norm_affine_backward_native")(
        grad_out.contiguous(), x.contiguous(), _rows(x, gain), _rows(x, offset), groups, eps, silu
    )
    dgain, doffset = (
        part.sum((0, 1) if len(wanted) == 1 else 1).view_as(wanted).to(wanted.dtype)
        for part, wanted in zip(partial, (gain, offset), strict=True)
    )
    return dx, dgain, doffset


_dispatch.register("norm_affine", "cpu", _native, names(FLOAT_DTYPES))
_dispatch.register("norm_affine_backward", "cpu", _native_backward, names(FLOAT_DTYPES))


def _forward(*arguments):  # type: ignore[no-untyped-def]
    *rest, backend = arguments
    return _dispatch.body("norm_affine", backend)(*rest)


def _backward(*arguments):  # type: ignore[no-untyped-def]
    *rest, backend = arguments
    return _dispatch.body("norm_affine_backward", backend)(*rest)


LIBRARY.impl("norm_affine", _forward, "CompositeExplicitAutograd")
LIBRARY.impl("norm_affine_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::norm_affine", lib=LIBRARY)
def _forward_fake(x, *_):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)


@torch.library.register_fake("sinmdm::norm_affine_backward", lib=LIBRARY)
def _backward_fake(grad_out, x, gain, offset, *_):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape), gain.new_empty(gain.shape), offset.new_empty(offset.shape)


_Eager = differentiable("norm_affine", _forward, _backward, tensors=3)


def norm_affine(
    x: Tensor,
    gain: Tensor,
    offset: Tensor,
    *,
    groups: int | None = None,
    eps: float = 1e-5,
    activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """activation(norm(x) gain + offset): what stands before a product in networks told of the timestep.

    A norm with weight w and bias b whose result is scaled by 1 + s and shifted by h has the gain w (1 + s) and the
    offset b (1 + s) + h. Differentiable once in x, gain and offset; deterministic. Under autocast x keeps its dtype.
    Source: Ba et al. 2016, Wu and He 2018, Peebles and Xie 2023, section 3.2.

    Args:
        x: (B, T, C), float16, bfloat16, float32 or float64; half types are computed in float32.
        gain, offset: (B, C), or (1, C) for all; float32 or x's dtype, both alike.
        groups: None: each frame has statistics of its own, over all channels (layer norm). A number that divides C:
            so many groups of neighbouring channels have theirs, over all frames (group norm).
        eps: added to the variance, above 0.
        activation: None or "silu".
        backend: force one of sinmdm.kernels.backends().

    Returns:
        (B, T, C) in x's dtype.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call. RuntimeError: a second derivative is asked for.
    """
    if x.dim() != 3 or x.shape[2] < 1:
        raise ValueError(f"x must have shape (batch, frames, channels), a channel or more, got {tuple(x.shape)}")
    check_dtype("x", x, FLOAT_DTYPES)
    channels = x.shape[2]
    for name, tensor in (("gain", gain), ("offset", offset)):
        if tensor.dim() != 2 or tensor.shape[1] != channels or tensor.shape[0] not in (1, x.shape[0]):
            raise ValueError(
                f"{name} must have shape ({x.shape[0]}, {channels}) or (1, {channels}), got {tuple(tensor.shape)}"
            )
        check_dtype(name, tensor, (x.dtype,) if x.dtype == torch.float64 else (x.dtype, torch.float32))
        check_device(name, tensor, "x", x)
    check_dtype("offset", offset, (gain.dtype,))
    if groups is not None and (
        isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups
    ):
        raise ValueError(f"groups must be None or divide the {channels} channels of x, got {groups!r}")
    if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
        raise ValueError(f"eps must be above 0, got {eps!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'silu', got {activation!r}")
    no_forward_mode("norm_affine", x, gain, offset)
    backend = _dispatch.choose("norm_affine", backend, x)
    inputs = x, gain, offset, groups or 0, float(eps), activation == "silu", backend
    if is_plain_call(*inputs[:3]):
        return _forward(*inputs)
    if is_plain_call(*inputs[:3], differentiated=True):
        return _Eager.apply(*inputs)
    return torch.ops.sinmdm.norm_affine(*inputs)
