"""The torch.library namespace `sinmdm`, in which every op is defined once."""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("sinmdm", "DEF")


def native(name: str) -> Callable[..., Any]:
    """The native op `name`, whose body the extension registers for the CPU and, with its CUDA half, for CUDA."""
    return getattr(torch.ops.sinmdm, name).default


def note_write(out: torch.Tensor) -> None:
    """Tell autograd that `out` was written in place, so that a graph which still needs its old values says so."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def no_second_derivative(op: str) -> None:
    """Make differentiating `op`_backward a clear error."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{op} has no second derivative")

    torch.library.register_autograd(f"sinmdm::{op}_backward", backward, lib=LIBRARY)
