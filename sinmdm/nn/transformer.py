"""WindowTransformer: a pre-norm transformer whose attention sees a window of frames under a learnable bias."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels import norm_affine
from .attention import WindowAttention
from .layers import Dropout, Linear, is_plain
from .products import mlp

MAX_PERIOD = 10_000.0


def timestep_embedding(timesteps: Tensor, size: int) -> Tensor:
    """(B, size) cosines, then sines, of t at geometric frequencies from 1 to 1 / 10 000; and a zero if size is odd."""
    half = size // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps[:, None].to(torch.float32) * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], -1)
    return F.pad(embedding, (0, 1)) if size % 2 else embedding


class Block(nn.Module):
    """x + gate * Attention(modulate(LN x)), then the same with the MLP (adaLN-Zero: Peebles and Xie 2023, section 3.2).

    Shifts, scales and gates come from the timestep; they start at zero, so that a new block is the identity.
    """

    def __init__(self, d_model: int, heads: int, window: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.attention = WindowAttention(d_model, heads, window)
        self.mlp = nn.Sequential(Linear(d_model, mlp_ratio * d_model), nn.GELU(), Linear(mlp_ratio * d_model, d_model))
        self.modulation = Linear(d_model, 6 * d_model)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, modulation: Tensor, lengths: Tensor | None, boundary: str | None = None) -> Tensor:
        """x (B, frames, d_model), modulation (B or 1, 6 d_model) made of the timestep by `self.modulation`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, -1)
        options = {} if boundary is None else {"boundary": boundary}  # a layer in its place need not know of it
        h = self.attention(_modulated(x, shift1, scale1), lengths, **options)
        x = torch.addcmul(x, gate1[:, None], self.dropout(h))
        h = self._mlp(_modulated(x, shift2, scale2))
        return torch.addcmul(x, gate2[:, None], self.dropout(h))

    def _mlp(self, x: Tensor) -> Tensor:
        first, second = (cast(Linear, self.mlp[i]) for i in (0, 2))
        if is_plain(first, Linear) and is_plain(second, Linear) and is_plain(self.mlp, nn.Sequential):
            return mlp(x, first.weight, first.bias, second.weight, second.bias)
        return self.mlp(x)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift of x (B, frames, d_model), shift and scale (B or 1, d_model)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return norm_affine(x, (1 + scale).to(dtype), shift.to(dtype))


class WindowTransformer(nn.Module):
    """Local denoising network: a frame depends on the frames within `receptive_field` of it and on nothing else.

    There are no absolute positions, so that it takes any number of frames and does the same everywhere.

    circular: True: `forward` takes boundary="circular".

    Args:
        features: channels of the motion.
        d_model: width, even, a multiple of `heads`.
        heads, layers: of attention.
        window: frames that a layer sees on each side.
        mlp_ratio: width of the MLP over d_model.
        dropout: probability, on both branches of a block.
    """

    circular = True

    def __init__(
        self,
        features: int,
        *,
        d_model: int = 512,
        heads: int = 8,
        layers: int = 6,
        window: int = 16,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if features < 1 or layers < 1 or window < 0 or mlp_ratio < 1:
            raise ValueError(
                "features, layers and mlp_ratio must be at least 1 and window at least 0, "
                f"got {features}, {layers}, {mlp_ratio}, {window}"
            )
        if d_model % 2 or heads < 1 or d_model % heads:
            raise ValueError(f"d_model must be even and a multiple of heads, got {d_model} and {heads}")
        self.features, self.d_model = features, d_model
        self.receptive_field = layers * window
        self.time = nn.Sequential(Linear(d_model, d_model), nn.SiLU(), Linear(d_model, d_model), nn.SiLU())
        self.input = Linear(features, d_model)
        self.blocks = nn.ModuleList(Block(d_model, heads, window, mlp_ratio, dropout) for _ in range(layers))
        self.output = Linear(d_model, features)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def conditions(self, timesteps: Tensor) -> Tensor:
        """All that the network makes of timesteps (N,): (N, layers, 6 d_model), the modulation of every block.

        A sampler computes it once for all its steps, and gives `forward` the rows of each.
        """
        condition = self.time(timestep_embedding(timesteps, self.d_model).to(self.input.weight.dtype))
        return torch.stack([block.get_submodule("modulation")(condition) for block in self.blocks], 1)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        conditions: Tensor | None = None,
        boundary: str | None = None,
    ) -> Tensor:
        """x (B, features, frames), timesteps (B,) integers, lengths (B,) real frames; to x's shape.

        `boundary` "circular" makes the first frame follow the last.
        `conditions`, (B or 1, layers, 6 d_model) of the method of that name, may be given instead of the timesteps.
        """
        if (timesteps is None) == (conditions is None):
            raise ValueError("give either timesteps or conditions")
        if timesteps is not None:
            conditions = self.conditions(timesteps)
        assert conditions is not None
        h = self.input(x.transpose(1, 2))
        for block, modulation in zip(self.blocks, conditions.unbind(1), strict=True):
            h = block(h, modulation, lengths, boundary)
        return self.output(F.layer_norm(h, h.shape[-1:])).transpose(1, 2)
