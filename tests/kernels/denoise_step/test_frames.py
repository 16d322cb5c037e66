"""A piece of a longer sequence gets that sequence's noise: denoise_step's `frame`."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sinmdm.kernels import Schedule, denoise_step, philox_normal

OP = "denoise_step"
SCHEDULE = Schedule.cosine(50)
CHANNELS = [1, 2, 3, 4, 5, 174]  # every place in a counter where a frame may begin, and a motion's
FRAMES = 41


def operands(channels: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    x, output, unconditional = torch.randn(3, 3, FRAMES, channels)
    options = {"prediction": "v", "clip": 0.9, "seed": 2**63 + 7, "sample": 11, "guidance": 2.0, "return_x0": True}
    return x, output, unconditional, options


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("t", [20, torch.tensor([20, 49, 3])], ids=["int", "tensor"])
def test_a_piece_is_a_slice_of_the_whole(t: int | Tensor, channels: int, backend: str) -> None:
    x, output, other, options = operands(channels)
    options["backend"] = backend
    whole = denoise_step(x, output, t, SCHEDULE, unconditional=other, **options)
    for a, b in ((0, 1), (1, 9), (7, 40), (13, 17), (40, 41)):
        here = slice(a, b)
        for frame in (a, torch.full((3,), a, dtype=torch.int32), torch.full((3,), a)):
            piece = denoise_step(
                x[:, here], output[:, here], t, SCHEDULE, unconditional=other[:, here], frame=frame, **options
            )
            assert all(torch.equal(p, w[:, here]) for p, w in zip(piece, whole, strict=True)), (a, b)


@pytest.mark.parametrize("channels", CHANNELS)
def test_every_row_may_begin_at_its_own_frame(channels: int, backend: str) -> None:
    x, output, other, options = operands(channels)
    options["backend"] = backend
    whole = denoise_step(x, output, 20, SCHEDULE, unconditional=other, **options)
    first = [0, 5, 22]

    def pieces(y: Tensor) -> Tensor:
        return torch.stack([row[a : a + 18] for row, a in zip(y, first, strict=True)])

    actual = denoise_step(
        pieces(x), pieces(output), 20, SCHEDULE, unconditional=pieces(other), frame=torch.tensor(first), **options
    )
    assert all(torch.equal(p, pieces(w)) for p, w in zip(actual, whole, strict=True))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("far", ["the counter's second word begins", "the last frames there are"])
def test_native_equals_reference_far_away(far: str, channels: int) -> None:
    # Element 2^34 is the first of counter 2^32.
    frame = 2**40 - FRAMES if far.startswith("the last") else 2**34 // channels - FRAMES // 2
    x, output = torch.randn(2, 3, FRAMES, channels)
    native, reference = (
        denoise_step(x, output, 20, SCHEDULE, seed=3, frame=frame, backend=name) for name in ("cpu", "reference")
    )
    # The normals' difference, and up to five roundings of terms of about 5 times factors below 1.
    assert float((native - reference).abs().max()) <= 2e-6 + 5 * torch.finfo(torch.float32).eps * 5


@pytest.mark.parametrize("frame", [0, 9, 2**34 // 5 - 3, 2**40 - 1])
def test_drawn_noise_is_philox_normals_of_the_frame(frame: int, backend: str) -> None:
    x, output = torch.randn(2, 3, 7, 5)
    rows = torch.tensor([frame, 0, frame // 2])
    noise = philox_normal((7, 5), seed=3, step=20, sample=torch.arange(3), frame=rows, backend=backend)
    drawn = denoise_step(x, output, 20, SCHEDULE, seed=3, frame=rows, backend=backend)
    assert torch.equal(drawn, denoise_step(x, output, 20, SCHEDULE, noise=noise, backend=backend))


def test_a_step_without_noise_does_not_mind_the_frame(backend: str) -> None:
    x, output = torch.randn(2, 3, 7, 5)
    for options in ({"eta": 0.0}, {"t_prev": -1, "seed": 1}, {"noise": torch.randn(3, 7, 5)}):
        expected = denoise_step(x, output, 20, SCHEDULE, **options, backend=backend)
        assert torch.equal(denoise_step(x, output, 20, SCHEDULE, frame=77, **options, backend=backend), expected)


@pytest.mark.parametrize("layout", ["every second", "expanded"])
def test_frames_of_any_stride(layout: str, backend: str) -> None:
    frames = torch.tensor([5, 777, 9, 777, 30, 777])[::2] if layout == "every second" else torch.tensor([5]).expand(3)
    x, output = torch.randn(2, 3, 7, 5)
    actual = denoise_step(x, output, 20, SCHEDULE, seed=1, frame=frames, backend=backend)
    expected = denoise_step(x, output, 20, SCHEDULE, seed=1, frame=frames.contiguous(), backend=backend)
    assert torch.equal(actual, expected)
