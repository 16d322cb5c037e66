"""The published SinMDM networks (Raab et al. 2024; code of 2025) in plain PyTorch: the peer, and a check of ours.

Written from a description of what the published code computes, and as it computes it: images (B, channels, 1, frames)
with channels first, 1x1 convolutions, channels moved to the end and back for a LayerNorm, exp of the scores without
their maximum and two grouped convolutions for a softmax over a window, a gate that is computed and thrown away. Weights
have the published names and shapes, in the published order. Nothing here is meant to be fast or safe: scores above 88
overflow.

Where the description leaves open how something is computed, the cheaper way is taken: the query is multiplied into the
key's weight before that meets the frames.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

POSITIONS = 392
GROUPS = 32


def timestep_embedding(timesteps: Tensor, size: int) -> Tensor:
    """(B, size): cosines, then sines, of the timesteps at size / 2 frequencies from 1 down to about 1 / 10000."""
    half = size // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half).to(timesteps.device)
    angles = timesteps[:, None].float() * frequencies
    embedding = torch.cat([angles.cos(), angles.sin()], -1)
    return F.pad(embedding, (0, size % 2))


def time_embed(width: int) -> nn.Sequential:
    """The timestep embedding's two layers, to 4 `width`; who uses it applies a SiLU first."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


# The attention


