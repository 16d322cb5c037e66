"""The usual sizes of heads in every dtype that is rounded, each a kernel of its own: as near to float64 as plain torch.

test_parity.py has smaller and larger ones.
"""

import math

import pytest
import torch
from tolerance import assert_within_budget
from torch import Tensor

from sinmdm.kernels import window_attention

OP = "window_attention"
BATCH, FRAMES, HEADS, LEFT, RIGHT = 1, 45, 4, 10, 9  # enough columns for the error of their gradient to be typical


def plain(q: Tensor, k: Tensor, v: Tensor, rel_bias: Tensor) -> Tensor:
    """All scores, a mask, softmax, in the dtype of the inputs."""
    offsets = torch.arange(FRAMES) - torch.arange(FRAMES)[:, None]  # of key against query
    seen = (offsets >= -LEFT) & (offsets <= RIGHT)
    k, v = (x.repeat_interleave(HEADS // x.shape[2], 2).transpose(1, 2) for x in (k, v))
    scores = (q.transpose(1, 2) @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    scores = scores + rel_bias[:, (offsets + LEFT).clamp(0, LEFT + RIGHT)]
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)


def results(inputs: list[Tensor], grad: Tensor, backend: str | None) -> dict[str, Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = plain(*leaves) if backend is None else window_attention(*leaves, window=(LEFT, RIGHT), backend=backend)
    gradients = torch.autograd.grad(out, leaves, grad)
    return {"out": out.detach(), **dict(zip(("dq", "dk", "dv", "drel_bias"), gradients, strict=True))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("dim", [60, 64, 100, 128])
def test_is_as_near_to_float64_as_plain_torch(dim: int, kv_heads: int, dtype: torch.dtype, backend: str) -> None:
    q, grad = (torch.randn(BATCH, FRAMES, HEADS, dim).to(dtype) for _ in range(2))
    k, v = (torch.randn(BATCH, FRAMES, kv_heads, dim).to(dtype) for _ in range(2))
    inputs = [q, k, v, torch.randn(HEADS, LEFT + RIGHT + 1).to(dtype)]
    exact = results([x.double() for x in inputs], grad.double(), None)
    eager = results(inputs, grad, None)
    for name, actual in results(inputs, grad, backend).items():
        assert_within_budget(name, actual, exact[name], eager[name])
