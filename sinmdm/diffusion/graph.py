"""A sampler's loop in one CUDA graph: network and step are captured once, and a counter on the device says which step.

A replay launches everything at once, so that small networks are not bound by the launching of their kernels. Captured
are addresses, so the tensors of a loop are kept beside its graph and filled anew for the next run.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 2  # steps before the capture: libraries allocate their workspaces and Triton compiles in them
KEPT = 4  # captured loops that a cache holds


@dataclass
class Captured:
    """A graph of one step, the counter it reads and advances, and the tensors it works on."""

    graph: torch.cuda.CUDAGraph
    cursor: Tensor
    tensors: dict[str, Tensor]


class GraphCache:
    """The loops that were captured last, at most KEPT, by model, shape and whatever else a graph has as a constant.

    A loop keeps its model and its memory on the device until it is pushed out or `clear` is called. For one thread at a
    time, and one stream: replays of a loop share its tensors.
    """

    def __init__(self) -> None:
        # With the model, so that no other takes its identity while there is a graph of it.
        self._loops: OrderedDict[tuple[Any, ...], tuple[Captured, Callable[..., Tensor]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loops)

    def clear(self) -> None:
        """Give all loops back, with their memory."""
        self._loops.clear()

    def get(self, model: Callable[..., Tensor], key: tuple[Any, ...], make: Callable[[], Captured]) -> Captured:
        """The loop of `model` and `key`, made by `make` where there is none."""
        key = (id(model), *key)
        if key not in self._loops:
            self._loops[key] = make(), model
        self._loops.move_to_end(key)
        while len(self._loops) > KEPT:
            self._loops.popitem(last=False)
        return self._loops[key][0]


def _capture(step: Callable[[dict[str, Tensor], Tensor], None], tensors: dict[str, Tensor]) -> Captured:
    tensors = {name: x.clone() for name, x in tensors.items()}
    device = tensors["x"].device
    cursor = torch.zeros(1, dtype=torch.int64, device=device)
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(tensors, cursor)
    torch.cuda.current_stream(device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # On the stream of this device: torch's own default is that of the first device that captured. The outer one comes
    # back even where the capture cannot be ended.
    with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(graph, stream=aside):
        step(tensors, cursor)
        cursor.add_(1)
    return Captured(graph, cursor, tensors)


def replay(
    step: Callable[[dict[str, Tensor], Tensor], None],
    model: Callable[..., Tensor],
    tensors: dict[str, Tensor],
    count: int,
    constants: tuple[Any, ...],
    cache: GraphCache | None,
    on_step: Callable[[int], None] | None,
) -> Tensor | None:
    """Run `step` `count` times in a CUDA graph.

    Args:
        step: (tensors, cursor (1,) int64 on the device): one step of the loop, which overwrites tensors["x"].
        model: the network; its parameters' addresses are captured.
        tensors: what the step works on, on one CUDA device.
        constants: what a captured step has built in, such as the seed.
        cache: where captured loops are kept; None keeps none.
        on_step: called after each launch with the number of steps launched; the device may be behind.

    Returns:
        The final tensors["x"], a copy; or None, with a warning that says why, where the step cannot be captured.
    """
    weights = model.parameters() if isinstance(model, nn.Module) else ()
    addresses = tuple(weight.data_ptr() for weight in weights)
    shapes = tuple((name, tuple(x.shape), x.dtype, x.device) for name, x in tensors.items())
    try:
        with torch.cuda.device(tensors["x"].device):
            make = lambda: _capture(step, tensors)  # noqa: E731
            loop = make() if cache is None else cache.get(model, (addresses, shapes, *constants), make)
    except RuntimeError as error:
        first: BaseException = error
        while first.__context__ is not None:  # what went wrong in the step, before ending the capture failed too
            first = first.__context__
        reason = (str(first).strip() or type(first).__name__).splitlines()[0]
        warnings.warn(f"sinmdm: sampling without a CUDA graph, which is slower: {reason}", RuntimeWarning, stacklevel=4)
        return None
    for name, x in tensors.items():
        loop.tensors[name].copy_(x)
    loop.cursor.zero_()
    for done in range(1, count + 1):
        loop.graph.replay()
        if on_step is not None:
            on_step(done)
    return loop.tensors["x"].clone()
