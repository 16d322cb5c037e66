"""The published network of SinMDM on QnA (Raab et al. 2024, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_at_least, check_ignored, check_probability
from ..kernels import norm_affine
from .denoiser import Denoiser
from .layers import Linear, Pointwise2d, is_plain
from .products import linear, mlp
from .qna import QnAAttention1d, channels_last

POSITIONS = 392  # columns of a learned global position, as published
# What is the published U-Net's alone.
_IGNORED = (
    "image_size", "num_channels", "num_res_blocks", "num_heads", "num_heads_upsample", "num_head_channels",
    "attention_resolutions", "channel_mult", "dropout", "use_checkpoint", "use_scale_shift_norm", "resblock_updown",
    "use_new_attention_order", "padding_mode", "padding", "conv_1d", "use_attention", "use_qna",
)  # fmt: skip


class ShiftAndScale(nn.Module):
    """x (1 + scale) + shift, both made of the timestep: shift first."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.cond_map = nn.Sequential(nn.SiLU(), Linear(embedding, 2 * channels))

    def conditions(self, embedded: Tensor, norm: nn.LayerNorm) -> list[Tensor]:
        """Gain and offset, (N, channels), of `norm` scaled and shifted by SiLU(timestep embedding)."""
        shift, scale = self.cond_map[1](embedded).chunk(2, -1)
        return [norm.weight * (1 + scale), torch.addcmul(shift, norm.bias, 1 + scale)]