class WindowedMean(nn.Module):
    """softmax of u + rpe over a window, times v: exp(u) v and exp(u) convolved with exp(rpe), one over the other."""

    def forward(self, u: Tensor, v: Tensor, rpe: Tensor) -> Tensor:
        """u (B, heads, 1, F), v (B, channels, 1, F), rpe (heads, 1, 1, k) to (B, channels, 1, F)."""
        heads, channels, padding = u.shape[1], v.shape[1], (0, (rpe.shape[-1] - 1) // 2)
        weights, kernel = u.exp(), rpe.exp()
        wide = (weights.unsqueeze(2) * v.unflatten(1, (heads, -1))).reshape(v.shape)
        above = F.conv2d(wide, kernel.repeat_interleave(channels // heads, 0), padding=padding, groups=channels)
        below = F.conv2d(weights, kernel, padding=padding, groups=heads)
        return above / below.repeat_interleave(channels // heads, 1)


class FusedQnA1d(nn.Module):
    """Local attention with one learned query a head, or one made of the timestep where there is an `embedding`."""

    def __init__(self, inputs: int, channels: int, heads: int, kernel_size: int, embedding: int | None = None) -> None:
        super().__init__()
        self.heads, self.width = heads, channels // heads
        self.query = nn.Parameter(torch.empty(channels).normal_(std=self.width**-0.5))
        self.Wk = nn.Parameter(torch.empty(inputs, channels).normal_(std=self.width**-0.5))
        self.Wk_bias = nn.Parameter(torch.zeros(channels))
        self.rpe = nn.Parameter(torch.zeros(heads, 1, 1, kernel_size))
        self.to_v = nn.Conv2d(inputs, channels, 1)
        self.to_out = nn.Conv2d(channels, channels, 1)
        self.timesteps_embed = None if embedding is None else nn.Sequential(nn.SiLU(), nn.Linear(embedding, channels))
        self.core = WindowedMean()

    def forward(self, x: Tensor, tau: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """x (B, inputs, 1, F) to (B, channels, 1, F); tau (B, embedding); positions, like x, are added for keys."""
        query = self.query[None] if self.timesteps_embed is None else self.timesteps_embed(tau)
        query = query.unflatten(1, (self.heads, self.width))
        query = query / (query.norm(dim=-1, keepdim=True) + 1e-6)
        query = query / math.sqrt(self.width)
        weight = torch.einsum("chd,bhd->bch", self.Wk.unflatten(1, (self.heads, self.width)), query)
        bias = torch.einsum("hd,bhd->bh", self.Wk_bias.unflatten(0, (self.heads, self.width)), query)
        keyed = x if positions is None else x + positions
        if self.timesteps_embed is None:
            u = torch.einsum("bcsf,ch->bhsf", keyed, weight[0])
        else:
            u = torch.einsum("bcsf,bch->bhsf", keyed, weight)
        return self.to_out(self.core(u + bias[:, :, None, None], self.to_v(x), self.rpe))


# --arch qna


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, channels, 1, F)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """x to its shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ShiftAndScale(nn.Module):
    """x (1 + scale) + shift, both made of the timestep: shift first."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.cond_map = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * channels))

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, channels, 1, F) to its shape; tau (B, embedding)."""
        shift, scale = self.cond_map(tau)[:, :, None, None].chunk(2, 1)
        return x * (1 + scale) + shift


class Mlp(nn.Module):
    """GELU between two 1x1 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 1)
        self.conv2 = nn.Conv2d(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x to its shape."""
        return self.conv2(F.gelu(self.conv1(x)))


class StochasticDepth(nn.Module):
    """torchvision's, mode "row": a sample's branch is zeroed with probability p, and else divided by 1 - p.

    The rows are drawn from torch's generator, unless `give_rows` has given some.
    """

    given: Iterator[Tensor] | None = None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x to its shape."""
        if not self.training or self.p == 0:
            return x
        if self.given is None:
            rows = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.p)
        else:
            rows = next(self.given).to(x).view(-1, 1, 1, 1)
        return x * rows.div_(1 - self.p)


def give_rows(network: nn.Module, rows: Iterable[Tensor] | None) -> None:
    """Have a network's branches keep these rows instead of drawing: a (B,) tensor of 0 and 1 for each branch with
    p > 0, in the order in which they are computed, forward after forward. None: draw again."""
    shared = None if rows is None else (row.clone() for row in rows)
    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.given = shared


class QnABlock(nn.Module):
    """x + QnA, then x + MLP, each of what is normalised and shifted and scaled."""

    def __init__(
        self, inputs: int, channels: int, embedding: int, heads: int, kernel_size: int, drop_path: float, timed: bool
    ) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inputs)
        self.shiftscale1 = ShiftAndScale(embedding, inputs)
        self.qna_layer = FusedQnA1d(inputs, channels, heads, kernel_size, embedding if timed else None)
        self.skip_process = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1)
        self.norm2 = ChannelNorm(channels)
        self.shiftscale2 = ShiftAndScale(embedding, channels)
        self.mlp_layer = Mlp(channels)
        self.skip_gate = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * channels))
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor, tau: Tensor, positions: Tensor | None) -> Tensor:
        """x (B, inputs, 1, F), tau (B, embedding) to (B, channels, 1, F)."""
        self.skip_gate(tau)  # the published switch for gating is off: computed, not used
        h = self.qna_layer(self.shiftscale1(self.norm1(x), tau), tau, positions)
        x = self.skip_process(x) + self.drop_path(h)
        h = self.mlp_layer(self.shiftscale2(self.norm2(x), tau))
        return x + self.drop_path(h)


class Downsample(nn.Module):
    """Half the frames, twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, 2 * channels, (1, 2), stride=(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, 1, F) to (B, 2 channels, 1, F // 2)."""
        return self.op(x)


def _resized(x: Tensor, frames: int) -> Tensor:
    return F.interpolate(x, size=(1, frames), mode="bilinear", align_corners=False)


