"""Offsets beyond 2^31 elements, over virtual memory of which only the pages in use exist."""

import mmap
import sys

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor

from sinmdm.kernels import window_attention

OP = "window_attention"
BEYOND = 2**31 + 2**10  # elements; an offset in 32 bits wraps to a negative number
NORESERVE = 0x4000  # Linux's MAP_NORESERVE: pages that are never touched need no memory to stand behind them
SIZES = (2, 70, 2, 16)  # B, T, H, D; more than one tile of queries
NAMES = ("q", "k", "v", "grad_out")
# Which dimension strides across 2^31 elements: a stride beyond 32 bits, and strides that only add up to more.
STRIDES = {
    "batch": (BEYOND, 2 * 16, 16, 1),
    "frames": (70 * 2**25, 2**25, 16, 1),
    "heads": (70 * 16, 16, BEYOND, 1),
}


def untouched(sizes: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of these sizes and strides, none of whose pages exists yet."""
    if not sys.platform.startswith("linux") or sys.maxsize < 2**32:
        pytest.skip("needs Linux with 64 bits")
    elements = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    assert elements > 2**31
    try:
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except OSError as error:
        pytest.skip(f"no address space for {elements} elements: {error}")
    return torch.frombuffer(memory, dtype=dtype).as_strided(sizes, strides)


def attend(tensors: list[Tensor], grad_out: Tensor, **options) -> dict[str, Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = window_attention(*leaves, return_lse=True, **options)
    gradients = torch.autograd.grad(out, leaves, grad_out)
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(("dq", "dk", "dv", "db"), gradients, strict=True))}


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("along", STRIDES)
def test_inputs_of_more_than_2_31_elements(along: str, dtype: torch.dtype, boundary: str, backend: str) -> None:
    dense = [torch.randn(SIZES).to(dtype) for _ in NAMES]
    wide = [untouched(SIZES, STRIDES[along], dtype) for _ in NAMES]
    for x, y in zip(wide, dense, strict=True):
        x.copy_(y)
    bias = torch.randn(2, 11 if boundary == "shift" else 6)
    options = {"window": (3, 2), "boundary": boundary, "lengths": torch.tensor([70, 61]), "backend": backend}
    expected = attend([*dense[:3], bias], dense[3], **options)
    for name, actual in attend([*wide[:3], bias], wide[3], **options).items():
        assert_same_formula(name, actual, expected[name], terms=2 * 70 + 16)


def test_last_sequence_of_a_batch_beyond_2_31(backend: str) -> None:
    # Many sequences of which each is near the one before, so that no single stride is large: the last lies beyond 2^31.
    batch, frames = 5, 9
    strides = (2**29 + 2**6, 8, 8, 1)
    dense = [torch.randn(batch, frames, 1, 8) for _ in range(4)]
    wide = [untouched((batch, frames, 1, 8), strides, torch.float32) for _ in range(4)]
    for x, y in zip(wide, dense, strict=True):
        x.copy_(y)
    bias = torch.randn(1, 5)
    expected = attend([*dense[:3], bias], dense[3], window=2, backend=backend)
    for name, actual in attend([*wide[:3], bias], wide[3], window=2, backend=backend).items():
        assert_same_formula(name, actual, expected[name], terms=2 * frames + 8)
