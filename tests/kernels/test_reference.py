"""The references are plain, differentiable PyTorch: autograd through them gives what their written backward gives."""

from collections.abc import Callable

import pytest
import torch
from tolerance import assert_same_formula
from torch import Tensor

from sinmdm.kernels import affine_step, q_sample, qna_attention, window_attention
from sinmdm.kernels.denoise_step import reference as denoise_reference
from sinmdm.kernels.q_sample import reference as q_sample_reference
from sinmdm.kernels.qna_attention import reference as qna_reference
from sinmdm.kernels.schedule import Schedule
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
        lambda *tensors: qna_attention(*tensors, window=(4, 3), stride=stride, boundary=boundary, backend="reference"),
        lambda *tensors: qna_reference.qna_attention(*tensors, None, 4, 3, stride, boundary),
        inputs,
    )


DRAW = (7, torch.tensor([3, 4]), torch.tensor([0, 1]), torch.tensor([0, 2**35]))  # seed, step, sample, frame


def test_q_sample() -> None:
    schedule = Schedule.cosine(50)
    t = torch.tensor([3, 40])
    rows = schedule.forward_coefficients(t)
    options = dict(zip(("seed", "step", "sample", "frame"), DRAW, strict=True))
    for return_noise in (False, True):  # the noise with which it came adds nothing to the gradient of x0
        _same_gradients(
            lambda x0, again=return_noise: _first(q_sample(x0, t, schedule, **options, return_noise=again)),
            lambda x0: q_sample_reference.q_sample(x0, rows, None, *DRAW)[0],
            _leaves((2, 9, 3)),
        )
    _same_gradients(
        lambda x0, noise: torch.cat(q_sample(x0, t, schedule, noise=noise, return_noise=True)),
        lambda x0, noise: torch.cat(q_sample_reference.q_sample(x0, rows, noise, *DRAW)),
        _leaves((2, 9, 3), (2, 9, 3)),
    )


def _first(results: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return results if isinstance(results, Tensor) else results[0]


@pytest.mark.parametrize("clips", [False, True])
@pytest.mark.parametrize("draw", [False, True])
def test_denoise_step(clips: bool, draw: bool) -> None:
    """Every operand, the new state and x0 together; the limit is reached by some elements and not by others."""
    inputs = _leaves(*[(2, 9, 3)] * (5 if draw else 6))
    coefficients, mask = torch.randn(2, 10, dtype=torch.float64), torch.rand(2, 9, 3, dtype=torch.float64)
    coefficients[:, 3] = 0.7

    def op(x: Tensor, model: Tensor, other: Tensor, known: Tensor, previous: Tensor, *noise: Tensor) -> Tensor:
        seed, step, sample, frame = DRAW
        source = {"seed": seed} if draw else {"noise": noise[0]}
        return torch.cat(
            affine_step(
                x, model, coefficients, unconditional=other, known=known, mask=mask, previous_x0=previous, clips=clips,
                step=step, sample=sample, frame=frame, return_x0=True, **source,
            )
        )  # fmt: skip

    def definition(x: Tensor, model: Tensor, other: Tensor, known: Tensor, previous: Tensor, *noise: Tensor) -> Tensor:
        given = noise[0] if noise else None
        return torch.cat(
            denoise_reference.denoise_step(
                x, model, coefficients, other, known, mask, previous, given, clips, draw, *DRAW
            )
        )

    _same_gradients(op, definition, inputs)
