"""QnA: local attention whose query is learned (Arar et al. 2022), as the published SinMDM networks use it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_at_least
from ..kernels import qna_attention
from ..remembering import remembered
from .layers import Linear, Pointwise2d, is_plain
from .products import computed_in, differentiated, linear


class QnAAttention1d(nn.Module):
    """Local attention over frames whose query is learned, one a head and the same for every frame.

    Source: Arar et al. 2022 (QnA), section 3; Raab et al. 2024 (SinMDM), section 4. Weights and their names are those
    of the published layer.

    Args:
        in_features: channels of the input.
        hidden_features: width of keys and values, a multiple of `heads`, at most 256 times it.
        heads: of attention.
        kernel_size: frames that a frame sees, k. An even number is allowed.
        stride: every so manieth frame is computed.
        padding: frames before the first at which a window may begin, 0 .. k - 1; default (k - 1) // 2. Windows may end
            as many frames after the last; frames outside are not seen.
        output_features: channels of the output; default `hidden_features`.
        normalize_q: whether a head's query is brought to length 1, before it is divided by sqrt(head width).
        use_relative_pos: whether there is a learned bias of the position in the window, `rpe`.
        use_bias: whether the projections of values and of the output have a bias.
        axial_dim: 1, frames are the last axis.
        timesteps_features: width E of the timestep embedding from which the query is made instead; None for none.

    State: query (hidden), Wk (in, hidden), Wk_bias (hidden), rpe (heads, 1, 1, k), to_v.weight (hidden, in, 1, 1),
    to_v.bias, to_out.weight (output, hidden, 1, 1), to_out.bias, timesteps_embed.1.weight (hidden, E),
    timesteps_embed.1.bias. Wk_bias is never used: it adds the same to the scores of all frames, which softmax does not
    see. So its gradient is None.

    Raises:
        ValueError: an argument that is not as above, by name.
    """

    rpe: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        heads: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        output_features: int | None = None,
        normalize_q: bool = True,
        use_relative_pos: bool = True,
        use_bias: bool = True,
        axial_dim: int = 1,
        timesteps_features: int | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 if padding is None else padding
        output_features = hidden_features if output_features is None else output_features
        check_at_least(
            1, in_features=in_features, hidden_features=hidden_features, heads=heads, kernel_size=kernel_size,
            stride=stride, output_features=output_features,
        )  # fmt: skip
        check_at_least(0, padding=padding)
        if hidden_features % heads or hidden_features // heads > 256:
            raise ValueError(
                f"hidden_features must be a multiple of heads, at most 256 times it, got {hidden_features} and {heads}"
            )
        if padding >= kernel_size:
            raise ValueError(f"padding must be less than kernel_size = {kernel_size}, got {padding}")
        if axial_dim != 1:
            raise ValueError(f"axial_dim must be 1 (frames are the last axis), got {axial_dim}")
        self.in_features, self.heads, self.head_dim = in_features, heads, hidden_features // heads
        self.kernel_size, self.stride, self.padding, self.normalize_q = kernel_size, stride, padding, normalize_q
        self.query = nn.Parameter(torch.empty(hidden_features))
        self.Wk = nn.Parameter(torch.empty(in_features, hidden_features))
        self.Wk_bias = nn.Parameter(torch.zeros(hidden_features))
        rpe = nn.Parameter(torch.zeros(heads, 1, 1, kernel_size)) if use_relative_pos else None
        self.register_parameter("rpe", rpe)
        self.to_v = Pointwise2d(in_features, hidden_features, 1, bias=use_bias)
        self.to_out = Pointwise2d(hidden_features, output_features, 1, bias=use_bias)
        self.timesteps_embed = None
        if timesteps_features is not None:
            self.timesteps_embed = nn.Sequential(nn.SiLU(), Linear(timesteps_features, hidden_features))
        nn.init.normal_(self.query, std=self.head_dim**-0.5)
        nn.init.normal_(self.Wk, std=self.head_dim**-0.5)

    def keys(self, embedded: Tensor | None = None) -> Tensor:
        """The key weight times the query: (in, heads), what a frame is multiplied with to give its scores.

        Of SiLU(timestep embedding) (N, E), where it is given and the query is made of it, (N, in, heads).
        """
        query: Tensor = self.query
        if embedded is not None and self.timesteps_embed is not None:
            query = self.timesteps_embed[1](embedded)
        return folded_keys(self.Wk, query, self.heads, self.normalize_q)

    def attend(
        self,
        x: Tensor,
        keys: Tensor | None = None,
        positions: Tensor | None = None,
        lengths: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Attention on motions whose channels come last, (B, frames, output).

        Args:
            x: (B, frames, in).
            keys: of the method of that name, for all motions or each; default those of the learned query.
            positions: (B or 1, frames, in), added to what the keys are made of.
            lengths: (B,) int, real frames.
            residual: (B, frames, output), added to the result.
        """
        parameters = [p for p in (self.Wk, self.query, self.to_v.weight, self.to_v.bias) if p is not None]
        alone = keys is None and positions is None and is_plain(self.to_v, Pointwise2d)
        if alone and not differentiated(x, *parameters):
            dtype = computed_in(x)
            weight, bias = remembered(("scores and values", dtype), parameters, lambda: self._together(dtype))
            scores, values = linear(x, weight, bias).tensor_split([self.heads], -1)
        else:
            keys = self.keys() if keys is None else keys
            scores, values = scores_of(x, keys), self.to_v(x)
            if positions is not None:
                scores = scores + scores_of(positions, keys)
        rel_bias = scores.new_zeros(self.heads, self.kernel_size) if self.rpe is None else self.rpe.flatten(1)
        attended = learned_query_attention(
            scores, values, rel_bias, stride=self.stride, padding=self.padding, lengths=lengths
        )
        return self.to_out(attended, residual=residual)

    def _together(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of one product that gives scores and values, side by side."""
        keys = self.keys().T
        bias = self.to_v.weight.new_zeros(len(self.to_v.weight)) if self.to_v.bias is None else self.to_v.bias
        weight = torch.cat([keys, self.to_v.weight.flatten(1)])
        return weight.to(dtype), torch.cat([bias.new_zeros(self.heads), bias]).to(dtype)

    def forward(self, x: Tensor, timesteps: Tensor | None = None, global_pe: Tensor | None = None) -> Tensor:
        """x (B, in, frames) or (B, in, 1, frames) to (B, output, n) or (B, output, 1, n), n = (frames + 2 padding - k)
        // stride + 1.

        Args:
            timesteps: (B, E), the timestep embedding before its SiLU, of which the query is made where the layer has
                timesteps_features; the learned query is used where it is None.
            global_pe: like x, or one for all motions; added to what the keys are made of.

        Raises:
            ValueError: x is not as above, or has too few frames.
        """
        if x.dim() not in (3, 4) or x.shape[1] != self.in_features or x.shape[2:-1] not in ((), (1,)):
            raise ValueError(
                f"x must have shape (batch, {self.in_features}, frames) or (batch, {self.in_features}, 1, frames), "
                f"got {tuple(x.shape)}"
            )
        keys = None if timesteps is None else self.keys(F.silu(timesteps))
        positions = None if global_pe is None else channels_last(global_pe)
        out = self.attend(channels_last(x), keys, positions).transpose(1, 2)
        return out if x.dim() == 3 else out.unsqueeze(2)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


def folded_keys(key_weight: Tensor, query: Tensor, heads: int, normalize: bool) -> Tensor:
    """Wk q: key_weight (in, hidden) and query (..., hidden) to (..., in, heads).

    A score is q . (Wk^T x) = (Wk q) . x. Multiplying these first leaves a product of `heads` columns instead of
    `hidden`. The key's bias is left out, as it changes no weight: see QnAAttention1d.
    """
    query = query.unflatten(-1, (heads, -1))
    if normalize:  # first, and then scaled: a query has the length 1 / sqrt(head width)
        query = query / (torch.linalg.vector_norm(query, dim=-1, keepdim=True) + 1e-6)
    query = query / math.sqrt(query.shape[-1])
    return torch.einsum("chd,...hd->...ch", key_weight.unflatten(1, (heads, -1)), query)


def learned_query_attention(
    scores: Tensor, values: Tensor, rel_bias: Tensor, *, stride: int, padding: int, lengths: Tensor | None = None
) -> Tensor:
    """QnA between its projections: scores (B, frames, heads), values (B, frames, hidden) to (B, outputs, hidden).

    Args:
        rel_bias: (heads, k).
        stride, padding, lengths: as of QnAAttention1d.
    """
    (heads, kernel_size), frames = rel_bias.shape, scores.shape[1]
    values = values.unflatten(-1, (heads, -1))
    count = (frames + 2 * padding - kernel_size) // stride + 1
    if count < 1:
        raise ValueError(
            f"x must have {kernel_size - 2 * padding} frames or more for kernel_size = {kernel_size} and padding = "
            f"{padding}, got {frames}"
        )
    beyond = (count - 1) * stride + 1 - frames
    if beyond > 0:  # there are outputs after the last frame: what they see there weighs exp(-inf) = 0
        scores = F.pad(scores, (0, 0, 0, beyond), value=torch.finfo(scores.dtype).min / 2)
        values = F.pad(values, (0, 0, 0, 0, 0, beyond))
    window = (padding, kernel_size - 1 - padding)
    return qna_attention(scores, values, rel_bias, window=window, stride=stride, lengths=lengths)[:, :count].flatten(2)


def scores_of(x: Tensor, keys: Tensor) -> Tensor:
    """(B, frames, heads) of x (B, frames, in) and keys (in, heads), or (B or 1, in, heads)."""
    return linear(x, keys.T, None) if keys.dim() == 2 else x @ keys


def channels_last(x: Tensor) -> Tensor:
    """(B, channels, frames) or (B, channels, 1, frames) to (B, frames, channels), contiguous."""
    return x.flatten(2).transpose(1, 2).contiguous()