def modulated(norm: nn.LayerNorm, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """x (B, frames, channels) normed, with a gain and offset (B or 1, channels)."""
    if gain.dtype != x.dtype and gain.dtype != torch.float32:
        gain, offset = gain.float(), offset.float()
    return norm_affine(x, gain, offset, eps=norm.eps)


class Mlp(nn.Module):
    """GELU between two layers, the inner one four times as wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Pointwise2d(channels, 4 * channels, 1)
        self.conv2 = Pointwise2d(4 * channels, channels, 1)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        fused = torch.is_grad_enabled() and all(is_plain(conv, Pointwise2d) for conv in (self.conv1, self.conv2))
        if fused:
            y = mlp(x, self.conv1.weight, self.conv1.bias, self.conv2.weight, self.conv2.bias)
            return y if residual is None else y + residual
        return self.conv2(self.conv1(x, activation="gelu"), residual=residual)


class QnABlock(nn.Module):
    """x + QnA(modulated x), then the same with the MLP; each branch is left out at random for a share of the motions.

    skip_gate is in the published checkpoints, where it is computed and thrown away; here it is not computed.
    """

    def __init__(
        self, inputs: int, channels: int, embedding: int, heads: int, kernel_size: int, drop_path: float, timed: bool
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(inputs, eps=1e-6)
        self.shiftscale1 = ShiftAndScale(embedding, inputs)
        self.qna_layer = QnAAttention1d(
            inputs, channels, heads, kernel_size, timesteps_features=embedding if timed else None
        )
        self.skip_process = Pointwise2d(inputs, channels, 1) if inputs != channels else nn.Identity()
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.shiftscale2 = ShiftAndScale(embedding, channels)
        self.mlp_layer = Mlp(channels)
        self.skip_gate = nn.Sequential(nn.SiLU(), Linear(embedding, 2 * channels))
        # Numbers of a motion's condition: gain and offset of the first norm, keys, gain and offset of the second norm.
        self.widths = [inputs, inputs, inputs * heads if timed else 0, channels, channels]

    def conditions(self, embedded: Tensor) -> list[Tensor]:
        """What the block is told, sum(widths) numbers in all, of SiLU(timestep embedding) (N, embedding)."""
        keys = [self.qna_layer.keys(embedded).flatten(1)] if self.widths[2] else []
        return [
            *self.shiftscale1.conditions(embedded, self.norm1), *keys,
            *self.shiftscale2.conditions(embedded, self.norm2),
        ]  # fmt: skip

    def forward(
        self, x: Tensor, condition: Sequence[Tensor], positions: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """x (B, frames, inputs), condition each (B or 1, a width), to (B, frames, channels)."""
        gain1, offset1, keys, gain2, offset2 = condition

        def attention(
            x: Tensor, gain: Tensor, offset: Tensor, keys: Tensor, lengths: Tensor | None, residual: Tensor | None
        ) -> Tensor:
            folded = keys.unflatten(1, (-1, self.qna_layer.heads)) if self.widths[2] else None
            return self.qna_layer.attend(modulated(self.norm1, x, gain, offset), folded, positions, lengths, residual)

        def mlp(x: Tensor, gain: Tensor, offset: Tensor, residual: Tensor | None) -> Tensor:
            return self.mlp_layer(modulated(self.norm2, x, gain, offset), residual)

        x = self._added(self.skip_process(x), attention, x, gain1, offset1, keys, lengths)
        return self._added(x, mlp, x, gain2, offset2)

    def _added(self, onto: Tensor, branch: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
        """onto + branch(x, *others), under stochastic depth in training.

        The branch is computed for the motions that keep it, and nothing for the others. Where none does, it is computed
        for no motion, which gives its weights the gradient zero.
        """
        if not self.training or self.drop_path == 0:
            return branch(x, *others, residual=onto)
        batch = len(x)
        rows = kept_rows(batch, self.drop_path).to(x.device, non_blocking=True)
        chosen = [o if o is None or len(o) != batch else o.index_select(0, rows) for o in (x, *others)]
        out = branch(*chosen, residual=None)
        return onto.index_add(0, rows, out.to(onto.dtype), alpha=1 / (1 - self.drop_path))


def kept_rows(batch: int, drop_path: float) -> Tensor:
    """Numbers of the motions that keep a branch, each with probability 1 - drop_path; int64, on the CPU.

    The draw is that of torchvision's StochasticDepth("row") for a batch of images, so that a seed gives the published
    choice; from the CPU's generator, so that no GPU is waited for.
    """
    kept = torch.empty(batch, 1, 1, 1, dtype=torch.float32, device="cpu").bernoulli_(1 - drop_path)
    return kept.flatten().nonzero().flatten()


class Downsample(nn.Module):
    """Half the frames, twice the channels: a convolution of two frames, each frame in one of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, 2 * channels, (1, 2), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, frames, channels) to (B, frames // 2, 2 channels)."""
        pairs = x[:, : x.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)
        return linear(pairs, self.op.weight.squeeze(2).transpose(1, 2).flatten(1), self.op.bias)


def resized(x: Tensor, frames: int) -> Tensor:
    """x (B, T, channels) at `frames` frames, linearly between those it has, ends clamped."""
    y = F.interpolate(x.transpose(1, 2), size=frames, mode="linear", align_corners=False)
    return y.transpose(1, 2).contiguous()


class QnANet(Denoiser):
    """The network of SinMDM (Raab et al. 2024, section 4; `--arch qna`): blocks of QnA and an MLP.

    Without down-sampling and global positions a frame depends on those within `receptive_field` of it and on nothing
    else, so that it takes any number of frames in pieces, and endless streams.

    Args:
        njoints, nfeats: a motion has njoints * nfeats features.
        latent_dim: width, a multiple of `head_dim`.
        num_layers: blocks a level; even where there is down-sampling.
        num_downsample: levels below the first; each has half the frames and twice the width.
        diffusion_query: whether queries are made of the timestep, instead of being learned.
        head_dim: width of an attention head.
        kernel_size: frames that a frame sees in a block, odd.
        use_global_pe: whether keys have a learned absolute position; without down-sampling only.
        drop_path: highest probability, below 1, of leaving out a block's branch for a motion, in training; it grows
            linearly from 0 over the blocks. Without down-sampling only.
        ignored: arguments of the published network that do nothing there.

    State: as published, with weights that were never used: skip_gate, Wk_bias, and query under diffusion_query.

    Raises:
        ValueError: an argument that is not as above, by name. TypeError: one that the published network does not know.
    """

    global_pe: nn.Parameter | None

    def __init__(
        self,
        njoints: int,
        nfeats: int = 1,
        latent_dim: int = 128,
        num_layers: int = 8,
        num_downsample: int = 0,
        diffusion_query: bool = False,
        head_dim: int = 32,
        kernel_size: int = 3,
        use_global_pe: bool = False,
        drop_path: float = 0.5,
        **ignored: Any,
    ) -> None:
        super().__init__()
        check_ignored(ignored, *_IGNORED)
        check_at_least(1, njoints=njoints, nfeats=nfeats, num_layers=num_layers)
        check_at_least(2, latent_dim=latent_dim)
        check_at_least(1, head_dim=head_dim, kernel_size=kernel_size)
        check_at_least(0, num_downsample=num_downsample)
        check_probability(drop_path=drop_path)
        if latent_dim % head_dim or head_dim > 256:
            raise ValueError(f"head_dim must divide latent_dim = {latent_dim} and be at most 256, got {head_dim}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if num_downsample and num_layers % 2:
            raise ValueError(f"num_layers must be even with num_downsample = {num_downsample}, got {num_layers}")
        if num_downsample and drop_path:
            raise ValueError(f"drop_path must be 0 with num_downsample = {num_downsample}, got {drop_path}")
        if num_downsample and use_global_pe:
            raise ValueError(f"use_global_pe must be False with num_downsample = {num_downsample}, got True")
        self.features, self.num_downsample = njoints * nfeats, num_downsample
        if num_downsample:
            self.not_local = f"its {num_downsample} levels of down-sampling depend on where a motion begins and ends"
        elif use_global_pe:
            self.not_local = "its keys have absolute positions (use_global_pe)"
        else:
            self.receptive_field = num_layers * (kernel_size - 1) // 2
        embedding = 4 * latent_dim
        rates = torch.linspace(0, drop_path, num_layers * (num_downsample + 1), device="cpu").tolist()

        def block(level: int, number: int) -> QnABlock:
            channels = latent_dim * 2**level
            joined = level < num_downsample and number == num_layers // 2  # with what comes from the level below
            return QnABlock(
                3 * channels if joined else channels, channels, embedding, channels // head_dim, kernel_size,
                rates[level * num_layers + number], diffusion_query,
            )  # fmt: skip

        pe = nn.Parameter(torch.zeros(1, latent_dim, 1, POSITIONS)) if use_global_pe else None
        self.register_parameter("global_pe", pe)
        self._make_time_embed(latent_dim)
        self.input_proj = Pointwise2d(self.features, latent_dim, 1)
        self.output_proj = Pointwise2d(latent_dim, self.features, 1)
        self.output_norm = nn.LayerNorm(latent_dim, eps=1e-6)
        self.output_shift_and_scale = ShiftAndScale(embedding, latent_dim)
        self.hierarchy_blocks = nn.ModuleDict(
            {
                f"h{level}": nn.ModuleList(block(level, number) for number in range(num_layers))
                for level in range(num_downsample + 1)
            }
        )
        self.hierarchy_downsample = nn.ModuleDict(
            {f"h{level}": Downsample(latent_dim * 2**level) for level in range(num_downsample)}
        )

    def _at(self, level: int) -> list[QnABlock]:
        return cast("list[QnABlock]", list(cast(nn.ModuleList, self.hierarchy_blocks[f"h{level}"])))

    def _blocks(self) -> list[QnABlock]:
        return [block for level in range(self.num_downsample + 1) for block in self._at(level)]

    def _conditions(self, embedded: Tensor) -> Iterable[Tensor]:
        for block in self._blocks():
            yield from block.conditions(embedded)
        yield from self.output_shift_and_scale.conditions(embedded, self.output_norm)

    def _denoise(self, x: Tensor, conditions: Tensor, lengths: Tensor | None) -> Tensor:
        frames = x.shape[1]
        if frames < 2**self.num_downsample:
            raise ValueError(
                f"x must have {2**self.num_downsample} frames or more with num_downsample = {self.num_downsample}, "
                f"got {frames}"
            )
        if lengths is not None and self.num_downsample:
            raise ValueError(f"lengths must be None with num_downsample = {self.num_downsample}")
        width = self.output_norm.weight.numel()
        *told, gain, offset = conditions.split(
            [*(w for block in self._blocks() for w in block.widths), width, width], -1
        )
        by_block = [told[i : i + 5] for i in range(0, len(told), 5)]
        x = self._level(0, self.input_proj(x), by_block, self._positions(frames, lengths), lengths)
        return self.output_proj(modulated(self.output_norm, x, gain, offset))

    def _level(
        self, level: int, x: Tensor, told: Sequence[Sequence[Tensor]], positions: Tensor | None, lengths: Tensor | None
    ) -> Tensor:
        """Half of the level's blocks, the level below, and the other half on both; told: conditions of all blocks."""
        blocks = self._at(level)
        here = list(zip(blocks, told[level * len(blocks) :], strict=False))
        half = len(blocks) // 2
        for block, condition in here[:half]:
            x = block(x, condition, positions, lengths)
        if level < self.num_downsample:
            below = self._level(level + 1, self.hierarchy_downsample[f"h{level}"](x), told, None, None)
            below = resized(below, 2 * below.shape[1])
            # One frame short where the number of frames is odd.
            below = below if below.shape[1] == x.shape[1] else resized(below, x.shape[1])
            x = torch.cat([x, below], -1)
        for block, condition in here[half:]:
            x = block(x, condition, positions, lengths)
        return x

    def _positions(self, frames: int, lengths: Tensor | None) -> Tensor | None:
        """(1, frames, channels) of the learned positions: the first ones, or all of them stretched."""
        if self.global_pe is None:
            return None
        positions = channels_last(self.global_pe)
        if frames <= POSITIONS:
            return positions[:, :frames]
        if lengths is not None:
            raise ValueError(
                f"lengths must be None beyond {POSITIONS} frames with use_global_pe, whose positions are then "
                f"stretched over all frames, got {frames} frames"
            )
        return resized(positions, frames)
