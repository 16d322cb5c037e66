"""torch's layers, with their names, weights and initialisation, on motions whose channels come last.

A motion is (B, frames, channels), or (B, rows, frames, channels) where kernels are two-dimensional.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import norm_affine, philox_normal
from .products import conv3, linear


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module's forward is its class's and nothing else, so that its weights may be used without it."""
    hooks = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or nn.modules.module._has_any_global_hook()
    )  # fmt: skip
    return type(module) is kind and "forward" not in module.__dict__ and not hooks


class _Product(nn.Module):
    weight: Tensor
    bias: Any

    def forward(self, x: Tensor, *, activation: str | None = None, residual: Tensor | None = None) -> Tensor:
        """x (..., in) to (..., out), as `linear`."""
        return linear(x, self.weight, self.bias, activation=activation, residual=residual)


class Linear(_Product, nn.Linear):
    """nn.Linear through `linear`."""


class Pointwise1d(_Product, nn.Conv1d):
    """A convolution of one frame, weight (out, in, 1)."""


class Pointwise2d(_Product, nn.Conv2d):
    """A convolution of one frame, weight (out, in, 1, 1)."""


class _Conv3(nn.Module):
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding_mode: Any

    def forward(self, x: Tensor) -> Tensor:
        """As `conv3`."""
        return conv3(x, self.weight, self.bias, stride=self.stride[0], padding_mode=self.padding_mode)


class Conv1d(_Conv3, nn.Conv1d):
    """A convolution of three frames, weight (out, in, 3)."""


class Conv2d(_Conv3, nn.Conv2d):
    """A convolution of three rows and frames, weight (out, in, 3, 3)."""


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm: a group's statistics are over its channels, all frames and all rows."""

    def forward(
        self,
        x: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """activation(norm(x) (1 + scale) + shift), scale and shift (B or 1, channels); to x's shape."""
        gain, offset = self.weight[None], self.bias[None]
        if scale is not None and shift is not None:
            gain, offset = gain * (1 + scale), torch.addcmul(shift, offset, 1 + scale)
        gain, offset = (y.to(torch.promote_types(x.dtype, torch.float32)) for y in (gain, offset))
        frames = x.flatten(1, -2)
        y = norm_affine(frames, gain, offset, groups=self.num_groups, eps=self.eps, activation=activation)
        return y.view(x.shape)


class Dropout(nn.Dropout):
    """nn.Dropout, fast on a CPU: there it draws from the kernels' stream of normals, under a seed of torch's generator.

    A number is dropped where its normal lies below the quantile of p.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ..., channels) to its shape."""
        if x.device.type != "cpu" or not self.training or not 0 < self.p < 1 or torch.compiler.is_compiling():
            return super().forward(x)
        seed = int(torch.randint(2**63 - 1, ()))
        frames = x.flatten(1, -2)
        normals = philox_normal((frames.shape[1], frames.shape[2]), seed=seed, sample=torch.arange(len(x)))
        kept = normals.ge_(NormalDist().inv_cdf(self.p)).mul_(1 / (1 - self.p)).to(x.dtype)
        return x * kept.view(x.shape)
