"""window_match: how far each window of a motion is from its nearest window in another, and the best rebuilding."""

from typing import Literal, overload

import torch
from torch import Tensor

from .. import _dispatch
from .._autocast import outside_autocast
from .._checks import STATE_DTYPES, check_device, check_dtype, names
from .._library import LIBRARY, is_plain_call, native
from . import reference

_ARGUMENTS = "Tensor source, Tensor target, int window, bool rebuild"
LIBRARY.define(f"window_match({_ARGUMENTS}, str backend) -> (Tensor, Tensor)")
LIBRARY.define(f"window_match_native({_ARGUMENTS}) -> (Tensor, Tensor)")


def _native(source: Tensor, target: Tensor, window: int, rebuild: bool) -> tuple[Tensor, Tensor]:
    return native("window_match_native")(source.contiguous(), target.contiguous(), window, rebuild)


_dispatch.register("window_match", "reference", outside_autocast(reference.window_match), names(STATE_DTYPES))
_dispatch.register("window_match", "cpu", _native, names(STATE_DTYPES))


def _forward(source: Tensor, target: Tensor, window: int, rebuild: bool, backend: str) -> tuple[Tensor, Tensor]:
    return _dispatch.body("window_match", backend)(source, target, window, rebuild)


LIBRARY.impl("window_match", _forward, "CompositeExplicitAutograd")


@torch.library.register_fake("sinmdm::window_match", lib=LIBRARY)
def _fake(source: Tensor, target: Tensor, window: int, rebuild: bool, backend: str) -> tuple[Tensor, Tensor]:
    n = target.shape[0] if source.shape[0] == 1 else source.shape[0]
    return source.new_empty(n, source.shape[1] - window + 1), source.new_empty(n if rebuild else 0)


@overload
def window_match(
    source: Tensor, target: Tensor, *, window: int, rebuild: Literal[False] = False, backend: str | None = None
) -> Tensor: ...
@overload
def window_match(
    source: Tensor, target: Tensor, *, window: int, rebuild: Literal[True], backend: str | None = None
) -> tuple[Tensor, Tensor]: ...
def window_match(
    source: Tensor, target: Tensor, *, window: int, rebuild: bool = False, backend: str | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Mean frame distance of each window of `source` to its nearest window of `target`; at will the best rebuilding.

    The distance of two frames is Euclidean over their features, that of two windows the mean of those of their frames.
    The rebuilding cuts the source into pieces of `window` frames or more and lays each on a stretch of the target of
    its length, so that the total distance is least. A copy has exactly 0; a NaN in a frame makes every window that
    spans it, or is compared with one that spans it, NaN, and the rebuilding's cost, too. Carries no gradient;
    deterministic. Memory is that of a block of the distances' rows, of `window` rows or more, and in the kernel of
    `window` + 1 rows of sums beside it. The kernel's time is that of the distances, L N F, whatever the window; the
    reference adds up each pair of windows anew, L N window, and with `rebuild` walks over the rows in Python.
    Source: Li et al. 2022, GANimator (nearest neighbours of windows, patched nearest neighbour).

    Args:
        source: (L, F) or (n, L, F), float32 or float64, L at least `window`, F at least 1.
        target: (N, F) or (n, N, F), source's dtype and device, N at least `window`. Where either has no batch, or one
            of 1, it is shared by all of the other's.
        window: frames of a window, at least 1.
        rebuild: also return the cost of the best rebuilding.
        backend: force one of sinmdm.kernels.backends(). There is a C++ kernel for CPU tensors; on CUDA tensors the
            plain PyTorch reference serves.

    Returns:
        nearest (n, L - window + 1) in the inputs' dtype, n 1 where neither has a batch. With `rebuild` the pair
        (nearest, cost), cost (n,) the sum of the source's frame distances in its best rebuilding: infinite where L is
        no sum of lengths from `window` to N.

    Raises:
        TypeError, ValueError: an argument that is not as above, by name. BackendError: the forced backend cannot take
        the call.
    """
    for name, motion in (("source", source), ("target", target)):
        if motion.dim() not in (2, 3) or motion.shape[-1] < 1:
            raise ValueError(
                f"{name} must have shape (frames, features) or (n, frames, features), a feature or more, got "
                f"{tuple(motion.shape)}"
            )
    check_dtype("source", source, STATE_DTYPES)
    check_dtype("target", target, (source.dtype,))
    check_device("target", target, "source", source)
    if source.shape[-1] != target.shape[-1]:
        raise ValueError(f"target must have source's {source.shape[-1]} features, got {target.shape[-1]}")
    if isinstance(window, bool) or not isinstance(window, (int, torch.SymInt)) or window < 1:
        raise ValueError(f"window must be an int of at least 1, got {window!r}")
    for name, motion in (("source", source), ("target", target)):
        if motion.shape[-2] < window:
            raise ValueError(f"{name} must have at least the window's {window} frames, got {motion.shape[-2]}")
    source, target = (x.detach() if x.dim() == 3 else x.detach()[None] for x in (source, target))
    if source.shape[0] != target.shape[0] and 1 not in (source.shape[0], target.shape[0]):
        raise ValueError(
            f"target must have a batch of {source.shape[0]}, source's, or 1, or none, got {target.shape[0]}"
        )
    inputs = source, target, window, bool(rebuild), _dispatch.choose("window_match", backend, source)
    forward = _forward if is_plain_call(source, target) else torch.ops.sinmdm.window_match
    nearest, cost = forward(*inputs)
    return (nearest, cost) if rebuild else nearest
