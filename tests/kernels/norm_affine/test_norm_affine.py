"""norm_affine against torch's own norms, and its promises beside its values."""

from dataclasses import dataclass

import pytest
import torch
from tolerance import assert_same_formula, assert_within_budget
from torch import Tensor
from torch.nn import functional as F

from sinmdm.kernels import norm_affine

OP = "norm_affine"


@dataclass(frozen=True)
class Case:
    """One call: its sizes and options."""

    frames: int
    channels: int
    groups: int | None = None
    activation: str | None = None
    batch: int = 2
    shared: bool = False  # one gain and offset for all motions

    @property
    def options(self) -> dict:
        return {"groups": self.groups, "eps": 1e-5, "activation": self.activation}

    @property
    def terms(self) -> int:
        return self.batch * self.frames + self.frames * self.channels

    def inputs(self, dtype: torch.dtype = torch.float64, mean: float = 0.5) -> list[Tensor]:
        """x, gain, offset."""
        x = torch.randn(self.batch, self.frames, self.channels, dtype=torch.float64) + mean
        affine = torch.randn(2, 1 if self.shared else self.batch, self.channels, dtype=torch.float64)
        return [y.to(dtype).requires_grad_() for y in (x, *affine)]


def by_torch(case: Case, x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """The composition of torch's own functions."""
    if case.groups is None:
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-5)
    else:
        normed = F.group_norm(x.mT, case.groups, eps=1e-5).mT
    z = normed * gain[:, None] + offset[:, None]
    return F.silu(z) if case.activation else z


def results(out: Tensor, inputs: list[Tensor], grad_out: Tensor) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(out, inputs, grad_out.to(out.dtype))
    return {"out": out.detach(), **dict(zip(("dx", "dgain", "doffset"), gradients, strict=True))}


def run(case: Case, inputs: list[Tensor], grad_out: Tensor, backend: str) -> dict[str, Tensor]:
    return results(norm_affine(*inputs, **case.options, backend=backend), inputs, grad_out)


