"""The torch.library namespace `sinmdm`, in which every op is defined once."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("sinmdm", "DEF")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def native(name: str) -> Callable[..., Any]:
    """The native op `name`, whose body the extension registers for the CPU and, with its CUDA half, for CUDA."""
    return getattr(torch.ops.sinmdm, name).default


def is_plain_call(*tensors: torch.Tensor | None, differentiated: bool = False) -> bool:
    """Whether these arguments need nothing of the dispatcher, so that an op's body may be called at once.

    The dispatcher is for gradients, tracing, modes, transforms and tensor subclasses; walking through its Python half
    costs more than the arithmetic of a small call. `differentiated`: the caller sees to the gradients.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    if tensors[0] is None or tensors[0].device.type not in ("cpu", "cuda"):
        return False
    gradients = torch.is_grad_enabled() and not differentiated
    return all(x is None or (type(x) in _PLAIN and not (gradients and x.requires_grad)) for x in tensors)


def no_forward_mode(op: str, *tensors: torch.Tensor | None) -> None:
    """Raise where a forward-mode derivative is asked of `op`: torch would take the lack of a formula for a zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(f"{op} has no forward-mode derivative: use the backward")


def note_write(out: torch.Tensor) -> None:
    """Tell autograd that `out` was written in place, so that a graph which still needs its old values says so."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def no_second_derivative(op: str) -> None:
    """Make differentiating `op`_backward a clear error."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{op} has no second derivative")

    torch.library.register_autograd(f"sinmdm::{op}_backward", backward, lib=LIBRARY)


def differentiable(
    op: str, forward: Callable[..., Any], backward: Callable[..., Any], tensors: int
) -> type[torch.autograd.Function]:
    """Register the derivative of `op`, whose inputs are `tensors` tensors and then options.

    `op`_backward takes the result's gradient and the same inputs, and gives the gradients of the first tensors; it has
    no derivative itself. Returns `forward`, the op's body, as a function that is differentiable without the dispatcher:
    half the cost of a small call. Both bodies take the inputs as the ops do.
    """

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.options = inputs[tensors:]

    def through(body: Callable[..., Any], ctx: Any, grad_out: torch.Tensor) -> tuple:
        gradients = body(grad_out, *ctx.saved_tensors, *ctx.options)
        return *gradients, *[None] * (tensors + len(ctx.options) - len(gradients))

    def dispatched(ctx: Any, grad_out: torch.Tensor) -> tuple:
        return through(getattr(torch.ops.sinmdm, f"{op}_backward"), ctx, grad_out)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            setup_context(ctx, inputs, None)
            return forward(*inputs)

        @staticmethod
        def backward(ctx: Any, grad_out: torch.Tensor) -> tuple:
            if torch.is_grad_enabled():  # of create_graph: the op says that it has no second derivative
                return dispatched(ctx, grad_out)
            return through(backward, ctx, grad_out)

    torch.library.register_autograd(f"sinmdm::{op}", dispatched, setup_context=setup_context, lib=LIBRARY)
    no_second_derivative(op)
    return Eager
