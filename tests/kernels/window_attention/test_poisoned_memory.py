"""Nothing is read that was not written, and nothing is written that was not asked for: outputs and scratch start as
NaN, inputs lie inside wider buffers of NaN, and the margins are looked at afterwards, bit by bit."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor
from torch.utils import deterministic

from sinmdm.kernels import window_attention

OP = "window_attention"
MARGIN = 3  # elements or rows on every side of an input


@dataclass(frozen=True)
class Shape:
    """One call: its sizes and options."""

    frames: int
    window: tuple[int, int]
    dim: int = 8
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    boundary: str = "clip"
    lengths: tuple[int, ...] | None = None
    bias: bool = True
    dropout_p: float = 0.0

    @property
    def columns(self) -> int:
        size = sum(self.window) + 1
        return 2 * size - 1 if self.boundary == "shift" else size

    @property
    def terms(self) -> int:
        return self.batch * self.frames + self.columns + self.dim


GRID = {
    "one frame": Shape(1, (2, 2)),
    "one key a query": Shape(20, (0, 0)),
    "less than a tile": Shape(13, (2, 3), dim=5),
    "channels of no whole vector": Shape(40, (4, 4), dim=19),
    "channels of one vector and a rest": Shape(40, (4, 4), dim=17),
    "head_dim 1": Shape(40, (4, 4), dim=1),
    "the largest head_dim": Shape(20, (4, 4), dim=256),
    "several tiles": Shape(150, (16, 16), dim=16),
    "a tile and one more query": Shape(65, (16, 16), dim=16),
    "causal": Shape(70, (9, 0)),
    "anticausal": Shape(70, (0, 9)),
    "a window of many tiles": Shape(300, (120, 130)),
    "a window wider than the sequence": Shape(30, (64, 100)),
    "grouped heads": Shape(70, (5, 5), heads=6, kv_heads=2),
    "no bias": Shape(70, (5, 5), bias=False),
    "lengths, one of them 0": Shape(70, (5, 5), batch=3, lengths=(70, 0, 33)),
    "circular": Shape(70, (5, 7), boundary="circular"),
    "circular, frames met again, lengths": Shape(70, (40, 50), boundary="circular", lengths=(70, 9)),
    "shift": Shape(70, (5, 7), boundary="shift"),
    "shift, lengths": Shape(70, (20, 7), boundary="shift", lengths=(70, 28)),
    "dropout": Shape(70, (5, 5), dropout_p=0.3),
}


@pytest.fixture
def poison() -> Iterator[None]:
    """Every tensor that torch leaves uninitialised is full of NaN, whoever asks for it, C++ included."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = filled


def draw(shape: Shape, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, rel_bias, grad_out, grad_lse, the same on every call."""
    generator = torch.Generator().manual_seed(3)
    query = (shape.batch, shape.frames, shape.heads, shape.dim)
    key = (shape.batch, shape.frames, shape.kv_heads, shape.dim)
    sizes = [query, key, key, (shape.heads, shape.columns), query]
    drawn = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    return [*drawn, torch.randn(query[:3], generator=generator, dtype=torch.promote_types(dtype, torch.float32))]


def attend(shape: Shape, tensors: list[Tensor], backend: str) -> dict[str, Tensor]:
    q, k, v, bias, grad_out, grad_lse = tensors
    leaves = [x.detach().requires_grad_() for x in ((q, k, v, bias) if shape.bias else (q, k, v))]
    out, lse = window_attention(
        *leaves,
        window=shape.window,
        boundary=shape.boundary,
        lengths=None if shape.lengths is None else torch.tensor(shape.lengths),
        dropout_p=shape.dropout_p,
        seed=1,
        return_lse=True,
        backend=backend,
    )
    names = ("dq", "dk", "dv", "drel_bias")[: len(leaves)]
    gradients = torch.autograd.grad((out, lse), leaves, (grad_out, grad_lse))
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(names, gradients, strict=True))}


def inside(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` in the middle of a buffer of NaN that is wider in every dimension, and that buffer."""
    buffer = torch.full([size + 2 * MARGIN for size in x.shape], torch.nan, dtype=x.dtype)
    middle = buffer[tuple(slice(MARGIN, MARGIN + size) for size in x.shape)]
    middle.copy_(x)
    return middle, buffer


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("regime", GRID)
def test_uninitialised_memory_is_never_read(regime: str, dtype: torch.dtype, backend: str, poison: None) -> None:
    shape = GRID[regime]
    tensors = draw(shape, dtype)
    poisoned = attend(shape, tensors, backend)
    torch.use_deterministic_algorithms(False)  # the fixture puts back what was before
    expected = attend(shape, tensors, backend)
    padding = expected["lse"] == -torch.inf
    for name, value in expected.items():
        finite = value.isfinite() | padding if name == "lse" else value.isfinite()
        assert finite.all(), f"{name} is not finite"
        assert torch.equal(poisoned[name], value), f"{name} depends on what its memory held"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("regime", GRID)
def test_what_lies_around_the_inputs_is_neither_read_nor_written(regime: str, dtype: torch.dtype, backend: str) -> None:
    shape = GRID[regime]
    tensors = draw(shape, dtype)
    expected = attend(shape, [x.clone(memory_format=torch.contiguous_format) for x in tensors], backend)
    middles, buffers = zip(*(inside(x) for x in tensors), strict=True)
    before = [bits(buffer.clone()) for buffer in buffers]
    actual = attend(shape, list(middles), backend)
    for name, buffer, held in zip(("q", "k", "v", "rel_bias", "grad_out", "grad_lse"), buffers, before, strict=True):
        assert torch.equal(bits(buffer), held), f"{name} or its margins were written"
    for name, value in expected.items():
        assert not actual[name].isnan().any(), f"{name} has a NaN of the margins"
        assert_same_formula(name, actual[name], value, shape.terms)  # a library may add up by the strides


def test_the_poison_reaches_what_is_left_unwritten(poison: None) -> None:
    assert torch.empty(5, dtype=torch.bfloat16).isnan().all()
    assert torch.randn(4).new_empty(3).isnan().all()
    assert torch.empty_like(torch.randn(4).half()).isnan().all()
