"""Every op on more than 2^31 elements in one row of the batch, so that no offset fits 32 bits.

What lies at the ends is compared with a call on the ends alone. Bodies are functions of the number of frames and the
device: a few frames are tried on the CPU.
"""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from gpu_calls import KERNELS, SEED, assert_alike, schedule, takes
from torch import Tensor

from sinmdm.kernels import denoise_step, norm_affine, philox_normal, q_sample, qna_attention, window_attention

END = 96  # frames that are compared at each end
BEYOND = 2**31 + 2**16  # elements
NORMAL_BOUND = 2e-6


def frames_of(elements_a_frame: int) -> int:
    return -(-BEYOND // elements_a_frame)


def at_the_end(like: Tensor) -> Tensor:
    """A gradient of the result that is zero but at the last frames."""
    gradient = torch.zeros_like(like)
    gradient[:, -END:].normal_()
    return gradient


def compare(op: Callable[..., Tensor], along: list[Tensor], shared: list[Tensor], context: int) -> None:
    """An op whose results at a frame depend on the frames within `context` of it.

    along: inputs (1, frames, ...), which may be large. shared: inputs of all frames, whose gradients are sums; under a
    gradient of the result that is zero but at the end they are those of the end alone.
    """
    leaves = [x.requires_grad_() for x in (*along, *shared)]
    out = op(*leaves)
    with torch.no_grad():
        grad_out = at_the_end(out)
    found = torch.autograd.grad(out, leaves, grad_out)
    kept = END + 2 * context  # a gradient looks twice as far
    for place in (slice(0, kept), slice(-kept, None)):
        few = [x.detach()[:, place].clone().requires_grad_() for x in along]
        small = op(*few, *(x.detach().requires_grad_() for x in shared))
        inner = slice(0, END) if place.start == 0 else slice(-END, None)
        assert_alike("out", out[:, inner].detach(), small[:, inner].detach(), out.dtype)
    of_shared = [x.detach().requires_grad_() for x in shared]
    expected = torch.autograd.grad(op(*few, *of_shared), [*few, *of_shared], grad_out[:, place])
    for i in range(len(along)):
        assert_alike(f"gradient {i}", found[i][:, -END:], expected[i][:, -END:], out.dtype)
        assert not found[i][:, : -END - context].any(), f"gradient {i} where there is none"
    for i in range(len(along), len(leaves)):
        assert_alike(f"gradient {i}", found[i], expected[i], out.dtype)


def large_window(frames: int, backend: str, device: str) -> None:
    q, k, v = (torch.randn(1, frames, 8, 64, device=device, dtype=torch.bfloat16) for _ in range(3))
    bias = torch.randn(8, 33, device=device)
    compare(lambda *x: window_attention(*x, window=16, backend=backend), [q, k, v], [bias], 16)


def large_qna(frames: int, backend: str, device: str) -> None:
    scores = torch.randn(1, frames, 4, device=device, dtype=torch.bfloat16)
    values = torch.randn(1, frames, 4, 32, device=device, dtype=torch.bfloat16)
    bias = torch.randn(4, 4, device=device)
    compare(lambda *x: qna_attention(*x, window=(1, 2), backend=backend), [scores, values], [bias], 2)


def large_norm(frames: int, backend: str, device: str) -> None:
    x = torch.randn(1, frames, 128, device=device, dtype=torch.bfloat16)
    gain, offset = torch.randn(2, 1, 128, device=device)
    compare(lambda *x: norm_affine(*x, activation="silu", backend=backend), [x], [gain, offset], 0)


def large_q_sample(frames: int, backend: str, device: str) -> None:
    state = torch.randn(1, frames, 174, device=device)
    table = schedule(device)
    for first in (0, frames - END):
        piece = state[:, first : first + END].clone()
        expected = q_sample(piece, 20, table, seed=SEED, frame=first, backend=backend)
        if first == 0:
            begin = expected
    q_sample(state, 20, table, seed=SEED, out=state, backend=backend)
    same_noise(state[:, :END], begin)
    same_noise(state[:, -END:], expected)


def large_denoise_step(frames: int, backend: str, device: str) -> None:
    state = torch.randn(1, frames, 174, device=device)
    output = torch.randn(1, frames, 174, device=device, dtype=torch.bfloat16)
    options = {"prediction": "v", "clip": 1.0, "seed": SEED, "backend": backend}
    table, pieces = schedule(device), []
    for first in (0, frames - END):
        place = slice(first, first + END)
        few = state[:, place].clone(), output[:, place].clone()
        pieces.append(denoise_step(*few, 20, table, frame=first, **options))
    denoise_step(state, output, 20, table, out=state, **options)
    same_noise(state[:, :END], pieces[0])
    same_noise(state[:, -END:], pieces[1])


def large_philox_normal(frames: int, backend: str, device: str) -> None:
    normals = philox_normal((frames, 174), seed=SEED, device=device, backend=backend)
    for first in (0, frames - END):
        few = philox_normal((END, 174), seed=SEED, frame=first, backend="reference")
        same_noise(normals[first : first + END], few)


def same_noise(actual: Tensor, expected: Tensor) -> None:
    # The same formula on the same elements: the normals' own bound, and a few roundings of terms of at most 6.
    bound = NORMAL_BOUND + 17 * 6 * torch.finfo(torch.float32).eps
    assert float((actual.cpu() - expected.cpu()).abs().max()) <= bound


# Op -> its body, elements a frame, and gigabytes: tensors of 2^31 elements times their bytes, and a tenth for what is
# small beside them.
LARGE = {
    "window_attention": (large_window, 8 * 64, 8 * 4.3),  # q, k, v, out, its gradient and those of q, k, v
    "qna_attention": (large_qna, 4 * 32, 4 * 4.3),
    "norm_affine": (large_norm, 128, 4 * 4.3),
    "q_sample": (large_q_sample, 174, 8.6),
    "denoise_step": (large_denoise_step, 174, 8.6 + 4.3),
    "philox_normal": (large_philox_normal, 174, 8.6),
}
EVERY_OP = pytest.mark.parametrize("op", LARGE)


@pytest.fixture
def emptied() -> Iterator[None]:
    """What earlier tests left to the allocator is free, and so is afterwards what this one took."""
    for finished in (False, True):
        gc.collect()
        torch.cuda.empty_cache()
        if not finished:
            yield


@pytest.mark.gpu
@EVERY_OP
@pytest.mark.parametrize("backend", KERNELS)
def test_more_than_2_31_elements(op: str, backend: str, emptied: None) -> None:
    body, elements_a_frame, gigabytes = LARGE[op]
    takes(op, backend, torch.bfloat16 if op in ("window_attention", "qna_attention", "norm_affine") else torch.float32)
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < 1.1 * gigabytes:
        pytest.skip(f"needs {1.1 * gigabytes:.0f} GB of the GPU's memory, {free:.0f} are free")
    body(frames_of(elements_a_frame), backend, "cuda")


@EVERY_OP
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_the_comparisons_on_the_cpu(op: str, backend: str) -> None:
    takes(op, backend, device="cpu")
    LARGE[op][0](END * 4 + 5, backend, "cpu")


def test_a_wrong_end_is_found() -> None:
    def wrapped(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        out = window_attention(q, k, v, bias, window=16)
        return out if q.shape[1] < 300 else torch.cat([out[:, -1:], out[:, 1:]], 1)

    q = torch.randn(3, 1, 400, 2, 8)
    with pytest.raises(AssertionError, match="out: relative error"):
        compare(wrapped, [*q], [torch.randn(2, 33)], 16)


def test_the_large_calls_are_large() -> None:
    for body, elements_a_frame, gigabytes in LARGE.values():
        assert frames_of(elements_a_frame) * elements_a_frame > 2**31, body
        assert 1.1 * gigabytes < 75  # what a card of 80 GB has free
