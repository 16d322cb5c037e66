"""What a network makes of its parameters alone, kept for the time of one sampling.

A sampler calls a network hundreds of times with the same weights; what each call would make of them again (casts under
autocast, the learned query times the key weight) is made once. Outside `remembering` nothing is kept, so that nothing
can be out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_memory: ContextVar[dict[Any, Any] | None] = ContextVar("sinmdm_memory", default=None)


@contextlib.contextmanager
def remembering(memory: dict[Any, Any] | None = None) -> Iterator[None]:
    """Keep what `remembered` makes until the end of the block. The parameters must not change in it.

    memory: where to keep it; that of an earlier block goes on from there.
    """
    token = _memory.set({} if memory is None else memory)
    try:
        yield
    finally:
        _memory.reset(token)


def remembered(what: object, parameters: Sequence[Tensor], make: Callable[[], Any]) -> Any:
    """make(), without gradients; inside `remembering` once for each `what` and parameters.

    What is made of other tensors than plain parameters on a CPU is not kept: what a hook or a parametrization makes is
    another tensor every time, and a CUDA graph would outlive what it read.
    """
    if torch.compiler.is_compiling():  # first: what follows cannot be compiled
        return make()
    memory = _memory.get()
    if memory is None:
        return make()
    if not all(type(p) is nn.Parameter and p.device.type == "cpu" for p in parameters):
        return make()
    key = what, *(id(p) for p in parameters)
    if key not in memory:
        with torch.no_grad():
            memory[key] = make(), parameters  # which keeps their ids their own
    return memory[key][0]
