"""Calls of the native bodies leave nothing behind: by the allocator's own account of bytes in use."""

import ctypes
from collections.abc import Callable

import pytest
import torch

from sinmdm.kernels import (
    Schedule,
    _dispatch,
    denoise_step,
    norm_affine,
    philox_normal,
    q_sample,
    qna_attention,
    window_attention,
    window_match,
)

CALLS = 2000
SCHEDULE = Schedule.cosine(50)


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def bytes_in_use() -> int:
    try:
        function = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("the C library has no mallinfo2 (glibc 2.33)")
    function.restype = MallInfo
    return function().uordblks


def attention(backward: bool = False, **options: object) -> Callable[[], object]:
    q = torch.randn(1, 16, 2, 8, requires_grad=backward)
    rel_bias = torch.randn(2, 9, requires_grad=backward)

    def call() -> object:
        out = window_attention(q, q, q, rel_bias, window=4, backend="cpu", **options)  # type: ignore[arg-type]
        return torch.autograd.grad(out.sum(), (q, rel_bias)) if backward else out

    return call


def learned_query(backward: bool = False, **options: object) -> Callable[[], object]:
    scores = torch.randn(1, 16, 2, requires_grad=backward)
    values, rel_bias = torch.randn(1, 16, 2, 8), torch.randn(2, 3)

    def call() -> object:
        out = qna_attention(scores, values, rel_bias, window=1, backend="cpu", **options)  # type: ignore[arg-type]
        return torch.autograd.grad(out.sum(), scores) if backward else out

    return call


def normed(backward: bool = False) -> Callable[[], object]:
    x, gain = torch.randn(1, 16, 8, requires_grad=backward), torch.ones(1, 8)

    def call() -> object:
        out = norm_affine(x, gain, gain, groups=2, activation="silu", backend="cpu")
        return torch.autograd.grad(out.sum(), x) if backward else out

    return call


def step(**options: object) -> Callable[[], object]:
    x, output = torch.randn(2, 1, 16, 8)
    return lambda: denoise_step(x, output, 20, SCHEDULE, seed=1, backend="cpu", **options)  # type: ignore[arg-type]


def everything() -> Callable[[], object]:
    x = torch.randn(1, 16, 8)
    blend = {"known": x, "mask": torch.ones(1), "unconditional": x, "guidance": 2.0, "clip": 1.0, "return_x0": True}
    return step(**blend)


def matched(**options: bool) -> Callable[[], object]:
    source, target = torch.randn(2, 16, 8), torch.randn(12, 8)
    return lambda: window_match(source, target, window=4, backend="cpu", **options)  # type: ignore[call-overload]


CASES = {
    "window_attention": lambda: attention(),
    "window_attention with lengths": lambda: attention(lengths=torch.tensor([9]), boundary="circular"),
    "window_attention, backward": lambda: attention(backward=True),
    "qna_attention": lambda: learned_query(),
    "qna_attention with lengths": lambda: learned_query(lengths=torch.tensor([9]), boundary="circular"),
    "qna_attention, backward": lambda: learned_query(backward=True),
    "norm_affine": lambda: normed(),
    "norm_affine, backward": lambda: normed(backward=True),
    "window_match": lambda: matched(),
    "window_match, rebuilding": lambda: matched(rebuild=True),
    "denoise_step": lambda: step(),
    "denoise_step with everything": everything,
    "q_sample": lambda: lambda: q_sample(torch.zeros(1, 16, 8), 3, SCHEDULE, seed=1, return_noise=True, backend="cpu"),
    "philox_normal": lambda: lambda: philox_normal((16, 8), seed=1, backend="cpu"),
}


@pytest.mark.parametrize("name", CASES)
def test_calls_leave_nothing_behind(name: str) -> None:
    lacks = _dispatch.machine_lacks("cpu")
    if lacks is not None:
        pytest.skip(f"no cpu backend: {lacks}")
    call = CASES[name]()
    for _ in range(CALLS // 10):
        call()
    before = bytes_in_use()
    for _ in range(CALLS):
        call()
    # The smallest block of malloc's is 32 bytes: one a call would be four times what is allowed for its caches.
    assert bytes_in_use() - before <= 8 * CALLS