class PublishedQnANet(nn.Module):
    """`--arch qna`. (B, a, b, F) with a b = features, and timesteps (B,), to the same shape."""

    def __init__(
        self,
        features: int,
        latent_dim: int = 128,
        num_layers: int = 8,
        num_downsample: int = 0,
        diffusion_query: bool = False,
        head_dim: int = 32,
        kernel_size: int = 3,
        use_global_pe: bool = False,
        drop_path: float = 0.5,
    ) -> None:
        super().__init__()
        self.latent_dim, self.levels = latent_dim, num_downsample
        embedding = 4 * latent_dim
        rates = torch.linspace(0, drop_path, num_layers * (num_downsample + 1)).tolist()

        def block(level: int, number: int) -> QnABlock:
            channels = latent_dim * 2**level
            joined = level < num_downsample and number == num_layers // 2
            inputs, rate = 3 * channels if joined else channels, rates[level * num_layers + number]
            return QnABlock(inputs, channels, embedding, channels // head_dim, kernel_size, rate, diffusion_query)

        positions = nn.Parameter(torch.zeros(1, latent_dim, 1, POSITIONS)) if use_global_pe else None
        self.register_parameter("global_pe", positions)
        self.time_embed = time_embed(latent_dim)
        self.input_proj = nn.Conv2d(features, latent_dim, 1)
        self.output_proj = nn.Conv2d(latent_dim, features, 1)
        self.output_norm = ChannelNorm(latent_dim)
        self.output_shift_and_scale = ShiftAndScale(embedding, latent_dim)
        self.hierarchy_blocks = nn.ModuleDict(
            {f"h{i}": nn.ModuleList(block(i, j) for j in range(num_layers)) for i in range(num_downsample + 1)}
        )
        self.hierarchy_downsample = nn.ModuleDict(
            {f"h{i}": Downsample(latent_dim * 2**i) for i in range(num_downsample)}
        )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction of x_0."""
        shape = x.shape
        x = x.reshape(shape[0], -1, 1, shape[-1])
        tau = self.time_embed(timestep_embedding(timesteps, self.latent_dim))
        positions = self.global_pe
        if positions is not None:
            frames = shape[-1]
            positions = _resized(positions, frames) if frames > POSITIONS else positions[..., :frames]
        x = self._level(0, self.input_proj(x), tau, positions)
        x = self.output_proj(self.output_shift_and_scale(self.output_norm(x), tau))
        return x.reshape(shape)

    def _level(self, level: int, x: Tensor, tau: Tensor, positions: Tensor | None) -> Tensor:
        """Half of a level's blocks, the level below, the other half; at twice the frames where there is one above."""
        blocks = self.hierarchy_blocks[f"h{level}"]
        half = len(blocks) // 2
        for block in blocks[:half]:
            x = block(x, tau, positions)
        if level < self.levels:
            below = self._level(level + 1, self.hierarchy_downsample[f"h{level}"](x), tau, positions)
            if below.shape[-1] != x.shape[-1]:
                below = _resized(below, x.shape[-1])
            x = torch.cat([x, below], 1)
        for block in blocks[half:]:
            x = block(x, tau, positions)
        return _resized(x, 2 * x.shape[-1]) if level else x


# --arch unet, with one-dimensional convolutions


class ResBlock(nn.Module):
    """Two convolutions beside a skip connection, told of the timestep between them: scale first."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, inputs), nn.SiLU(), nn.Conv1d(inputs, outputs, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outputs if scale_shift else outputs))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, outputs),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv1d(outputs, outputs, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, inputs, F), tau (B, embedding) to (B, outputs, F)."""
        h = self.in_layers(x)
        told = self.emb_layers(tau)[:, :, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + scale) + shift
            h = self.out_layers[1:](h)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(x) + h


class QnAAttentionBlock(nn.Module):
    """x + QnA(norm x)."""

    def __init__(self, channels: int, heads: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.attention = FusedQnA1d(channels, channels, heads, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, F) to its shape."""
        return x + self.attention(self.norm(x).unsqueeze(2)).squeeze(2)


class FullAttentionBlock(nn.Module):
    """x + attention over all frames of norm x; q, k and v lie side by side in each head."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, F) to its shape."""
        q, k, v = self.qkv(self.norm(x)).unflatten(1, (self.heads, -1)).chunk(3, 2)
        weights = torch.einsum("bhdt,bhds->bhts", q, k) / math.sqrt(q.shape[2])
        h = torch.einsum("bhts,bhds->bhdt", weights.softmax(-1), v)
        return x + self.proj_out(h.flatten(1, 2))


class DownsampleConv(nn.Module):
    """A convolution at every second frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv1d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, F) to (B, channels, F / 2)."""
        return self.op(x)


class UpsampleConv(nn.Module):
    """Every frame twice, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, F) to (B, channels, 2 F)."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def _zeroed(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class PublishedUNet(nn.Module):
    """`--arch unet --conv_1d true`. (B, a, b, F) with a b = features, and timesteps (B,), to the same shape.

    attended: the levels with attention, by how many times fewer frames they have. use_checkpoint computes every
    ResBlock and attention again in the backward; as published it then drops out other elements, so that gradients are
    wrong where dropout > 0.
    """

    def __init__(
        self,
        features: int,
        num_channels: int = 256,
        num_res_blocks: int = 1,
        channel_mult: str = "1",
        attended: tuple[int, ...] = (1, 2),
        num_heads: int = 4,
        dropout: float = 0.5,
        use_scale_shift_norm: bool = False,
        use_attention: bool = True,
        use_qna: bool = True,
        kernel_size: int = 3,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.num_channels, self.use_checkpoint = num_channels, use_checkpoint
        widths = [int(float(factor) * num_channels) for factor in channel_mult.split(",")]
        self.levels = len(widths)
        embedding = 4 * num_channels

        def blocks(level: int, inputs: int, size: int) -> list[nn.Module]:
            """A ResBlock to the level's width, and its attention, whose QnA has windows of `size`."""
            width = widths[level]
            made: list[nn.Module] = [ResBlock(inputs, width, embedding, dropout, use_scale_shift_norm)]
            if use_attention and 2**level in attended:
                made.append(
                    QnAAttentionBlock(width, num_heads, size) if use_qna else FullAttentionBlock(width, num_heads)
                )
            return made

        self.time_embed = time_embed(num_channels)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv1d(features, widths[0], 3, padding=1)])])
        pushed = [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(nn.ModuleList(blocks(level, pushed[-1], kernel_size)))
                pushed.append(width)
            if level < self.levels - 1:
                self.input_blocks.append(nn.ModuleList([DownsampleConv(width)]))
                pushed.append(width)
        self.output_blocks = nn.ModuleList()
        width = pushed.pop()  # of the last block down, which the first one up takes for itself
        for level in reversed(range(self.levels)):
            for i in range(num_res_blocks + 1):
                joined = pushed.pop() if len(self.output_blocks) else 0
                made = blocks(level, width + joined, 3)  # the published kernel_size does not reach the way up
                width = widths[level]
                if level and i == num_res_blocks:
                    made.append(UpsampleConv(width))
                self.output_blocks.append(nn.ModuleList(made))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, width), nn.SiLU(), _zeroed(nn.Conv1d(width, features, 3, padding=1))
        )

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The prediction of x_0."""
        shape = x.shape
        tau = self.time_embed(timestep_embedding(timesteps, self.num_channels))
        x = F.pad(x.flatten(1, 2), (0, -shape[-1] % 2**self.levels))
        pushed = []
        for block in self.input_blocks:
            x = self._run(block, x, tau)
            pushed.append(x)
        pushed.pop()
        for number, block in enumerate(self.output_blocks):
            x = self._run(block, torch.cat([x, pushed.pop()], 1) if number else x, tau)
        return self.out(x)[..., : shape[-1]].reshape(shape)

    def _run(self, block: Iterable[nn.Module], x: Tensor, tau: Tensor) -> Tensor:
        for layer in block:
            inputs = (x, tau) if isinstance(layer, ResBlock) else (x,)
            again = isinstance(layer, (ResBlock, QnAAttentionBlock, FullAttentionBlock))
            if again and self.use_checkpoint and torch.is_grad_enabled():
                x = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(*inputs)
        return x
