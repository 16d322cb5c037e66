"""The references are plain, differentiable PyTorch: autograd through them gives what their written backward gives."""

from collections.abc import Callable

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor

from sinmdm.kernels import qna_attention, window_attention
from sinmdm.kernels.qna_attention import reference as qna_reference
from sinmdm.kernels.window_attention import reference as window_reference


def _leaves(*sizes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


def _same_gradients(op: Callable[..., Tensor], definition: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    out, expected = op(*inputs), definition(*inputs)
    assert torch.equal(out, expected)
    weight = torch.randn_like(out)
    pairs = zip(*(torch.autograd.grad(x, inputs, weight) for x in (out, expected)), strict=True)
    for index, (written, derived) in enumerate(pairs):
        assert_same_formula(f"gradient {index}", written, derived, terms=200)


@pytest.mark.parametrize("boundary", ["clip", "circular", "shift"])
@pytest.mark.parametrize("lengths", [None, [70, 20]])
def test_window_attention(boundary: str, lengths: list[int] | None) -> None:
    """Two tiles, the second of five queries; grouped heads; dropout."""
    inputs = _leaves((2, 70, 4, 3), (2, 70, 2, 3), (2, 70, 2, 3), (4, 15 if boundary == "shift" else 8))
    given = None if lengths is None else torch.tensor(lengths)

    def op(*tensors: Tensor) -> Tensor:
        return window_attention(
            *tensors,
            window=(4, 3),
            scale=0.5,
            boundary=boundary,
            lengths=given,
            dropout_p=0.25,
            seed=3,
            backend="reference",
        )

    def definition(*tensors: Tensor) -> Tensor:
        return window_reference.window_attention(*tensors, given, 4, 3, 0.5, boundary, 0.25, 3)[0]

    _same_gradients(op, definition, inputs)


@pytest.mark.parametrize("boundary", ["clip", "circular"])
@pytest.mark.parametrize("stride", [1, 3])
def test_qna_attention(boundary: str, stride: int) -> None:
    inputs = _leaves((2, 70, 2), (2, 70, 2, 3), (2, 8))
    _same_gradients(
        lambda *tensors: qna_attention(*tensors, window=(4, 3), stride=stride, boundary=boundary),
        lambda *tensors: qna_reference.qna_attention(*tensors, None, 4, 3, stride, boundary),
        inputs,
    )