CASES = [
    Case(9, 128),  # the networks' layer norm
    Case(70, 128, batch=3),  # more than a tile of frames
    Case(9, 256, 32, "silu"),  # the published U-Net's group norm
    Case(130, 256, 32, "silu", batch=20),  # motions enough for a task each, several runs of frames
    Case(9, 5),  # no whole register
    Case(9, 20, 4, "silu"),
    Case(9, 33, 3),
    Case(9, 96, 2),  # groups wider than the least run
    Case(9, 1),  # one channel: its own mean
    Case(1, 12, 2, "silu"),  # one frame
    Case(9, 8, 8),  # a group a channel
    Case(9, 8, 1, "silu"),  # one group
    Case(9, 64, 32, shared=True),
    Case(9, 12, shared=True),
    Case(200, 384, 32, "silu", batch=1),  # one motion, cut by channels
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torchs_composition_in_float64(case: Case, backend: str) -> None:
    inputs = case.inputs()
    grad_out = torch.randn(case.batch, case.frames, case.channels, dtype=torch.float64)
    expected = results(by_torch(case, *inputs), inputs, grad_out)
    for name, actual in run(case, inputs, grad_out, backend).items():
        assert_same_formula(name, actual, expected[name], case.terms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [CASES[1], CASES[3], CASES[5], CASES[14]], ids=str)
def test_is_as_near_to_float64_as_the_plain_composition(case: Case, dtype: torch.dtype, backend: str) -> None:
    inputs = case.inputs(dtype)
    grad_out = torch.randn(case.batch, case.frames, case.channels).to(dtype)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(by_torch(case, *exact_inputs), exact_inputs, grad_out)
    eager = results(by_torch(case, *inputs), inputs, grad_out)
    for name, actual in run(case, inputs, grad_out, backend).items():
        assert actual.dtype == dtype
        assert_within_budget(name, actual, exact[name], eager[name])


def test_half_inputs_take_gain_and_offset_in_float32(backend: str) -> None:
    case = Case(9, 16, 4, "silu")
    x, gain, offset = case.inputs(torch.bfloat16)
    wide = [y.detach().float().requires_grad_() for y in (gain, offset)]
    grad_out = torch.randn(2, 9, 16).bfloat16()
    expected = run(case, [x, gain, offset], grad_out, backend)
    actual = run(case, [x, *wide], grad_out, backend)
    assert torch.equal(actual["out"], expected["out"])
    assert actual["dgain"].dtype == torch.float32
    assert torch.equal(actual["dgain"].bfloat16(), expected["dgain"])


@pytest.mark.parametrize("groups", [None, 4])
def test_a_large_mean_does_not_cancel(groups: int | None, backend: str) -> None:
    case = Case(64, 32, groups)
    inputs = case.inputs(torch.float32, mean=1000.0)
    grad_out = torch.randn(2, 64, 32)
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = results(by_torch(case, *exact_inputs), exact_inputs, grad_out)
    # An input near 1000 has an error of its own of eps / 2, of which the normed one has a thousand times as much.
    bound = 8 * 1000 * torch.finfo(torch.float32).eps
    for name, actual in run(case, inputs, grad_out, backend).items():
        assert float((actual - exact[name]).norm() / exact[name].norm()) <= bound, name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_frame_keeps_what_is_wrong_with_it(value: float, backend: str) -> None:
    case = Case(70, 20)
    inputs, grad_out = case.inputs(), torch.randn(2, 70, 20, dtype=torch.float64)
    before = run(case, inputs, grad_out, backend)
    ill = [inputs[0].detach().clone(), *inputs[1:]]
    ill[0][1, 66, 3] = value
    after = run(case, [ill[0].requires_grad_(), *inputs[1:]], grad_out, backend)
    for name in ("out", "dx"):
        sound = torch.ones(2, 70, dtype=torch.bool)
        sound[1, 66] = False
        assert torch.equal(after[name][sound], before[name][sound])
        assert after[name][1, 66].isnan().all()


def test_silu_of_large_numbers(backend: str) -> None:
    x = torch.tensor([[[1.0, -1.0]]])
    offset = torch.tensor([[100.0, -100.0]])
    out = norm_affine(x, torch.ones(1, 2), offset, activation="silu", backend=backend)
    normed = F.layer_norm(x, (2,), eps=1e-5)
    expected = F.silu(normed + offset)
    assert torch.allclose(out, expected, rtol=4 * torch.finfo(torch.float32).eps, atol=1e-37)


def test_any_strides_in_memory(backend: str) -> None:
    case = Case(9, 8, 4, "silu")
    inputs, grad_out = case.inputs(), torch.randn(2, 9, 8, dtype=torch.float64)
    expected = run(case, inputs, grad_out, backend)
    both = torch.stack([inputs[1], inputs[2]], -1).detach()
    tensors = [inputs[0].detach().mT.contiguous().mT, both[..., 0], both[..., 1]]
    assert not any(x.is_contiguous() for x in tensors)
    actual = run(case, [x.requires_grad_() for x in tensors], grad_out.mT.contiguous().mT, backend)
    for name, value in expected.items():
        assert_same_formula(name, actual[name], value, case.terms)


@pytest.mark.parametrize("shape", [(0, 9, 8), (2, 0, 8)])
@pytest.mark.parametrize("groups", [None, 4])
def test_nothing(shape: tuple[int, ...], groups: int | None, backend: str) -> None:
    x = torch.zeros(shape, requires_grad=True)
    gain = torch.ones(shape[0], 8, requires_grad=True)
    out = norm_affine(x, gain, gain, groups=groups, backend=backend)
    assert out.shape == shape
    dx, dgain = torch.autograd.grad(out.sum(), (x, gain))
    assert dx.shape == shape
    assert not dgain.any()


@pytest.mark.parametrize("groups", [None, 8])
def test_twenty_runs_and_any_threads_give_the_same_bits(groups: int | None, backend: str) -> None:
    case = Case(200, 64, groups, "silu")
    inputs, grad_out = case.inputs(torch.float32), torch.randn(2, 200, 64)
    first = run(case, inputs, grad_out, backend)
    threads = torch.get_num_threads()
    try:
        for repeat in range(20):
            torch.set_num_threads(threads if backend == "reference" else 1 + repeat % 2)
            again = run(case, inputs, grad_out, backend)
            assert all(torch.equal(again[name], value) for name, value in first.items())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", [Case(3, 4), Case(3, 6, 3, "silu"), Case(2, 4, 2, shared=True)], ids=str)
def test_gradcheck(case: Case, backend: str) -> None:
    assert torch.autograd.gradcheck(lambda *x: norm_affine(*x, **case.options, backend=backend), case.inputs())


def test_a_second_derivative_is_a_clear_error(backend: str) -> None:
    inputs = Case(3, 4).inputs()
    (gradient,) = torch.autograd.grad(
        norm_affine(*inputs, backend=backend).square().sum(), inputs[0], create_graph=True
    )
    with pytest.raises(RuntimeError, match="norm_affine has no second derivative"):
        gradient.sum().backward()


X, ROW = torch.zeros(2, 9, 8), torch.zeros(2, 8)
BAD: dict[str, tuple[dict, type[Exception], str]] = {
    "x of two dimensions": ({"x": X[0]}, ValueError, r"x must have shape.*got \(9, 8\)"),
    "no channels": ({"x": X[..., :0]}, ValueError, "x must have shape.*a channel or more"),
    "x of integers": ({"x": X.int()}, TypeError, "x must be float16.*got int32"),
    "gain's shape": ({"gain": ROW[:, 1:]}, ValueError, r"gain must have shape \(2, 8\) or \(1, 8\), got \(2, 7\)"),
    "gain's rows": ({"gain": torch.zeros(3, 8)}, ValueError, r"gain must have shape.*\(3, 8\)"),
    "offset's shape": ({"offset": ROW[0]}, ValueError, r"offset must have shape.*\(8,\)"),
    "gain's dtype": ({"gain": ROW.half()}, TypeError, "gain must be float32.*float16"),
    "another dtype than gain": ({"x": X.half(), "offset": ROW.half()}, TypeError, "offset must be float32"),
    "gain's device": ({"gain": ROW.to("meta")}, ValueError, "gain must be on x's device cpu"),
    "groups": ({"groups": 3}, ValueError, "groups must be None or divide the 8 channels of x, got 3"),
    "groups 0": ({"groups": 0}, ValueError, "groups.*got 0"),
    "eps": ({"eps": 0.0}, ValueError, "eps must be above 0, got 0.0"),
    "activation": ({"activation": "relu"}, ValueError, "activation must be None or 'silu', got 'relu'"),
    "unknown backend": ({"backend": "gpu"}, ValueError, "backend must be one of"),
}


@pytest.mark.parametrize("what", BAD)
def test_errors_name_the_argument(what: str) -> None:
    good = {"x": X, "gain": ROW, "offset": ROW}
    norm_affine(**good)  # what the case is changed from is fine
    changed, error, message = BAD[what]
    with pytest.raises(error, match=message):
        norm_affine(**{**good, **changed})
