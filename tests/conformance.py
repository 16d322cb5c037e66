"""Weights and input of the published networks' test vectors (specs §8.1)."""

import numpy as np
import torch
from torch import Tensor, nn


@torch.no_grad()
def filled(network: nn.Module) -> nn.Module:
    """The network in eval mode, every tensor of its state set from the sum of the characters of its key."""
    for key, tensor in network.state_dict().items():
        drawn = 0.1 * np.random.RandomState(sum(map(ord, key))).randn(tensor.numel())
        shift = 1 if tensor.dim() == 1 and key.endswith(".weight") else 0
        tensor.copy_(torch.from_numpy(drawn.reshape(tensor.shape) + shift))
    return network.eval()


def motion(frames: int) -> tuple[Tensor, Tensor]:
    """(2, 174, 1, frames) and its timesteps."""
    return torch.from_numpy(np.random.RandomState(0).randn(2, 174, 1, frames)).float(), torch.tensor([3, 700])


def assert_vector(out: Tensor, total: float, mean: float, first: list[float], second: list[float]) -> None:
    """The numbers of an output (2, 174, 1, frames) that the table has, to 2e-5."""
    found = torch.cat([out[0, 0, 0, :4], out[1, 100, 0, 4:8]])
    expected = torch.tensor([*first, *second])
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * mean)
    torch.testing.assert_close(out.abs().mean().item(), mean, rtol=2e-5, atol=0)
    torch.testing.assert_close(out.double().sum().item(), total, rtol=0, atol=2e-5 * mean * out.numel() ** 0.5)


def naive_qna(
    x: Tensor,
    query: Tensor,
    key_weight: Tensor,
    key_bias: Tensor,
    rpe: Tensor,
    values: Tensor,
    positions: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int | None = None,
    normalize: bool = True,
) -> Tensor:
    """The published formula, exponentials without a shift, summed by depthwise convolutions and divided.

    x (B, in, frames), query (hidden) or (B, hidden), key_weight (in, hidden), rpe (heads, 1, 1, k), values
    (B, hidden, frames), to (B, hidden, frames).
    """
    heads, kernel_size = rpe.shape[0], rpe.shape[-1]
    padding = (kernel_size - 1) // 2 if padding is None else padding
    q = query.expand(len(x), -1).unflatten(1, (heads, -1))
    if normalize:
        q = q / (q.norm(dim=-1, keepdim=True) + 1e-6)
    q = q / q.shape[-1] ** 0.5
    keys = torch.einsum("bct,cd->bdt", x if positions is None else x + positions, key_weight) + key_bias[:, None]
    scores = (q[..., None] * keys.unflatten(1, (heads, -1))).sum(2)
    weights = scores.exp().repeat_interleave(values.shape[1] // heads, 1)
    kernel = rpe.exp().reshape(heads, 1, kernel_size).repeat_interleave(values.shape[1] // heads, 0)

    def summed(y: Tensor) -> Tensor:
        return torch.conv1d(y, kernel, stride=stride, padding=padding, groups=y.shape[1])

    return summed(weights * values) / summed(weights)
