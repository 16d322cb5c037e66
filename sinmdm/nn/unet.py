"""The published U-Net of SinMDM (Raab et al. 2024; after Dhariwal and Nichol 2021), its attention being QnA."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checks import check_at_least, check_ignored
from .denoiser import Denoiser
from .layers import Conv1d, Conv2d, Dropout, GroupNorm, Linear, Pointwise1d, Pointwise2d
from .qna import QnAAttention1d

GROUPS = 32
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
# channel_mult where it is not given, by image_size.
_MULTIPLIERS = {64: "1,2,3,4", 128: "1,1,2,3,4", 256: "1,1,2,2,4,4", 512: "0.5,1,1,2,2,4,4"}
# What is the published QnA network's alone.
_IGNORED = ("layers", "latent_dim", "head_dim", "num_downsample", "drop_path", "use_diffusion_query", "use_global_pe")


def doubled(x: Tensor) -> Tensor:
    """Every frame, and every row where there are rows, twice."""
    for dim in range(1, x.dim() - 1):
        x = x.repeat_interleave(2, dim)
    return x


def halved(x: Tensor) -> Tensor:
    """Means of two frames, and of two rows where there are rows."""
    for dim in range(1, x.dim() - 1):
        x = x.unflatten(dim, (-1, 2)).mean(dim + 1)
    return x


class Layers:
    """The convolutions of a network with one-dimensional kernels, or two-dimensional ones, under a padding mode."""

    def __init__(self, dims: int, padding_mode: str) -> None:
        self.dims, self.padding_mode = dims, padding_mode

    def three(self, inputs: int, outputs: int, stride: int = 1, *, zero: bool = False) -> nn.Module:
        """A convolution of three frames, which starts at zero where asked for."""
        make = Conv1d if self.dims == 1 else Conv2d
        mode = cast(Literal["zeros"], self.padding_mode)  # torch's annotation names each of them
        made = make(inputs, outputs, 3, stride=stride, padding=1, padding_mode=mode)
        return zeroed(made) if zero else made

    def one(self, inputs: int, outputs: int) -> nn.Module:
        """A convolution of one frame."""
        return (Pointwise1d if self.dims == 1 else Pointwise2d)(inputs, outputs, 1)


def zeroed(module: nn.Module) -> nn.Module:
    """`module`, its weights zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """Two convolutions beside a skip connection, told of the timestep between them.

    resample: of the frames, before the first convolution; None, `doubled` or `halved`.
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int, layers: Layers, *, dropout: float, scale_shift: bool,
        resample: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(GroupNorm(GROUPS, inputs), nn.SiLU(), layers.three(inputs, outputs))
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            GroupNorm(GROUPS, outputs), nn.SiLU(), Dropout(dropout), layers.three(outputs, outputs, zero=True)
        )
        self.skip_connection = layers.one(inputs, outputs) if inputs != outputs else nn.Identity()

    @property
    def projection(self) -> Linear:
        """What makes the block's condition of SiLU(timestep embedding)."""
        return cast(Linear, self.emb_layers[1])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, frames, inputs), condition (B or 1, width of the projection), to (B, frames, outputs)."""
        norm, _, conv = self.in_layers
        h = norm(x, activation="silu")
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        norm, _, dropout, conv = self.out_layers
        if self.scale_shift:  # scale first, where a ShiftAndScale has the shift first
            scale, shift = condition.chunk(2, -1)
            h = norm(h, scale=scale, shift=shift, activation="silu")
        else:
            h = norm(h + condition.reshape(len(condition), *[1] * (x.dim() - 2), -1), activation="silu")
        h = conv(dropout(h))
        return self.skip_connection(x) + h


class QnAAttentionBlock(nn.Module):
    """x + QnA(norm x), of the frames of every row."""

    def __init__(self, channels: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = GroupNorm(GROUPS, channels)
        self.attention = QnAAttention1d(channels, channels, heads, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -3)
        h = self.norm(x).view(rows.shape)
        return self.attention.attend(h, residual=rows).view(x.shape)


class FullAttentionBlock(nn.Module):
    """x + attention over all frames and rows of norm x; split_first: q, k and v are apart before heads are."""

    def __init__(self, channels: int, heads: int, split_first: bool) -> None:
        super().__init__()
        self.heads, self.split_first = heads, split_first
        self.norm = GroupNorm(GROUPS, channels)
        self.qkv = Pointwise1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(Pointwise1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        frames = x.flatten(1, -2)
        qkv = self.qkv(self.norm(x).view(frames.shape))
        if self.split_first:
            parts = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
        else:
            parts = qkv.unflatten(-1, (self.heads, 3, -1)).unbind(3)
        q, k, v = (part.transpose(1, 2) for part in parts)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_out(h, residual=frames).view(x.shape)


class Downsample(nn.Module):
    """A convolution at every second frame."""

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.op = layers.three(channels, channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Every frame twice, and a convolution."""

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        self.conv = layers.three(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(doubled(x))


# What is not worth computing again: it keeps little but its input.
_CHEAP = (Conv1d, Conv2d, Downsample, Upsample)


def _numbers(name: str, text: str) -> list[float]:
    """The numbers above 0 of a list such as "1,2". Raises ValueError by the argument's name."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except (AttributeError, ValueError):
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers):
        raise ValueError(f'{name} must be numbers above 0 with commas between, such as "1,2", got {text!r}')
    return numbers


class QnAUNet(Denoiser):
    """The U-Net of SinMDM (`--arch unet`), without a middle block.

    Its group norms take their statistics over all frames: a frame depends on all others and on how many there are, so
    that a motion can not be made in pieces.

    Args:
        in_channels, out_channels: features of a motion; equal.
        image_size: what attention_resolutions are relative to.
        num_channels: width M of the first level; times each of channel_mult a multiple of 32.
        num_res_blocks: blocks of a level, on the way down; one more on the way up.
        attention_resolutions: levels with attention: those whose frames are one in image_size // r, for an r of these.
        channel_mult: width of each level, in M. Each has half the frames of the one before. "" goes by image_size (64,
            128, 256 or 512).
        dropout: probability, in every ResBlock.
        num_heads, num_head_channels, num_heads_upsample: heads of attention, or the width of one where that is not -1;
            on the way up num_heads_upsample of them where that is not -1.
        use_attention, use_qna: whether there is attention, and whether it is QnA or full attention.
        kernel_size: frames that a frame sees in QnA on the way down, odd; on the way up they are 3, as published.
        conv_1d: False for two-dimensional kernels, over 2^levels rows of which all but one are padding.
        use_scale_shift_norm: whether the timestep scales and shifts what is normalised, or is added before.
        resblock_updown: whether frames are doubled and halved by ResBlocks.
        use_new_attention_order: whether full attention has q, k and v apart before its heads.
        padding_mode: of convolutions: "zeros", "reflect", "replicate" or "circular".
        padding: of convolutions: 1.
        use_checkpoint: compute blocks again in the backward pass, dropping out the same, instead of keeping them.
        ignored: arguments of the published network that do nothing there.

    State: as published, with Wk_bias, which has no effect.

    Raises:
        ValueError: an argument that is not as above, by name. TypeError: one that the published network does not know.
    """

    not_local = "its group norms take their statistics over all frames"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: int = 64,
        num_channels: int = 256,
        num_res_blocks: int = 1,
        attention_resolutions: str = "64,32",
        channel_mult: str = "1",
        dropout: float = 0.5,
        num_heads: int = 4,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_attention: bool = True,
        use_qna: bool = True,
        kernel_size: int = 3,
        conv_1d: bool = True,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        padding_mode: str = "zeros",
        padding: int = 1,
        use_checkpoint: bool = False,
        **ignored: Any,
    ) -> None:
        super().__init__()
        check_ignored(ignored, *_IGNORED)
        check_at_least(1, in_channels=in_channels, image_size=image_size, num_channels=num_channels)
        check_at_least(1, num_res_blocks=num_res_blocks, num_heads=num_heads, kernel_size=kernel_size)
        if out_channels != in_channels:
            raise ValueError(f"out_channels must be in_channels = {in_channels}, got {out_channels}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be in [0, 1], got {dropout}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        if padding != 1:
            raise ValueError(f"padding must be 1, got {padding}")
        if channel_mult == "" and image_size not in _MULTIPLIERS:
            sizes = ", ".join(map(str, _MULTIPLIERS))
            raise ValueError(f'image_size must be one of {sizes} with channel_mult "", got {image_size}')
        multipliers = _numbers("channel_mult", channel_mult or _MULTIPLIERS[image_size])
        widths = [multiplier * num_channels for multiplier in multipliers]
        if any(width % GROUPS for width in widths):
            raise ValueError(
                f"num_channels times each of channel_mult must be a multiple of {GROUPS}, "
                f"got {num_channels} and {channel_mult!r}"
            )
        attended = [image_size // r for r in _numbers("attention_resolutions", attention_resolutions)]
        for name, value in (("num_head_channels", num_head_channels), ("num_heads_upsample", num_heads_upsample)):
            if value != -1:
                check_at_least(1, **{name: value})

        self.features, self.use_checkpoint, self.levels = in_channels, use_checkpoint, len(widths)
        layers = Layers(1 if conv_1d else 2, padding_mode)
        self.conv_1d = conv_1d
        embedding = 4 * num_channels

        def res_block(inputs: int, outputs: int, resample: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
            return ResBlock(
                inputs, outputs, embedding, layers, dropout=dropout, scale_shift=use_scale_shift_norm, resample=resample
            )

        def attention(level: int, channels: int, size: int, heads_by: str) -> list[nn.Module]:
            if not use_attention or 2**level not in attended:
                return []
            by = "num_head_channels" if num_head_channels != -1 else heads_by
            number = {"num_heads": num_heads, "num_heads_upsample": num_heads_upsample}.get(by, num_head_channels)
            if channels % number:
                raise ValueError(f"{by} must divide {channels} channels, got {number}")
            heads = channels // number if by == "num_head_channels" else number
            if use_qna:
                return [QnAAttentionBlock(channels, heads, size)]
            return [FullAttentionBlock(channels, heads, use_new_attention_order)]

        self._make_time_embed(num_channels)
        channels = int(widths[0])
        blocks: list[list[nn.Module]] = [[layers.three(in_channels, channels)]]
        skipped = [channels]
        for level, width in enumerate(map(int, widths)):
            for _ in range(num_res_blocks):
                blocks.append([res_block(channels, width), *attention(level, width, kernel_size, "num_heads")])
                channels = width
                skipped.append(channels)
            if level + 1 < self.levels:
                down = res_block(channels, channels, halved) if resblock_updown else Downsample(channels, layers)
                blocks.append([down])
                skipped.append(channels)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        blocks = []
        skipped[-1] = 0  # the first block up has the last one's output itself, and nothing beside it
        heads_by = "num_heads" if num_heads_upsample == -1 else "num_heads_upsample"
        for level, width in reversed(list(enumerate(map(int, widths)))):
            for i in range(num_res_blocks + 1):
                block = [res_block(channels + skipped.pop(), width), *attention(level, width, 3, heads_by)]
                channels = width
                if level and i == num_res_blocks:
                    up = res_block(channels, channels, doubled) if resblock_updown else Upsample(channels, layers)
                    block.append(up)
                blocks.append(block)
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, blocks))
        out = layers.three(channels, out_channels, zero=True)
        self.out = nn.Sequential(GroupNorm(GROUPS, channels), nn.SiLU(), out)

    def _res_blocks(self) -> list[ResBlock]:
        parts = (*self.input_blocks.modules(), *self.output_blocks.modules())
        return [part for part in parts if isinstance(part, ResBlock)]

    def _conditions(self, embedded: Tensor) -> Iterable[Tensor]:
        return (block.projection(embedded) for block in self._res_blocks())

    def _denoise(self, x: Tensor, conditions: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            raise ValueError(f"lengths must be None: {self.not_local}")
        frames = x.shape[1]
        unit = 2**self.levels  # as published: half of that would do
        x = F.pad(x, (0, 0, 0, -frames % unit))
        if not self.conv_1d:
            x = F.pad(x.unsqueeze(1), (0, 0, 0, 0, 0, unit - 1))
        widths = [block.projection.out_features for block in self._res_blocks()]
        told = iter(conditions.split(widths, -1))

        def run(block: nn.Module, x: Tensor) -> Tensor:
            for layer in block.children():
                x = self._run(layer, x, *([next(told)] if isinstance(layer, ResBlock) else []))
            return x

        kept: list[Tensor] = []
        for block in self.input_blocks:
            x = run(block, x)
            kept.append(x)
        kept.pop()
        x = run(self.output_blocks[0], x)
        for block in self.output_blocks[1:]:
            x = run(block, torch.cat([x, kept.pop()], -1))
        norm, _, conv = self.out
        x = conv(norm(x, activation="silu"))
        return (x if self.conv_1d else x[:, 0])[:, :frames]

    def _run(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled() and not isinstance(layer, _CHEAP):
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)
