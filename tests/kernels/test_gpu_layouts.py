"""Every op on tensors that do not lie as a vector would like them: the results of contiguous ones."""

from collections.abc import Callable

import pytest
import torch
from gpu_calls import CALLS, KERNELS, Call, assert_alike, takes
from torch import Tensor


def one_element_on(x: Tensor) -> Tensor:
    """Contiguous, and no row begins at 16 bytes."""
    return x.new_empty(x.numel() + 1)[1:].view(x.shape)


def rows_with_gaps(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + 3)[..., 1:-2]


def every_other_element(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], 2 * x.shape[-1])[..., ::2]


def heads_first(x: Tensor) -> Tensor:
    """(B, H, T, D) seen as (B, T, H, D), channels before frames in a state, columns before heads in a bias."""
    dims = (0, 1) if x.dim() == 2 else (1, 2)
    return x.new_empty(x.transpose(*dims).shape).transpose(*dims)


LAYOUTS = [one_element_on, rows_with_gaps, every_other_element, heads_first]


def takes_any_layout(call: Call, layout: Callable[[Tensor], Tensor], backend: str, device: str) -> None:
    dtype = torch.bfloat16 if call.gradients else torch.float32
    inputs = call.on(device, dtype)
    laid_out = {name: layout(x).copy_(x) if x.is_floating_point() else x for name, x in inputs.items()}
    assert any(x.stride() != inputs[name].stride() or x.data_ptr() % 16 for name, x in laid_out.items())
    expected = call.results(inputs, backend)
    for name, x in call.results(laid_out, backend).items():
        assert_alike(name, x, expected[name], dtype)


def takes_the_gradient_of_a_sum(call: Call, backend: str, device: str) -> None:
    """Which is one number, expanded: all of its strides are 0."""
    inputs = call.on(device, torch.float32)
    ones = torch.ones_like(inputs["grad_out"])
    expected = call.results(inputs | {"grad_out": ones}, backend)
    expanded = ones.flatten()[0].expand(ones.shape)
    assert set(expanded.stride()) == {0}
    for name, x in call.results(inputs | {"grad_out": expanded}, backend).items():
        assert_alike(name, x, expected[name], torch.float32)


OF_TENSORS = pytest.mark.parametrize("call", [call for call in CALLS if call.op != "philox_normal"], ids=str)
WITH_GRADIENTS = pytest.mark.parametrize("call", [call for call in CALLS if call.gradients], ids=str)
EVERY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
ON_A_GPU = pytest.mark.parametrize("backend", KERNELS)


@pytest.mark.gpu
@OF_TENSORS
@EVERY_LAYOUT
@ON_A_GPU
def test_layouts(call: Call, layout: Callable[[Tensor], Tensor], backend: str) -> None:
    takes(call.op, backend, torch.bfloat16 if call.gradients else torch.float32)
    takes_any_layout(call, layout, backend, "cuda")


@pytest.mark.gpu
@WITH_GRADIENTS
@ON_A_GPU
def test_the_gradient_of_a_sum(call: Call, backend: str) -> None:
    takes(call.op, backend)
    takes_the_gradient_of_a_sum(call, backend, "cuda")


@OF_TENSORS
@EVERY_LAYOUT
def test_layouts_on_the_cpu(call: Call, layout: Callable[[Tensor], Tensor]) -> None:
    takes(call.op, "cpu", device="cpu")
    takes_any_layout(call, layout, "cpu", "cpu")


@WITH_GRADIENTS
def test_the_gradient_of_a_sum_on_the_cpu(call: Call) -> None:
    takes(call.op, "cpu", device="cpu")
    takes_the_gradient_of_a_sum(call, "cpu", "cpu")
