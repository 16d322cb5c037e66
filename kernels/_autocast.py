"""Autocast for ops whose inputs must share one dtype."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The float tensors in autocast's dtype where it is on for their device; float64 is left alone, as in torch."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def outside_autocast(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, called with autocast off: it chose the dtype of its computation itself, and torch must not lower it."""

    @functools.wraps(body)
    def called(*arguments: Any) -> Any:
        device = arguments[0].device.type
        if not torch.is_autocast_enabled(device):
            return body(*arguments)
        with torch.autocast(device, enabled=False):
            return body(*arguments)

    return called
